"""The hardware model's reading of stream table entries and context descriptors, by bits written by hand (IHI 0070 5)."""

from __future__ import annotations

import pytest

from tests.vendors.arm_smmu_hardware import BASE, CONTEXT, NOT_GLOBAL, PAGE, SID, TABLE, Bench

C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE, C_BAD_SUBSTREAMID, F_CD_FETCH, C_BAD_CD = 2, 3, 4, 8, 9, 0xA
F_TRANSLATION, F_ADDR_SIZE = 0x10, 0x11
FRAME = BASE + 0x80_0000


def types(bench):
    return [event[0] for event in bench.events()]


@pytest.mark.parametrize(
    ("words", "reaches", "events"),
    [
        ((0b0000,), False, [C_BAD_STE]),  # V 0
        ((0b0001,), False, []),  # abort: silent
        ((0b0111,), False, []),  # 0b0xx is abort too
        ((0b1001,), True, []),  # bypass
        ((0b1101, 0, 0, 0), False, [C_BAD_STE]),  # stage 2 is not there
        ((0b1111,), False, [C_BAD_STE]),  # nor nested
        ((0b1011 | CONTEXT | 1 << 59,), False, [C_BAD_STE]),  # S1CDMax 1 without substreams
        ((0b1011 | CONTEXT, 1 << 27), False, [C_BAD_STE]),  # S1STALLD without stalling
        ((0b1011 | 1 << 50,), False, [F_CD_FETCH]),  # beyond 44 bits
        ((0b1011 | BASE - 0x1000,), False, [F_CD_FETCH]),  # no memory
        ((0b1011 | CONTEXT,), False, [C_BAD_CD]),  # a context descriptor of zeroes
    ],
)
def test_a_stream_table_entry(words, reaches, events):
    bench = Bench()
    bench.ste(*words)
    assert (bench.write(FRAME) == FRAME) is reaches
    assert types(bench) == events


@pytest.mark.parametrize(
    ("bit", "name"),
    [(31, "V"), (41, "AA64"), (46, "A"), (44, "S"), (43, "HA"), (42, "HD"), (15, "ENDI")],
)
def test_one_wrong_bit_spoils_a_context_descriptor(bit, name):
    bench = Bench()
    root = bench.stage_1()
    bench.map(root, 39, 0x1000, FRAME | PAGE)
    assert bench.read(0x1234) == FRAME + 0x234, name
    bench.cd(root, flip=1 << bit)
    bench.forget()
    assert bench.read(0x1234) is None
    assert types(bench) == [C_BAD_CD]


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({"tsz": 16}, True),
        ({"tsz": 15}, False),  # 49 bits
        ({"tsz": 39}, True),
        ({"tsz": 40}, False),  # 24 bits
        ({"granule": 3}, False),  # reserved
        ({"granule": 2}, False),  # 16 KiB, which this one has not
        ({"root": 1 << 44}, False),  # beyond IPS
    ],
)
def test_sizes_of_a_context_descriptor(fields, good):
    bench = Bench(granules=(12, 16))
    bench.stage_1(**fields)
    assert bench.read(0) is None
    assert types(bench) == [F_TRANSLATION if good else C_BAD_CD]


def test_silence_where_a_context_descriptor_asks_for_it():
    bench = Bench()
    bench.stage_1(flip=1 << 45)
    assert bench.read(0) is None
    assert bench.many(0, 0x1000) == [(1 << 64) - 1] * 2
    assert bench.events() == []


def test_substreams_are_not_there():
    bench = Bench()
    bench.stage_1()
    assert bench.unit.translate(SID, 0, write=False, pasid=3) is None
    words = bench.memory.table(bench.unit.events.base & ~0x1F, 1).tolist()
    assert words[0] == C_BAD_SUBSTREAMID | 1 << 11 | 3 << 12 | SID << 32


def test_bypass_lets_no_address_through_that_does_not_fit():
    bench = Bench()
    bench.ste(0b1001)
    assert bench.read(1 << 43) == 1 << 43
    assert bench.read(1 << 44) is None
    assert bench.many(0x1000, 1 << 44) == [0x1000, (1 << 64) - 1]
    assert types(bench) == [F_ADDR_SIZE, F_ADDR_SIZE]


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_linear_table_ends():
    bench = Bench()
    bench.ste(0b1001, sid=255)
    assert bench.read(FRAME, sid=255) == FRAME
    assert bench.read(FRAME, sid=256) is None
    assert bench.events() == [(C_BAD_STREAMID, 256, 0, False)]


def test_unknown_streams_are_told_only_if_asked_for():
    bench = Bench()
    bench.set(0x20, 0)
    bench.set(0x2C, 0)  # CR2.RECINVSID
    bench.set(0x20, 0b1101)
    assert bench.read(FRAME, sid=999) is None
    assert bench.events() == []


def test_two_levels():
    """A span of n means 2^(n-1) entries (5.1)."""
    bench = Bench(two_level=True)
    second = bench.room(0x4000)
    bench.words(second + 64 * 24, 0b1001)
    bench.words(second + 64 * 15, 0b1001)
    assert bench.read(FRAME) is None
    assert types(bench) == [C_BAD_STREAMID]
    bench.words(TABLE, second | 5)
    assert bench.read(FRAME, sid=15) == FRAME
    assert bench.read(FRAME, sid=24) is None
    assert types(bench) == [C_BAD_STREAMID]
    bench.words(TABLE, second | 6)
    assert bench.read(FRAME, sid=24) is None, "the first-level descriptor is kept"
    bench.command((0x03 | 24 << 32, 0))  # CFGI_STE without Leaf
    assert bench.read(FRAME, sid=24) == FRAME
    bench.words(TABLE + 8, second | 10)  # more than the split
    assert bench.read(FRAME, sid=256 + 24) is None


@pytest.mark.parametrize(("split", "bits"), [(6, 6), (8, 8), (10, 10), (4, 6), (7, 6), (31, 6)])
def test_a_reserved_split_is_six(split, bits):
    """STRTAB_BASE_CFG.SPLIT (6.3.25)."""
    bench = Bench()
    bench.set(0x20, 0)
    bench.set(0x88, 1 << 16 | split << 6 | 16)
    bench.set(0x20, 0b1101)
    second = bench.room(0x1_0000)
    bench.words(TABLE + 8, second | 7)
    bench.words(second, 0b1001)
    assert bench.read(FRAME, sid=1 << bits) == FRAME


@pytest.mark.parametrize(("output", "large", "root"), [(44, False, 0x20), (48, False, 0x20), (52, True, 0x40)])
def test_a_small_table_is_aligned_to_its_size(output, large, root):
    """Four entries lie at a multiple of 32 bytes; at one of 64 where addresses have 52 bits (DDI 0487 D8.2.5)."""
    granule = 16 if large else 12
    bench = Bench(output=output, large=large)
    table = bench.room(0x1_0000)
    bits = granule + (granule - 3) * 2 + 2 if large else 32
    bench.cd(table + root, tsz=64 - bits, granule=1 if large else 0, flip=(4 ^ 6) << 32)
    bench.ste(0b1011 | CONTEXT)
    bench.map(table + root, bits, 0x1000, FRAME | PAGE, granule=granule)
    assert bench.read(0x1000) == FRAME + (0x1000 if large else 0)


def test_an_entry_outside_memory():
    bench = Bench(two_level=True)
    bench.words(TABLE, BASE - 0x10000 | 9)
    assert bench.read(FRAME) is None
    words = bench.memory.table(bench.unit.events.base & ~0x1F, 4).tolist()
    assert (words[0] & 0xFF, words[3]) == (F_STE_FETCH, BASE - 0x10000 + 64 * SID)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_entries_are_kept_until_the_command():
    bench = Bench()
    bench.ste(0b1001)
    assert bench.read(FRAME) == FRAME
    bench.ste(0b0001)
    assert bench.read(FRAME) == FRAME
    bench.command((0x03 | (SID + 1) << 32, 1))
    assert bench.read(FRAME) == FRAME
    bench.command((0x03 | SID << 32, 1))
    assert bench.read(FRAME) is None


def test_an_invalid_entry_is_kept_as_well():
    bench = Bench()
    assert bench.read(FRAME) is None
    bench.ste(0b1001)
    assert bench.read(FRAME) is None
    bench.command((0x03 | SID << 32, 1))
    assert bench.read(FRAME) == FRAME


@pytest.mark.parametrize(
    ("command", "forgets"),
    [
        ((0x05 | SID << 32, 1), True),  # CFGI_CD
        ((0x05 | SID + 8 << 32, 1), False),
        ((0x06 | SID << 32, 0), True),  # CFGI_CD_ALL
        ((0x03 | SID << 32, 1), True),  # CFGI_STE
        ((0x04 | SID << 32, 2), True),  # eight entries from 24
        ((0x04 | SID - 1 << 32, 2), False),  # eight entries from 16
        ((0x04, 31), True),  # CFGI_ALL
        ((0x30, 0), False),  # TLBI_NSNH_ALL
    ],
)
def test_what_makes_a_context_descriptor_be_read_again(command, forgets):
    bench = Bench()
    root = bench.stage_1()
    bench.map(root, 39, 0x1000, FRAME | PAGE | NOT_GLOBAL)
    assert bench.read(0x1000) == FRAME
    other = bench.room(0x1000)
    bench.map(other, 39, 0x1000, FRAME + 0x1000 | PAGE | NOT_GLOBAL)
    bench.cd(other, asid=6)
    bench.command(command)
    assert bench.read(0x1000) == (FRAME + 0x1000 if forgets else FRAME)


# ---- stage 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        ({}, True),
        ({"t0sz": 20, "sl0": 2}, True),  # 44 bits from level 0
        ({"t0sz": 20, "sl0": 1}, False),  # 32 tables side by side
        ({"t0sz": 21, "sl0": 1}, True),  # sixteen
        ({"t0sz": 19, "sl0": 2}, False),  # wider than the output
        ({"sl0": 3}, False),  # a level above the first
        ({"tg": 3}, False),
        ({"flip": 1 << 51}, False),  # S2AA64
        ({"flip": 1 << 52}, False),  # S2ENDI
        ({"flip": 1 << 57}, False),  # S2S
        ({"flip": 1 << 55}, False),  # S2HD
        ({"root": 1 << 45}, False),
    ],
)
def test_fields_of_stage_2(fields, good):
    bench = Bench(stages=(2,))
    bench.stage_2(**fields)
    assert bench.read(0x1000) is None
    assert types(bench) == [F_TRANSLATION if good else C_BAD_STE]


def test_stage_1_is_refused_where_there_is_only_stage_2():
    bench = Bench(stages=(2,))
    bench.stage_1()
    assert bench.read(0) is None
    assert types(bench) == [C_BAD_STE]
