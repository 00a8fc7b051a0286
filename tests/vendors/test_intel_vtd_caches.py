"""What a VT-d unit remembers, and what makes it forget: the queue, the registers, and the fault records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.hw.platform import UNMAPPED
from tests.vendors.vtd_rig import (
    CCMD,
    CONTEXT,
    DID,
    FECTL,
    FRCD,
    FSTS,
    GCMD,
    GSTS,
    IOTLB,
    IQA,
    IQERCD,
    IQH,
    IQT,
    IVA,
    PMEN,
    QIE,
    QUEUE,
    READ,
    ROOT,
    RTADDR,
    SCALABLE,
    SID,
    SRTP,
    STATUS,
    TE,
    TOP,
    WRITE,
    Rig,
)

IO = 0x1234_5000
OLD, NEW = 0x40_0000, 0x41_0000


def context(granularity, did=0, sid=0, mask=0):
    return 1 | granularity << 4 | did << 16 | sid << 32 | mask << 48, 0


def iotlb(granularity, did=0, address=0, mask=0, hint=0):
    return 2 | granularity << 4 | 0xC0 | did << 16, address | mask | hint << 6


def pasid_iotlb(granularity, did, pasid, address=0, mask=0):
    return 6 | granularity << 4 | did << 16 | pasid << 32, address | mask


def pasid_cache(granularity, did=0, pasid=0):
    return 7 | granularity << 4 | did << 16 | pasid << 32, 0


# ---- translations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("descriptor", "forgotten"),
    [
        (context(1), False),
        (iotlb(1), True),
        (iotlb(2, DID), True),
        (iotlb(2, DID + 1), False),
        (iotlb(3, DID, IO), True),
        (iotlb(3, DID + 1, IO), False),
        (iotlb(3, DID, IO + 0x1000), False),
        (iotlb(3, DID, IO - 0x1000), False),
        (iotlb(3, DID, IO - 0x1000, mask=1), True),
        (iotlb(3, DID, IO + 0x1000, mask=1), False),
        (iotlb(3, DID, IO & -0x8000, mask=3), True),
        (iotlb(3, DID, 0, mask=18), True),
        (iotlb(3, DID, 1 << 30, mask=18), False),
        (iotlb(3, DID, IO, hint=1), True),
    ],
)
def test_what_an_iotlb_invalidation_takes(descriptor, forgotten):
    rig = Rig()
    rig.map(IO, OLD)
    assert rig.reach(IO) == OLD
    rig.map(IO, NEW)
    assert rig.reach(IO) == rig.reach_many(IO) == OLD
    assert rig.submit(descriptor)
    assert rig.reach_many(IO) == rig.reach(IO) == (NEW if forgotten else OLD)


@pytest.mark.parametrize("level", [2, 3])
def test_a_larger_page_goes_as_a_whole(level):
    size = 1 << 3 + 9 * level
    rig = Rig()
    rig.map(4 * size, 0, level=level)
    assert [rig.reach(4 * size + offset) for offset in (0, size - 1)] == [0, size - 1]
    rig.map(4 * size, size, level=level)
    rig.submit(iotlb(3, DID, 4 * size - 0x1000))
    assert rig.reach(4 * size) == 0
    rig.submit(iotlb(3, DID, 4 * size + size // 2))
    assert rig.reach(4 * size + 0x1000) == size + 0x1000


def test_a_mask_beyond_mamv_and_units_without_page_selection():
    rig = Rig()
    assert not rig.submit(iotlb(3, DID, 0, mask=19))
    whole = Rig(psi=False)
    whole.map(IO, OLD)
    whole.reach(IO)
    whole.map(IO, NEW)
    whole.submit(iotlb(3, DID, IO + 0x10_0000))
    assert whole.reach(IO) == NEW


@pytest.mark.parametrize("hint", [0, 1])
@pytest.mark.parametrize("many", [False, True])
def test_the_hint_leaves_upper_entries(hint, many):
    """After a table was replaced, IH=1 is a mistake: the unit still walks the old one."""
    rig = Rig()
    rig.map(IO, OLD)
    reach = rig.reach_many if many else rig.reach
    reach(IO)
    table = rig.page()
    rig.put(table + 8 * (IO >> 12 & 511), NEW | READ | WRITE)
    directory = rig.memory.word(TOP + 8 * (IO >> 30)) & -0x1000
    rig.put(directory + 8 * (IO >> 21 & 511), table | READ | WRITE)
    rig.submit(iotlb(3, DID, IO, hint=hint))
    assert reach(IO) == (OLD if hint else NEW)
    rig.submit(iotlb(2, DID))
    assert reach(IO) == NEW


@pytest.mark.parametrize("caching_mode", [False, True])
def test_absent_entries(caching_mode):
    rig = Rig(cm=caching_mode)
    assert rig.why(IO) == 6
    assert rig.why(IO, many=True) == 6
    rig.map(IO, OLD)
    assert rig.why(IO) == (6 if caching_mode else None)
    assert rig.why(IO, many=True) == (6 if caching_mode else None)
    rig.submit(iotlb(3, DID, IO))
    assert rig.why(IO) is None


def test_absent_entries_of_the_first_stage_are_never_kept():
    rig = Rig(scalable=True, cm=True, **SCALABLE)
    rig.pasid(1 | 1 << 6, DID | 1 << 23, TOP)
    assert rig.why(IO) == rig.why(IO, many=True) == 0x71
    rig.map(IO, OLD, FIRST, table_flags=FIRST)
    assert rig.why(IO) is None


@pytest.mark.parametrize("many", [False, True])
def test_a_refused_write_is_nothing_absent(many):
    rig = Rig(cm=True)
    rig.map(IO, OLD, READ)
    assert rig.why(IO, write=True, many=many) == 5
    assert rig.why(IO, many=many) is None


def test_absent_entries_found_by_a_batch_are_kept_too():
    rig = Rig(cm=True)
    assert rig.why(IO, many=True) == 6
    rig.map(IO, OLD)
    assert rig.why(IO) == 6


# ---- device entries --------------------------------------------------------------------------------------------------

OTHER = 0x42_0000


@pytest.mark.parametrize(
    ("descriptor", "forgotten"),
    [
        (iotlb(1), False),
        (context(1), True),
        (context(2, DID), True),
        (context(2, DID + 1), False),
        (context(3, DID, SID), True),
        (context(3, DID + 1, SID), False),
        (context(3, DID, SID + 8), False),
        (context(3, DID, SID + 7), False),
        (context(3, DID, SID + 7, mask=3), True),
        (context(3, DID, SID + 4, mask=1), True),
        (context(3, DID, SID + 2, mask=1), False),
        (context(3, DID, SID + 6, mask=2), True),
    ],
)
def test_what_a_context_invalidation_takes(descriptor, forgotten):
    rig = Rig()
    other = rig.page()
    rig.map(IO, OLD)
    rig.map(IO, NEW, top=other)
    assert rig.reach(IO) == OLD
    rig.context(other | 1, 1 | DID + 2 << 8)
    rig.submit(iotlb(2, DID))
    assert rig.reach(IO) == OLD
    rig.submit(descriptor, iotlb(2, DID))
    assert rig.reach(IO) == (NEW if forgotten else OLD)


@pytest.mark.parametrize("caching_mode", [False, True])
def test_absent_device_entries_are_kept_under_domain_0(caching_mode):
    rig = Rig(cm=caching_mode)
    rig.map(IO, OLD)
    rig.context(0)
    assert rig.why(IO) == 2
    rig.context(TOP | 1)
    assert rig.why(IO) == (2 if caching_mode else None)
    rig.submit(context(3, DID, SID))
    assert rig.why(IO) == (2 if caching_mode else None)
    rig.submit(context(3, 0, SID))
    assert rig.why(IO) is None


def test_domains_share_nothing_and_one_id_shares_all():
    rig = Rig()
    other, sid = rig.page(), SID + 8
    rig.map(IO, OLD)
    rig.map(IO, NEW, top=other)
    rig.context(other | 1, 1 | DID + 1 << 8, sid=sid)
    assert (rig.reach(IO), rig.reach(IO, sid=sid)) == (OLD, NEW)
    same = Rig()
    other = same.page()
    same.map(IO, OLD)
    same.map(IO, NEW, top=other)
    same.context(other | 1, 1 | DID << 8, sid=sid)
    assert (same.reach(IO), same.reach(IO, sid=sid)) == (OLD, OLD)


FIRST = 1 | 2 | 4


@pytest.mark.parametrize(
    ("descriptor", "forgotten"),
    [
        (iotlb(1), True),
        (iotlb(2, DID), True),
        (iotlb(3, DID, IO), False),
        (pasid_iotlb(2, DID, 0), True),
        (pasid_iotlb(2, DID, 1), False),
        (pasid_iotlb(2, DID + 1, 0), False),
        (pasid_iotlb(3, DID, 0, IO), True),
        (pasid_iotlb(3, DID, 0, IO + 0x1000), False),
        (pasid_iotlb(3, DID, 0, IO - 0x1000, 1), True),
        (pasid_cache(3), False),
    ],
)
def test_first_stage_translations_belong_to_a_pasid(descriptor, forgotten):
    rig = Rig(scalable=True, **SCALABLE)
    rig.pasid(1 | 1 << 6, DID | 1 << 23, TOP)
    rig.map(IO, OLD, FIRST, table_flags=FIRST)
    assert rig.reach(IO) == OLD
    rig.map(IO, NEW, FIRST)
    assert rig.submit(descriptor)
    assert rig.reach(IO) == (NEW if forgotten else OLD)


@pytest.mark.parametrize(
    ("descriptor", "forgotten"),
    [
        (pasid_cache(3), True),
        (pasid_cache(0, DID), True),
        (pasid_cache(0, DID + 1), False),
        (pasid_cache(1, DID, 0), True),
        (pasid_cache(1, DID, 1), False),
        (context(3, 0, SID), True),
        (context(3, 0, SID + 8), False),
    ],
)
def test_what_a_pasid_invalidation_takes(descriptor, forgotten):
    rig = Rig(scalable=True, **SCALABLE)
    rig.map(IO, OLD)
    assert rig.reach(IO) == OLD
    rig.pasid(1 | 4 << 6 | 2 << 2, DID)
    assert rig.submit(descriptor, iotlb(1))
    assert rig.reach(IO) == (IO if forgotten else OLD)


# ---- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_wraps():
    rig = Rig()
    for _ in range(300):
        assert rig.submit(iotlb(1))
    assert rig.read(IQH, 8) == rig.read(IQT, 8) == rig.tail


BAD = {
    "type 0": ((0, 0), 3),
    "type 15": ((0xF, 0), 3),
    "type of another extension": ((1 << 9 | 2 | 1 << 4, 0), 3),
    "device TLB without DT": ((3, 0), 3),
    "reserved bit": ((2 | 1 << 4 | 1 << 8, 0), 4),
    "reserved bit of the upper half": ((2 | 1 << 4, 1 << 7), 4),
    "no granularity": ((2, 0), 4),
    "PASID cache in legacy units": ((7 | 3 << 4, 0), 3),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_descriptor_stops_the_queue_until_it_is_replaced(case):
    descriptor, code = BAD[case]
    rig = Rig()
    rig.submit()
    at = rig.tail
    assert not rig.submit(descriptor)
    assert (rig.read(IQH, 8), rig.read(FSTS) >> 4 & 1, rig.read(IQERCD, 8)) == (at, 1, code)
    assert not rig.submit()
    rig.put(QUEUE + at, 0xABCD << 32 | 1 << 5 | 5, STATUS + 8)
    rig.write(FSTS, 1 << 4)
    assert (rig.memory.word(STATUS + 8), rig.read(IQH, 8), rig.read(FSTS)) == (0xABCD, rig.tail, 0)
    assert rig.submit()


def test_wide_and_narrow_queues():
    rig = Rig(scalable=True, **SCALABLE)
    assert rig.submit(pasid_cache(3), iotlb(1))
    assert rig.read(IQH, 8) == 96
    rig.put(QUEUE + rig.tail + 16, 1)
    assert not rig.submit()
    narrow = Rig(smts=True)
    assert not narrow.submit(pasid_cache(3))
    assert narrow.read(IQERCD, 8) == 5


def test_tails_that_cannot_be():
    rig = Rig()
    rig.write(IQT, 0x1000, 8)
    assert (rig.read(FSTS) >> 4 & 1, rig.read(IQERCD, 8)) == (1, 1)
    wide = Rig(scalable=True, **SCALABLE)
    wide.write(IQT, 16, 8)
    assert wide.read(IQERCD, 8) == 6


def test_a_larger_ring():
    rig = Rig(start=False)
    rig.write(IQA, QUEUE | 1, 8)
    rig.write(GCMD, QIE)
    for at in range(0, 0x1800, 16):
        rig.put(QUEUE + at, 2 | 1 << 4, 0)
    rig.write(IQT, 0x1800, 8)
    assert rig.read(IQH, 8) == 0x1800


def test_descriptors_without_caches_behind_them():
    rig = Rig(dt=True)
    assert rig.submit((4, 0), (3 | SID << 32, IO | 1))
    assert rig.submit((5, 0), (5 | 1 << 4 | 1 << 6, 0))


# ---- registers -------------------------------------------------------------------------------------------------------


def test_identification():
    rig = Rig()
    assert rig.read(0) == 0x10
    for offset, value in ((0x08, rig.words.cap), (0x10, rig.words.ecap)):
        assert rig.read(offset, 8) == value
        assert rig.read(offset) | rig.read(offset + 4) << 32 == value
        rig.write(offset, 0, 8)
        assert rig.read(offset, 8) == value


def test_the_root_table_counts_from_the_command_on():
    rig = Rig()
    rig.map(IO, OLD)
    empty = rig.page()
    rig.write(RTADDR, empty)
    rig.write(RTADDR + 4, 0)
    rig.submit(context(1), iotlb(1))
    assert rig.reach(IO) == OLD
    rig.command(SRTP)
    assert rig.reach(IO) == OLD
    assert rig.read(GSTS) & (SRTP | TE | QIE) == SRTP | TE | QIE
    rig.submit(context(1))
    assert rig.why(IO) == 1


def test_abort_mode_stops_all_and_tells_nothing():
    rig = Rig(scalable=True, **SCALABLE)
    rig.write(RTADDR, ROOT | 3 << 10, 8)
    rig.command(SRTP)
    assert rig.reach(IO) is None
    assert rig.fault() is None


def test_translation_off_leaves_what_is_known():
    rig = Rig()
    rig.map(IO, OLD)
    rig.reach(IO)
    rig.command(TE, on=False)
    assert rig.reach(IO) == IO
    rig.map(IO, NEW)
    rig.command(TE)
    assert rig.reach(IO) == OLD


@pytest.mark.parametrize(("granularity", "did", "forgotten"), [(1, 0, 1), (2, DID, 1), (2, 1, 0), (3, DID, 1), (3, 1, 0)])
def test_register_based_invalidation(granularity, did, forgotten):
    rig = Rig()
    other = rig.page()
    rig.map(IO, OLD)
    rig.map(IO, NEW, top=other)
    rig.reach(IO)
    rig.context(other | 1, 1 | DID << 8)
    rig.write(CCMD, 1 << 63 | granularity << 61 | SID << 16 | did, 8)
    assert rig.read(CCMD, 8) >> 59 & 3 == 0, "refused while the queue is in use"
    rig.command(QIE, on=False)
    rig.write(CCMD, 1 << 63 | granularity << 61 | SID << 16 | did, 8)
    assert (rig.read(CCMD, 8) >> 63, rig.read(CCMD, 8) >> 59 & 3) == (0, granularity)
    rig.write(IVA, IO, 8)
    rig.write(IOTLB, did << 32 & 0xFFFF_FFFF)
    rig.write(IOTLB + 4, 1 << 31 | granularity << 28 | did)
    assert (rig.read(IOTLB, 8) >> 63, rig.read(IOTLB, 8) >> 57 & 3) == (0, granularity)
    assert rig.reach(IO) == (NEW if forgotten else OLD)


def test_protected_memory():
    rig = Rig(start=False, plmr=True, phmr=True)
    rig.write(0x68, 0x100_0000)
    rig.write(0x6C, 0x120_0000)
    rig.write(0x70, 1 << 32, 8)
    rig.write(0x78, 1 << 32, 8)
    assert rig.reach(0x110_0000) == 0x110_0000
    rig.write(PMEN, 1 << 31)
    assert rig.read(PMEN) == 1 << 31 | 1
    stopped = {0xFF_F000: False, 0x100_0000: True, 0x13F_F000: True, 0x140_0000: False, 1 << 32: True, (1 << 32) + 0x20_0000: False}
    assert {address: rig.reach(address) is None for address in stopped} == stopped
    found = rig.unit.translate_many(SID, np.array(list(stopped), dtype=np.uint64), write=False)
    assert (found == UNMAPPED).tolist() == list(stopped.values())
    rig.write(PMEN, 0)
    assert rig.reach(0x110_0000) == 0x110_0000


# ---- fault records ---------------------------------------------------------------------------------------------------


def fail(rig, *sids):
    for sid in sids:
        rig.reach(IO, sid=sid)


def test_one_record_holds_the_first_fault():
    rig = Rig()
    fail(rig, 0x10, 0x18 << 3)
    assert rig.read(FSTS) & 3 == 0b11, "pending, and one was lost"
    assert rig.read(FRCD + 8, 8) & 0xFFFF == 0x10
    rig.write(FRCD + 12, 1 << 31)
    fail(rig, 0x20)
    assert rig.read(FSTS) & 3 == 0b01, "nothing is recorded before the overflow is cleared"
    rig.write(FSTS, 1)
    fail(rig, 0x20)
    assert rig.read(FRCD + 8, 8) & 0xFFFF == 0x20


def test_faults_of_one_requester_fall_together():
    rig = Rig(nfr=3)
    fail(rig, 0x10, 0x10, 0x10)
    assert rig.read(FSTS) & 3 == 0b10
    assert rig.read(FRCD + 24, 8) == 0


def test_records_are_a_ring():
    rig = Rig(nfr=3)
    fail(rig, 0x10, 0x11, 0x12)
    assert rig.read(FSTS) >> 8 == 0
    for number in range(2):
        rig.write(FRCD + 16 * number + 12, 1 << 31)
    assert rig.read(FSTS) >> 8 == 2
    fail(rig, 0x13, 0x14, 0x15, 0x16)
    assert [rig.read(FRCD + 16 * number + 8, 8) & 0xFFFF for number in (2, 3, 0, 1)] == [0x12, 0x13, 0x14, 0x15]
    assert rig.read(FSTS) & 1


def test_the_fault_interrupt_waits_while_it_is_masked():
    rig = Rig()
    assert rig.read(FECTL) == 1 << 31
    fail(rig, SID + 8)
    assert rig.read(FECTL) == 3 << 30
    rig.write(FECTL, 0)
    assert rig.read(FECTL) == 0
    masked = Rig()
    fail(masked, SID + 8)
    masked.fault()
    assert masked.read(FECTL) == 1 << 31


# ---- alone and in batches --------------------------------------------------------------------------------------------

ENTRIES = st.sampled_from([0, 1, 2, 3, 3, 3, 3 | 1 << 11, 3 | 1 << 51, 7, 7 | 1 << 5, 5, 1 | 2 | 4 | 1 << 6])
PLACES = st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([1, 1, 1, 2, 3]), ENTRIES, ENTRIES)


@settings(max_examples=60, deadline=None)
@given(st.lists(PLACES, max_size=12), st.booleans(), st.booleans(), st.booleans())
def test_batches_get_what_single_requests_get(places, first_stage, write, caching_mode):
    """On tables of good, bad and absent entries at all levels, also from the caches that the other kind has filled."""
    rigs = []
    for _ in range(3):
        rig = Rig(scalable=True, cm=caching_mode, **SCALABLE)
        if first_stage:
            rig.pasid(1 | 1 << 6, DID | 1 << 23, TOP)
        for gigabyte, page, level, flags, table_flags in places:
            iova = gigabyte << 30 | page << 12
            size = 1 << 3 + 9 * level
            rig.map(iova & -size, 0x40_0000 & -size, flags, level=level, table_flags=table_flags)
        rigs.append(rig)
    alone, batch, mixed = rigs
    asked = [gigabyte << 30 | page << 12 | offset for gigabyte in range(4) for page in range(5) for offset in (0, 0x238)]
    for turn in range(2):
        one_by_one = [alone.reach(iova, write) for iova in asked]
        found = batch.unit.translate_many(SID, np.array(asked, dtype=np.uint64), write=write)
        assert [None if at == UNMAPPED else at for at in found.tolist()] == one_by_one
        assert batch.fault() == alone.fault()
        ask = (mixed.reach, mixed.reach_many)[turn]
        assert [ask(iova, write) for iova in asked] == one_by_one
    assert (alone.memory.words[: 0x30_0000 >> 3] == batch.memory.words[: 0x30_0000 >> 3]).all()


def test_a_batch_that_spreads_over_the_whole_space():
    rig = Rig()
    pages = [number << 32 | number << 12 for number in range(64)]
    for page in pages:
        rig.map(page, 0x40_0000 + (page >> 32 << 12))
    asked = np.array(pages, dtype=np.uint64)
    for _ in range(2):
        assert rig.unit.translate_many(SID, asked, write=True).tolist() == [0x40_0000 + (page >> 32 << 12) for page in pages]


def test_one_context_table_serves_one_bus():
    rig = Rig()
    rig.map(IO, OLD)
    rig.put(ROOT + 5 * 16, CONTEXT | 1)
    assert rig.reach(IO, sid=5 << 8 | SID) == OLD
    assert rig.reach(IO, sid=6 << 8 | SID) is None


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize(("flags", "write", "reason"), [(WRITE, False, 6), (READ, True, 5)])
def test_a_remembered_upper_entry_refuses_what_it_refuses_in_memory(many, flags, write, reason):
    """Permissions of all entries on the way count, wherever they are read from (3.6, 6.2.4)."""
    rig = Rig()
    rig.map(IO, 0x40_0000, table_flags=flags)
    rig.map(IO + 0x1000, 0x40_1000)
    assert (rig.reach_many if many else rig.reach)(IO, not write) == 0x40_0000
    assert rig.why(IO + 0x1000, write, many=many) == reason


# ---- the queue's registers -------------------------------------------------------------------------------------------

ICS, IECTL, PENDING, MASKED = 0x9C, 0xA0, 1 << 30, 1 << 31


def test_a_wait_with_if_is_an_event():
    """11.4.9.4, 11.4.9.5: ICS.IWC until software clears it; IECTL holds the interrupt back while it is masked."""
    rig = Rig()
    assert (rig.read(ICS), rig.read(IECTL)) == (0, MASKED)
    rig.submit()
    assert rig.read(ICS) == 0, "no interrupt was asked for"
    rig.submit((5 | 1 << 4, 0))
    assert (rig.read(ICS), rig.read(IECTL)) == (1, MASKED | PENDING)
    rig.write(ICS, 0)
    assert rig.read(ICS) == 1
    rig.write(ICS, 1)
    assert (rig.read(ICS), rig.read(IECTL)) == (0, MASKED), "what was pending has been taken note of"
    rig.submit((5 | 1 << 4, 0))
    rig.write(IECTL, 0)
    assert rig.read(IECTL) == 0, "the interrupt is out"
    rig.submit((5 | 1 << 4, 0))
    rig.write(IECTL, MASKED)
    assert rig.read(IECTL) == MASKED, "one event has been told of, and is no other"


def test_a_wait_may_write_its_status_and_tell_as_well():
    rig = Rig()
    rig.submit((0x1234 << 32 | 5 | 1 << 5 | 1 << 4, STATUS + 8))
    assert (rig.memory.word(STATUS + 8), rig.read(ICS)) == (0x1234, 1)


@pytest.mark.parametrize("drains", [False, True])
def test_a_wait_drains_page_requests_only_where_there_are_any(drains):
    """6.5.2.8: PD is reserved without ECAP.PDS."""
    rig = Rig(pds=drains)
    assert rig.submit((5 | 1 << 7, 0)) == drains
    assert bool(rig.read(FSTS) & 1 << 4) != drains


def test_the_head_is_0_while_the_queue_is_off():
    """11.4.9.1."""
    rig = Rig()
    rig.submit()
    assert rig.read(IQH, 8) == 16
    rig.command(QIE, on=False)
    assert rig.read(IQH, 8) == 0


def test_addresses_in_registers_end_at_the_host_address_width():
    """11.4.5, 11.4.9.3: bits of RTADDR and IQA from there on are ignored."""
    rig = Rig(address_bits=39, start=False)
    rig.map(IO, 0x40_0000)
    rig.write(RTADDR, ROOT | 1 << 39 | 1 << 63, 8)
    rig.command(SRTP)
    rig.write(IQA, QUEUE | 1 << 40, 8)
    rig.command(QIE)
    rig.command(TE)
    assert rig.submit()
    assert rig.reach(IO) == 0x40_0000
