"""The VT-d unit's walks and fault reasons, on tables written by hand."""

from __future__ import annotations

import pytest

from tests.vendors.vtd_rig import (
    CONTEXT,
    DID,
    DIRECTORY,
    LARGE,
    PASIDS,
    READ,
    ROOT,
    SCALABLE,
    SID,
    TOP,
    WRITE,
    Rig,
)

IO = 0x1234_5000
FAR = 1 << 38
"""An address in a part of memory that is not there."""
BOTH = pytest.mark.parametrize("many", [False, True], ids=["one", "many"])


# ---- what is reached -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("width", [39, 48, 57])
@pytest.mark.parametrize(("level", "physical"), [(1, 0x40_3000), (2, 0x60_0000), (3, 0x4000_0000)])
def test_pages_of_each_size_at_each_depth(width, level, physical, many):
    rig = Rig(width=width)
    size = 1 << 3 + 9 * level
    iova = (1 << width - 1 | 0x5_4321_0000) & -size
    rig.map(iova, physical, level=level)
    reach = rig.reach_many if many else rig.reach
    for offset in (0, 8, size // 2 + 0x123, size - 1):
        assert reach(iova + offset) == physical + offset
    assert rig.fault() is None


@BOTH
def test_permissions_are_those_of_all_entries_on_the_way(many):
    rig = Rig()
    rig.map(IO, 0x40_0000, table_flags=READ)
    assert rig.why(IO, many=many) is None
    other = Rig()
    other.map(IO, 0x40_0000, table_flags=READ)
    assert other.why(IO, write=True, many=many) == 5


def test_nothing_is_translated_before_translation_is_on():
    rig = Rig(start=False)
    assert rig.reach(IO, write=True) == IO
    assert rig.reach_many(IO) == IO
    rig.start()
    assert rig.why(IO) == 6


@BOTH
def test_pass_through(many):
    rig = Rig()
    rig.context(1 | 2 << 2)
    assert (rig.reach_many if many else rig.reach)(IO) == IO
    scalable = Rig(scalable=True, **SCALABLE)
    scalable.pasid(1 | 4 << 6 | 2 << 2, DID)
    assert (scalable.reach_many if many else scalable.reach)(IO, write=True) == IO


@BOTH
def test_the_interrupt_window_is_never_translated(many):
    rig = Rig()
    rig.map(0xFEE0_1000, 0x40_0000)
    reach = rig.reach_many if many else rig.reach
    assert reach(0xFEE0_1000, write=True) is None
    assert rig.fault() is None
    rig.context(1 | 2 << 2)
    rig.submit((1 | 1 << 4, 0))
    assert reach(0xFEE0_1000, write=True) is None
    assert rig.fault() is None


def test_a_batch_around_the_interrupt_window():
    import numpy as np

    from iommukit.hw.platform import UNMAPPED

    rig = Rig()
    for page in (0xFEDF_F000, 0xFEE0_0000, 0xFEF0_0000):
        rig.map(page, 0x40_0000 + (page & 0xF000))
    asked = np.array([0xFEDF_F008, 0xFEE0_0000, 0xFEEF_FFF8, 0xFEF0_0010], dtype=np.uint64)
    assert rig.unit.translate_many(SID, asked, write=True).tolist() == [0x40_F008, int(UNMAPPED), int(UNMAPPED), 0x40_0010]
    assert rig.fault() is None


# ---- legacy reasons --------------------------------------------------------------------------------------------------


def root(*values):
    return lambda rig: rig.put(ROOT, *values)


def context(low, high=None):
    return lambda rig: rig.context(low, high)


def leaf(flags, physical=0x40_0000, level=1, **options):
    return lambda rig: rig.map(IO & -(1 << 3 + 9 * level), physical, flags, level=level, **options)


def table_outside(flags):
    return lambda rig: rig.put(rig.map(IO & -(1 << 21), 0, 0, level=2), FAR | flags)


LEGACY = {
    "root absent": (root(0), 1, {}),
    "context absent": (context(0), 2, {}),
    "depth that the unit lacks": (context(TOP | 1, 2 | DID << 8), 3, {}),
    "reserved type": (context(TOP | 1 | 3 << 2), 3, {}),
    "device TLB without DT": (context(TOP | 1 | 1 << 2), 3, {}),
    "pass-through without PT": (context(1 | 2 << 2), 3, {"pt": False}),
    "nothing allowed": (leaf(0), 6, {}),
    "write only": (leaf(WRITE), 6, {}),
    "first page table outside memory": (context(FAR | 1), 3, {}),
    "page table outside memory": (table_outside(READ | WRITE), 7, {}),
    "context table outside memory": (root(FAR | 1), 9, {}),
    "reserved bit in the root entry": (root(CONTEXT | 1 | 1 << 4), 0xA, {}),
    "address bit beyond HAW in the root entry": (root(CONTEXT | 1 | 1 << 40), 0xA, {}),
    "upper half of the root entry": (root(CONTEXT | 1, 1), 0xA, {}),
    "reserved bit in the context entry": (context(TOP | 1 | 1 << 4), 0xB, {}),
    "address bit beyond HAW in the context entry": (context(TOP | 1 | 1 << 39), 0xB, {}),
    "reserved bit 71 of the context entry": (context(TOP | 1, 1 | 1 << 7 | DID << 8), 0xB, {}),
    "reserved bit 88 of the context entry": (context(TOP | 1, 1 | 1 << 24 | DID << 8), 0xB, {}),
    "address bit beyond HAW in a leaf": (leaf(READ | 1 << 51), 0xC, {}),
    "SNP without SC": (leaf(READ | 1 << 11), 0xC, {}),
    "TM without DT": (leaf(READ | 1 << 62), 0xC, {}),
    "misaligned large page": (leaf(READ, 0x60_1000, level=2), 0xC, {}),
    "large page without SSLPS": (leaf(READ, 0x60_0000, level=2), 0xC, {"sslps": 0}),
    "large page at level 4": (leaf(READ, 0, level=4), 0xC, {"width": 48}),
    "SNP in an entry that names a table": (leaf(READ, table_flags=READ | 1 << 11), 0xC, {"sc": True}),
    "translation into the interrupt window": (leaf(READ, 0xFEE0_0000), 0xE, {}),
}


@BOTH
@pytest.mark.parametrize("case", LEGACY)
def test_legacy_reasons(case, many):
    change, reason, options = LEGACY[case]
    rig = Rig(**options)
    change(rig)
    assert rig.why(IO, many=many) == reason


@BOTH
def test_a_write_needs_w(many):
    rig = Rig()
    rig.map(IO, 0x40_0000, READ)
    assert rig.why(IO, write=True, many=many) == 5
    assert rig.why(IO, many=many) is None
    # The translation is kept by now, and what is kept decides.
    assert rig.why(IO, write=True, many=many) == 5


@BOTH
def test_addresses_beyond_the_width(many):
    rig = Rig()
    assert rig.why(1 << 39 | IO, many=many) == 4
    assert rig.why((1 << 64) - 0x1000, many=many) == 4


def test_a_root_table_outside_memory():
    rig = Rig(start=False)
    rig.start()
    rig.write(0x20, FAR, 8)
    rig.command(1 << 30)
    rig.submit((1 | 1 << 4, 0))
    assert rig.why(IO) == 8


@BOTH
@pytest.mark.parametrize(
    "options", [{"sc": True, "flags": 1 << 11}, {"dt": True, "flags": 1 << 62}, {"flags": 0x7 << 52 | 1 << 63}]
)
def test_bits_that_are_good_where_the_unit_can(options, many):
    rig = Rig(**{name: value for name, value in options.items() if name != "flags"})
    rig.map(IO, 0x40_0000, READ | options["flags"])
    assert rig.why(IO, many=many) is None


def test_a_leaf_of_the_lowest_level_may_have_the_size_bit():
    rig = Rig()
    rig.map(IO, 0x40_0000, READ | LARGE)
    assert rig.reach(IO + 8) == 0x40_0008


@pytest.mark.parametrize("change", [context(2), context(TOP | 1 | 2)])
def test_faults_of_a_quiet_device_are_not_recorded(change):
    rig = Rig()
    change(rig)
    assert rig.reach(IO) is None
    assert rig.reach_many(IO) is None
    assert rig.fault() is None


def test_requests_with_a_pasid_need_scalable_mode():
    rig = Rig()
    rig.map(IO, 0x40_0000)
    assert rig.why(IO, pasid=1) == 0x31


# ---- scalable mode ---------------------------------------------------------------------------------------------------


def word(address, *values):
    return lambda rig: rig.put(address, *values)


def pasid(*values):
    return lambda rig: rig.pasid(*values)


HERE = CONTEXT + SID * 32
SECOND = TOP | 1 | 2 << 2 | 2 << 6
SCALABLE_REASONS = {
    "root outside": (word(ROOT, FAR | 1), 0x40),
    "root absent": (word(ROOT, 0), 0x39),
    "root reserved": (word(ROOT, CONTEXT | 1 | 2), 0x3A),
    "context absent": (word(HERE, 0), 0x41),
    "context reserved 5": (word(HERE, DIRECTORY | 1 | 1 << 5), 0x42),
    "context reserved 85": (word(HERE, DIRECTORY | 1, 1 << 21), 0x42),
    "context reserved 128": (word(HERE, DIRECTORY | 1, 0, 1), 0x42),
    "RID_PASID without RPS": (word(HERE, DIRECTORY | 1, 1), 0x42),
    "device TLB without DT": (word(HERE, DIRECTORY | 1 | 1 << 2), 0x43),
    "directory outside": (word(HERE, FAR | 1), 0x50),
    "directory entry absent": (word(DIRECTORY, 0), 0x51),
    "directory entry reserved": (word(DIRECTORY, PASIDS | 1 | 4), 0x52),
    "PASID table outside": (word(DIRECTORY, FAR | 1), 0x58),
    "PASID entry absent": (pasid(0), 0x59),
    "PASID entry reserved 10": (pasid(SECOND | 1 << 10, DID), 0x5A),
    "PASID entry reserved 80": (pasid(SECOND, DID | 1 << 16), 0x5A),
    "PGSNP without SC": (pasid(SECOND, DID | 1 << 24), 0x5A),
    "SSADE without SSADS": (pasid(SECOND | 1 << 9, DID), 0x5A),
    "no such type": (pasid(TOP | 1 | 2 << 2, DID), 0x5B),
    "nested": (pasid(TOP | 1 | 2 << 2 | 3 << 6, DID, TOP), 0x5B),
    "second stage of a depth that the unit lacks": (pasid(TOP | 1 | 3 << 2 | 2 << 6, DID), 0x5B),
    "first stage of five levels": (pasid(1 | 1 << 6, DID, TOP | 1 << 2), 0x5B),
    "second stage: absent": (leaf(0), 0x86),
    "second stage: reserved": (leaf(READ | 1 << 51), 0x7A),
    "second stage: first table outside": (pasid(FAR | 1 | 2 << 2 | 2 << 6, DID), 0x7B),
    "second stage: table outside": (table_outside(READ | WRITE), 0x78),
    "second stage: interrupt window": (leaf(READ, 0xFEE0_0000), 0x87),
}


@BOTH
@pytest.mark.parametrize("case", SCALABLE_REASONS)
def test_scalable_reasons(case, many):
    change, reason = SCALABLE_REASONS[case]
    rig = Rig(scalable=True, address_bits=39, **SCALABLE)
    rig.map(IO, 0x40_0000)
    change(rig)
    assert rig.why(IO, many=many) == reason


def test_scalable_units_without_the_stage_or_the_snooping():
    for options, entry in (
        ({"ssts": False}, (SECOND, DID)),
        ({"fsts": False}, (1 | 1 << 6, DID, TOP)),
        ({"pt": False}, (1 | 4 << 6 | 2 << 2, DID)),
    ):
        rig = Rig(scalable=True, **{**SCALABLE, **options})
        rig.pasid(*entry)
        assert rig.why(IO) == 0x5B
    rig = Rig(scalable=True, **{**SCALABLE, "smpwc": False})
    rig.pasid(SECOND, DID | 1 << 23)
    assert rig.why(IO) == 0x5A


def test_devices_above_15_have_the_upper_half_of_the_root_entry():
    rig = Rig(scalable=True, **SCALABLE)
    rig.map(IO, 0x40_0000)
    sid = 0x85
    assert rig.reach(IO, sid=sid) is None
    assert rig.fault()[0] == 0x39
    upper = rig.page()
    rig.put(ROOT + 8, upper | 1)
    rig.put(upper + (sid & 0x7F) * 32, DIRECTORY | 1)
    assert rig.reach(IO, sid=sid) == 0x40_0000


def test_requests_with_a_pasid():
    rig = Rig(scalable=True, **SCALABLE)
    assert rig.why(IO, pasid=2) == 0x45
    rig.put(HERE, DIRECTORY | 1 | 1 << 3)
    rig.submit((1 | 1 << 4, 0))
    assert rig.why(IO, pasid=2) == 0x59
    assert rig.why(IO, pasid=1 << 13) == 0x46
    assert rig.why(IO, pasid=64) == 0x51
    rig.pasid(1 | 4 << 6 | 2 << 2, DID, pasid=2)
    assert rig.reach(IO, pasid=2) == IO
    # With a PASID the interrupt window is an address like any other, but may not be passed through.
    assert rig.why(0xFEE0_0000, pasid=2) == 0x87


def test_the_record_of_a_request_with_a_pasid_has_it():
    rig = Rig(scalable=True, **SCALABLE)
    rig.put(HERE, DIRECTORY | 1 | 1 << 3)
    rig.reach(IO, pasid=5)
    high = rig.read(0x228, 8)
    assert (high >> 40 & 0xFFFFF, high >> 31 & 1) == (5, 1)


# ---- first stage -----------------------------------------------------------------------------------------------------

PRESENT, USER, ACCESSED, DIRTY = 1, 4, 1 << 5, 1 << 6
FIRST = PRESENT | WRITE | USER


class FirstRig(Rig):
    def __init__(self, *, second=DID | 1 << 23, third=0, **options):
        super().__init__(scalable=True, **{**SCALABLE, **options})
        self.pasid(1 | 1 << 6, second, TOP | (1 << 2 if self.levels == 5 else 0) | third)

    def map(self, iova, physical, flags=FIRST, *, level=1, top=TOP, table_flags=FIRST):
        return super().map(iova, physical, flags, level=level, top=top, table_flags=table_flags)


@BOTH
@pytest.mark.parametrize("width", [48, 57])
@pytest.mark.parametrize(("level", "physical"), [(1, 0x40_3000), (2, 0x60_0000), (3, 0x4000_0000)])
def test_first_stage_pages(width, level, physical, many):
    rig = FirstRig(width=width)
    size = 1 << 3 + 9 * level
    for iova in ((1 << width - 2 | 0x5_4321_0000) & -size, ((1 << 64) - (1 << width - 2) | 0x5_4321_0000) & -size):
        rig.map(iova, physical, level=level)
        assert (rig.reach_many if many else rig.reach)(iova + size - 8) == physical + size - 8
    assert rig.fault() is None


@BOTH
def test_first_stage_addresses_are_canonical(many):
    rig = FirstRig()
    assert rig.why(1 << 47, many=many) == 0x80
    assert rig.why((1 << 64) - (1 << 47) - 0x1000, many=many) == 0x80


FIRST_REASONS = {
    "absent": (leaf(0), 0x71),
    "supervisor": (leaf(PRESENT | WRITE), 0x81),
    "supervisor table": (leaf(FIRST, table_flags=PRESENT | WRITE), 0x81),
    "reserved address bit": (leaf(FIRST | 1 << 45), 0x72),
    "XD without NXE": (leaf(FIRST | 1 << 63), 0x72),
    "misaligned large page": (leaf(FIRST, 0x60_2000, level=2), 0x72),
    "large page at level 4": (leaf(FIRST, 0, level=4), 0x72),
    "read only": (leaf(PRESENT | USER), 0x85),
    "read-only table": (leaf(FIRST, table_flags=PRESENT | USER), 0x85),
    "first table outside": (pasid(1 | 1 << 6, DID | 1 << 23, FAR), 0x73),
    "table outside": (table_outside(FIRST), 0x70),
    "interrupt window": (leaf(FIRST, 0xFEE0_0000), 0x87),
}


@BOTH
@pytest.mark.parametrize("case", FIRST_REASONS)
def test_first_stage_reasons(case, many):
    change, reason = FIRST_REASONS[case]
    rig = FirstRig()
    change(rig)
    assert rig.why(IO, write=True, many=many) == reason


def test_first_stage_pages_may_forbid_execution_where_nxe_is_set():
    rig = FirstRig(third=1 << 5)
    rig.map(IO, 0x40_0000, FIRST | 1 << 63)
    assert rig.reach(IO) == 0x40_0000


def test_first_stage_1g_needs_its_capability():
    rig = FirstRig(fs1gp=False)
    rig.map(IO & -(1 << 30), 0, level=3)
    assert rig.why(IO) == 0x72


@BOTH
def test_accessed_and_dirty_bits(many):
    rig = FirstRig()
    reach = rig.reach_many if many else rig.reach
    read, written = rig.map(IO, 0x40_0000), rig.map(IO + 0x1000, 0x40_1000)
    reach(IO)
    reach(IO + 0x1000, write=True)
    assert rig.memory.word(read) & (ACCESSED | DIRTY) == ACCESSED
    assert rig.memory.word(written) & (ACCESSED | DIRTY) == ACCESSED | DIRTY
    assert all(rig.memory.word(TOP + 8 * (IO >> 39 & 511)) & bit for bit in (ACCESSED, PRESENT))
    # The translation is kept by now, but a first write has to set the bit.
    reach(IO, write=True)
    assert rig.memory.word(read) & DIRTY


@BOTH
def test_bits_cannot_be_set_by_a_walk_that_does_not_snoop(many):
    rig = FirstRig(second=DID)
    rig.map(IO, 0x40_0000, table_flags=FIRST | ACCESSED)
    assert rig.why(IO, many=many) == 0x90
    rig.map(IO, 0x40_0000, FIRST | ACCESSED, table_flags=FIRST | ACCESSED)
    assert rig.why(IO, many=many) is None
