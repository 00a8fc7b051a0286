"""The hardware model's walks, by descriptors written by hand (DDI 0487 D8), and what it keeps of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.hw.platform import UNMAPPED
from tests.vendors.arm_smmu_hardware import ASID, BASE, CONTEXT, NOT_GLOBAL, PAGE, SID, VMID, Bench

F_WALK_EABT, F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION = 0x0B, 0x10, 0x11, 0x12, 0x13
FRAME = BASE + 0x2000_0000
P, BLOCK = PAGE | NOT_GLOBAL, PAGE & ~2 | NOT_GLOBAL
S2P = 0x7C3 | 0xF << 2
"""A page at stage 2: valid, page, S2AP read and write, SH, AF, write-back."""


def types(bench):
    return [event[0] for event in bench.events()]


# ---- shapes ----------------------------------------------------------------------------------------------------------

SHAPES = [
    # granule, TG0, bits, level, size of the page or block
    (12, 0, 39, 3, 1 << 12),
    (12, 0, 39, 2, 1 << 21),
    (12, 0, 39, 1, 1 << 30),
    (12, 0, 48, 3, 1 << 12),
    (12, 0, 48, 1, 1 << 30),
    (12, 0, 25, 3, 1 << 12),
    (14, 2, 47, 3, 1 << 14),
    (14, 2, 48, 3, 1 << 14),
    (14, 2, 36, 2, 1 << 25),
    (16, 1, 42, 3, 1 << 16),
    (16, 1, 48, 3, 1 << 16),
    (16, 1, 48, 2, 1 << 29),
]


@pytest.mark.parametrize(("granule", "tg", "bits", "level", "size"), SHAPES)
def test_pages_and_blocks(granule, tg, bits, level, size):
    bench = Bench()
    root = bench.stage_1(tsz=64 - bits, granule=tg)
    address = ((1 << bits) - 1) & -size  # the last one
    frame = -(-FRAME // size) * size
    bench.map(root, bits, address, frame | (P if level == 3 else BLOCK), granule=granule, level=level)
    assert bench.read(address) == frame
    assert bench.write(address + size - 1) == frame + size - 1
    assert bench.many(address + 8, address + size - 8) == [frame + 8, frame + size - 8]
    assert bench.events() == []
    assert bench.read(address - 1) is None
    assert bench.read(address + size) is None
    assert bench.many(address - 8, (address + size) & (1 << 64) - 1) == [int(UNMAPPED)] * 2
    assert set(types(bench)) == {F_TRANSLATION}


@pytest.mark.parametrize(
    ("granule", "tg", "bits", "level"),
    [(12, 0, 48, 0), (14, 2, 47, 1), (16, 1, 48, 1)],
)
def test_levels_without_blocks(granule, tg, bits, level):
    bench = Bench()
    root = bench.stage_1(tsz=64 - bits, granule=tg)
    bench.map(root, bits, 0, FRAME & -(1 << 42) | BLOCK, granule=granule, level=level)
    assert bench.read(0) is None
    assert bench.many(0) == [int(UNMAPPED)]
    assert types(bench) == [F_TRANSLATION] * 2


def test_52_bits():
    """Bits 51 to 48 of an output address stand in bits 15 to 12 (64 KiB granules), and level 1 has blocks of 4 TiB."""
    bench = Bench(output=52, large=True)
    root = bench.room(0x1_0000)
    bench.cd(root, tsz=12, granule=1, flip=4 << 32 ^ 6 << 32)
    bench.ste(0b1011 | CONTEXT)
    bench.map(root, 52, 0xF_0000_0000_0000, 0x0000_0000_0000 | 0xA000 | P, granule=16)
    bench.map(root, 52, 1 << 42, 0x5000 | BLOCK, granule=16, level=1)
    assert bench.read(0xF_0000_0000_1234) == 0xA_0000_0000_1234
    assert bench.many(0xF_0000_0000_1234) == [0xA_0000_0000_1234]
    assert bench.read((1 << 42) + 0x123_4567_89AB) == (5 << 48) + 0x123_4567_89AB


def test_upper_addresses():
    bench = Bench()
    lower, upper = bench.room(0x1000), bench.room(0x1000)
    bench.cd(lower, ttb1=upper)
    bench.ste(0b1011 | CONTEXT)
    bench.map(lower, 39, 0x1000, FRAME | P)
    bench.map(upper, 39, 0x12_3456_7000, FRAME + 0x1000 | P)
    high = (1 << 64) - (1 << 39) + 0x12_3456_7000
    assert (bench.read(0x1008), bench.read(high + 8)) == (FRAME + 8, FRAME + 0x1008)
    bench.forget()
    assert bench.many(high, 0x1000, high + 0x1000, 1 << 40) == [FRAME + 0x1000, FRAME, int(UNMAPPED), int(UNMAPPED)]
    assert types(bench) == [F_TRANSLATION] * 2


# ---- descriptors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "reads", "writes", "event"),
    [
        (P, True, True, None),
        (P & ~1, False, False, F_TRANSLATION),
        (P & ~2, False, False, F_TRANSLATION),  # reserved at level 3
        (P & ~0x400, False, False, F_ACCESS),
        (P | 0x80, True, False, F_PERMISSION),  # AP[2]
        (P & ~0x40, False, False, F_PERMISSION),  # AP[1]: for privileged accesses alone
        (P & ~0x40 | 0x80, False, False, F_PERMISSION),
        (P | 1 << 54 | 1 << 53, True, True, None),  # never executed
        (P | 1 << 45, False, False, F_ADDR_SIZE),
    ],
)
def test_the_bits_of_a_page(entry, reads, writes, event):
    bench = Bench()
    root = bench.stage_1()
    bench.map(root, 39, 0x5000, FRAME | entry)
    assert ((bench.read(0x5000) == FRAME), (bench.write(0x5000) == FRAME)) == (reads, writes)
    bench.forget()
    assert [bench.many(0x5000, write=write)[0] == FRAME for write in (False, True)] == [reads, writes]
    assert set(types(bench)) == ({event} if event else set())


@pytest.mark.parametrize(("table", "reads", "writes"), [(0, True, True), (1 << 62, True, False), (1 << 61, False, False)])
@pytest.mark.parametrize("ignored", [False, True])
def test_tables_restrict_what_is_below(table, reads, writes, ignored):
    """APTable, unless CD.HAD0 says that it is ignored."""
    bench = Bench()
    root = bench.room(0x1000)
    bench.cd(root | (2 if ignored else 0))
    bench.ste(0b1011 | CONTEXT)
    bench.map(root, 39, 0x4000_0000, FRAME | P, table=table)
    expected = (reads or ignored, writes or ignored)
    assert ((bench.read(0x4000_0000) == FRAME), (bench.write(0x4000_0000) == FRAME)) == expected
    bench.forget()
    assert tuple(bench.many(0x4000_0000, write=write)[0] == FRAME for write in (False, True)) == expected


def test_affd_spares_the_access_flag():
    bench = Bench()
    root = bench.stage_1(flip=1 << 35)
    bench.map(root, 39, 0, FRAME | P & ~0x400)
    assert bench.read(0) == FRAME


def test_a_table_outside_memory():
    bench = Bench()
    root = bench.stage_1()
    bench.words(root, BASE - 0x1000 | 3)
    assert bench.read(0x2000) is None
    words = bench.memory.table(bench.unit.events.base & ~0x1F, 4).tolist()
    assert (words[0] & 0xFF, words[2], words[3]) == (F_WALK_EABT, 0x2000, BASE - 0x1000)
    assert words[1] >> 40 & 3 == 0b01, "CLASS: a stage 1 table"
    assert bench.many(0x2000) == [int(UNMAPPED)]


def test_an_event_in_full():
    bench = Bench()
    bench.stage_1()
    assert bench.read(0x12_3456_789A) is None
    assert bench.write(0x12_3456_789A) is None
    for at, read in ((0, 1), (1, 0)):
        words = bench.memory.table((bench.unit.events.base & ~0x1F) + 32 * at, 4).tolist()
        assert words == [F_TRANSLATION | SID << 32, read << 35 | 2 << 40, 0x12_3456_789A, 0]


# ---- stage 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "reads", "writes"), [(0b00, False, False), (0b01, True, False), (0b10, False, True), (0b11, True, True)]
)
def test_rights_at_stage_2(access, reads, writes):
    bench = Bench(stages=(2,))
    root = bench.stage_2()
    bench.map(root, 39, 0x7000, FRAME | S2P & ~0xC0 | access << 6)
    assert ((bench.read(0x7000) == FRAME), (bench.write(0x7000) == FRAME)) == (reads, writes)
    bench.forget()
    assert [bench.many(0x7000, write=write)[0] == FRAME for write in (False, True)] == [reads, writes]
    seen = bench.memory.table(bench.unit.events.base & ~0x1F, 4).tolist()
    if access != 0b11:
        assert (seen[0] & 0xFF, seen[1] >> 39 & 1, seen[3]) == (F_PERMISSION, 1, 0x7000)


def test_concatenated_tables():
    """43 bits from level 1: sixteen tables side by side instead of a level 0."""
    bench = Bench(stages=(2,))
    root = bench.stage_2(t0sz=21, sl0=1)
    address = (1 << 43) - 0x1000
    bench.map(root, 43, address, FRAME | S2P, widen=1)
    assert bench.read(address) == FRAME
    assert bench.memory.word(root + 8 * (16 * 512 - 1)) & 3 == 3


def nested():
    bench = Bench(stages=(1, 2))
    second = bench.stage_2(config=0b111)

    def ipa(physical):
        """Everything that the hardware reads lies elsewhere in intermediate addresses."""
        return physical - BASE + 0x10_0000_0000

    first = bench.room(0x1000)
    tables = [bench.room(0x1000) for _ in range(2)]
    bench.words(first, ipa(tables[0]) | 3)
    bench.words(tables[0], ipa(tables[1]) | 3)
    bench.words(tables[1] + 8 * 5, ipa(FRAME) | P)
    for physical in (CONTEXT, first, *tables, FRAME):
        bench.map(second, 39, ipa(physical) & ~0xFFF, physical & ~0xFFF | S2P)
    word = 25 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | ASID << 48
    bench.words(CONTEXT, word, ipa(first))
    at = 0x4000_0000 + 0x10_0000 + 64 * SID
    bench.words(at, bench.memory.word(at) & ~((1 << 52) - 64) | ipa(CONTEXT))
    return bench, second, tables[1], ipa


def test_both_stages():
    bench, second, leaves, ipa = nested()
    assert bench.read(0x5678) == FRAME + 0x678
    bench.forget()
    assert bench.many(0x5678, 0x6000) == [FRAME + 0x678, int(UNMAPPED)]
    assert types(bench) == [F_TRANSLATION]
    bench.words(leaves + 8 * 7, ipa(FRAME + 0x1000) | P)
    assert bench.write(0x7000) is None
    words = bench.memory.table((bench.unit.events.base & ~0x1F) + 32, 4).tolist()
    assert (words[0] & 0xFF, words[1] >> 39 & 1, words[2]) == (F_TRANSLATION, 1, 0x7000)
    bench.map(second, 39, ipa(FRAME), FRAME | S2P & ~0x80)
    bench.forget()
    assert bench.read(0x5000) == FRAME
    assert bench.write(0x5000) is None
    assert bench.many(0x5000, write=True) == [int(UNMAPPED)]


# ---- what is kept ----------------------------------------------------------------------------------------------------

RANGE_4 = (0x12 | 3 << 12 | ASID << 48, 0x8000 | 1 | 3 << 8 | 1 << 10)
"""Four pages from 0x8000 under the ASID: NUM 3, TG 4K, TTL 3, Leaf."""


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ((0x12 | ASID << 48, 0x9000 | 1), True),
        ((0x12 | ASID + 1 << 48, 0x9000 | 1), False),
        ((0x12 | ASID << 48, 0xA000 | 1), False),
        ((0x13, 0x9000 | 1), True),  # every ASID
        ((0x11 | ASID << 48, 0), True),
        ((0x11 | ASID + 1 << 48, 0), False),
        ((0x10, 0), True),
        ((0x30, 0), True),
        ((0x12 | ASID << 48 | 7 << 32, 0x9000 | 1), False),  # another VMID
        ((0x03 | SID << 32, 1), False),
        (RANGE_4, True),
        ((RANGE_4[0], RANGE_4[1] - 0x4000), False),  # the four before
        ((RANGE_4[0], RANGE_4[1] ^ 1 << 8), False),  # TTL 2
        ((RANGE_4[0] & ~(3 << 12) | 2 << 20, RANGE_4[1]), True),  # NUM 0, SCALE 2
    ],
)
def test_what_invalidates_a_page(command, gone):
    bench = Bench(stages=(1, 2))
    root = bench.stage_1()
    where = bench.map(root, 39, 0x9000, FRAME | P)
    assert bench.read(0x9000) == FRAME
    bench.words(where, 0)
    assert bench.read(0x9000) == FRAME, "kept"
    assert bench.many(0x9000) == [FRAME]
    bench.command(command)
    assert bench.read(0x9000) == (None if gone else FRAME)


def test_a_table_outside_memory_is_told_though_faults_are_not():
    """CD.R is about faults of translation; an external abort is none (5.4, 7.3.12)."""
    bench = Bench()
    root = bench.stage_1(flip=1 << 45)
    bench.map(root, 39, 0x2000, BASE - 0x1000 | 3, level=2)
    assert bench.read(0x2000) is None
    assert [event[0] for event in bench.events()] == [F_WALK_EABT]
    assert bench.many(0x4000_0000, 0x2000) == [UNMAPPED] * 2
    assert [event[0] for event in bench.events()] == [F_WALK_EABT]


def test_without_stage_2_a_command_has_no_vmid():
    """Its bits are ignored then (4.4.1)."""
    bench = Bench()
    root = bench.stage_1()
    for command in ((0x10, 0), (0x11 | ASID << 48, 0), (0x12 | ASID << 48, 0x9001), (0x13, 0x9001)):
        where = bench.map(root, 39, 0x9000, FRAME | P)
        assert bench.read(0x9000) == FRAME
        bench.words(where, 0)
        bench.command((command[0] | 7 << 32, command[1]))
        assert bench.read(0x9000) is None


def test_a_block_goes_by_any_address_in_it():
    bench = Bench()
    root = bench.stage_1()
    where = bench.map(root, 39, 0x20_0000, FRAME | BLOCK, level=2)
    assert bench.read(0x3F_F000) == FRAME + 0x1F_F000
    bench.words(where, 0)
    bench.command((0x12 | ASID << 48, 0x32_1000 | 1))
    assert bench.read(0x3F_F000) is None


def test_tables_are_kept_too():
    """Leaf: only the last level; without it the tables on the way as well (4.4.1)."""
    bench = Bench()
    root = bench.stage_1()
    bench.map(root, 39, 0x9000, FRAME | P)
    assert bench.read(0x9000) == FRAME
    other = bench.room(0x1000)
    bench.words(other + 8 * 9, FRAME + 0x1000 | P)
    bench.map(root, 39, 0x9000, other | 3, level=2)
    bench.command((0x12 | ASID << 48, 0x9000 | 1))
    assert bench.read(0x9000) == FRAME, "still through the old table"
    bench.command((0x12 | ASID << 48, 0x9000))
    assert bench.read(0x9000) == FRAME + 0x1000


def test_global_pages_belong_to_every_asid():
    bench = Bench()
    root = bench.stage_1()
    where = bench.map(root, 39, 0x9000, FRAME | PAGE)
    assert bench.many(0x9000, 0xA000)[0] == FRAME
    bench.words(where, 0)
    bench.cd(root, asid=6)
    bench.command((0x05 | SID << 32, 1), (0x11 | ASID << 48, 0))
    assert bench.read(0x9000) == FRAME, "under another ASID, and not gone with its own"
    bench.command((0x12 | 77 << 48, 0x9000 | 1))
    assert bench.read(0x9000) is None


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ((0x2A | VMID << 32, 0x9000 | 1), True),  # S2_IPA
        ((0x2A | VMID + 1 << 32, 0x9000 | 1), False),
        ((0x2A | VMID << 32, 0x8000 | 1), False),
        ((0x28 | VMID << 32, 0), True),  # S12_VMALL
        ((0x28 | VMID + 1 << 32, 0), False),
        ((0x30, 0), True),
    ],
)
def test_what_invalidates_a_page_of_stage_2(command, gone):
    bench = Bench(stages=(2,))
    root = bench.stage_2()
    where = bench.map(root, 39, 0x9000, FRAME | S2P)
    assert bench.read(0x9000) == FRAME
    bench.words(where, 0)
    bench.command(command)
    assert bench.read(0x9000) == (None if gone else FRAME)


def test_what_both_stages_made_survives_stage_2_alone():
    bench, second, _, ipa = nested()
    assert bench.read(0x5000) == FRAME
    bench.map(second, 39, ipa(FRAME), 0)
    bench.command((0x2A | VMID << 32, ipa(FRAME) | 1))
    assert bench.read(0x5000) == FRAME
    bench.command((0x10 | VMID << 32, 0))
    assert bench.read(0x5000) is None


# ---- many at once ----------------------------------------------------------------------------------------------------

ENTRIES = st.sampled_from([0, P, P | 0x80, P & ~0x40, P & ~0x400, P & ~2, P | 1 << 45, BLOCK])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 11), ENTRIES, max_size=8),
    st.dictionaries(st.integers(1, 3), ENTRIES, max_size=2),
    st.lists(st.integers(0, 0x80_0000 // 0x400), min_size=1, max_size=80),
    st.booleans(),
)
def test_many_are_translated_like_one_by_one(pages, blocks, wanted, write):
    answers = []
    addresses = [0x400 * number for number in wanted]
    for many in (False, True):
        bench = Bench(size=1 << 26)
        root = bench.stage_1()
        for number, entry in pages.items():
            bench.map(root, 39, 0x1000 * number, BASE + 0x100_0000 + 0x3000 * number | entry)
        for number, entry in blocks.items():
            bench.map(root, 39, 0x20_0000 * number, BASE + 0x100_0000 | entry, level=2)
        if many:
            found = bench.unit.translate_many(SID, np.array(addresses, dtype=np.uint64), write=write)
            answers.append([None if physical == UNMAPPED else int(physical) for physical in found])
        else:
            answers.append([bench.unit.translate(SID, address, write=write) for address in addresses])
        answers.append(bench.events())
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]
