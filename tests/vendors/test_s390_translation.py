"""The s390 hardware model's translation: tables written by hand, and what is kept of them until RPCIT."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iommukit.hw.platform import UNMAPPED
from iommukit_s390.model.unit import State
from tests.vendors.s390 import (
    FRAME,
    INVALID,
    PAGE_INVALID,
    POOL,
    PROTECT,
    REGION_FIRST,
    REGION_SECOND,
    REGION_THIRD,
    ROOT,
    SDMA,
    SEGMENT,
    Program,
)

IO = 0x1_2345_6000
TOPS = {REGION_THIRD: 2, REGION_SECOND: 3, REGION_FIRST: 4}
QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def started(*, shadow=False, iota=REGION_THIRD, **hardware):
    program = Program(tlb_refresh=shadow, dtsm=0xF0, **hardware).enabled()
    program.root()
    return program.register(ROOT | iota, limit=(1 << 57) - 1)


def reach(program, iova, *, write=False):
    """What a request reaches, or its event code; the function is unblocked again."""
    found = program.model.translate(1, iova, write=write)
    event = program.event()
    program.modify(7)
    return found if found is not None else -event[0]


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iota", "iova"), [(REGION_THIRD, IO), (REGION_SECOND, 0x15_2345_6789_A000), (REGION_FIRST, (1 << 57) - 0x3000)]
)
def test_every_depth_of_tables(iota, iova):
    program = started(iota=iota)
    program.map(iova, 0x123_4000, top=TOPS[iota])
    assert reach(program, iova + 0xABC) == 0x123_4ABC
    assert reach(program, iova + 0x1000) == reach(program, iova - 1) == -4


def test_a_segment_table_alone():
    program = Program(tlb_refresh=False, dtsm=0x80, start_dma=0).enabled()
    program.memory.write(ROOT, INVALID.to_bytes(8, "big") * 2048)
    program.register(ROOT | SEGMENT, base=0)
    program.map(0x7FFF_F000, 0x10_0000, top=1)
    assert reach(program, 0x7FFF_F123) == 0x10_0123


def test_a_frame_of_one_mebibyte():
    program = started()
    program.map(0x1_8010_0000, 0x80_0000, FRAME, level=1)
    assert reach(program, 0x1_8010_0000 + 0x34567, write=True) == 0x83_4567
    assert reach(program, 0x1_8020_0000) == -4


@pytest.mark.parametrize("level", [0, 1, 2])
def test_protection_at_any_level(level):
    program = started()
    program.map(IO, 0x40_0000)
    slot = program.slot(IO, level)
    program.put(slot, program.get(slot) | PROTECT)
    assert reach(program, IO) == 0x40_0000
    assert reach(program, IO, write=True) == -4


@pytest.mark.parametrize(("level", "bit"), [(0, PAGE_INVALID), (1, INVALID), (2, INVALID)])
def test_the_invalid_bit_of_each_level(level, bit):
    program = started()
    program.map(IO, 0x40_0000)
    slot = program.slot(IO, level)
    program.put(slot, program.get(slot) | bit)
    assert reach(program, IO) == -4


def test_the_invalid_bits_of_other_levels_mean_other_things():
    program = started()
    program.map(IO, 0x40_0000, INVALID)
    assert reach(program, IO) == 0x40_0000


@pytest.mark.parametrize(
    ("level", "change", "code"),
    [
        (2, lambda entry: 0, 7),
        (1, lambda entry: 0, 7),
        (2, lambda entry: entry & ~0xC, 9),
        (1, lambda entry: entry | 0x4, 9),
        (2, lambda entry: entry & ~3, 8),
        (2, lambda entry: entry | 0x80, 8),
        (2, lambda entry: 1 << 40 | 0x7, 7),
        (1, lambda entry: 1 << 40, 7),
    ],
    ids=["region zero", "segment zero", "region type", "segment type", "length", "offset", "no segment table", "no page table"],
)
def test_entries_that_cannot_be(level, change, code):
    # The segment's index is 0x234: in the second quarter of its table.
    alone, under, many = started(), started(shadow=True), started()
    for program in (alone, under, many):
        program.map(IO, 0x40_0000)
        slot = program.slot(IO, level)
        program.put(slot, change(program.get(slot)))
    assert reach(alone, IO) == -code
    assert (under.refresh(IO), under.event()[::3]) == ((1, 8), (code, IO))
    assert many.model.translate_many(1, np.array([IO] * 3, dtype=np.uint64), write=False).tolist() == [int(UNMAPPED)] * 3
    assert many.event()[0] == code


@pytest.mark.parametrize("quarter", range(4))
def test_offset_and_length_count_quarters_of_the_next_table(quarter):
    program = started()
    iova = SDMA + (quarter << 29)
    program.map(iova, 0x40_0000)
    slot = program.slot(iova, 2)
    entry = program.get(slot) & ~0xC3
    for offset in range(4):
        for length in range(4):
            program.refresh(iova)
            program.put(slot, entry | offset << 6 | length)
            assert reach(program, iova) == (0x40_0000 if offset <= quarter <= length else -8)


def test_a_page_table_entry_of_zeros_is_the_first_frame():
    program = started()
    program.map(IO, 0)
    assert reach(program, IO + 4) == 4


def test_relaxed_translation_begins_at_the_first_dma_address():
    program = Program(rtr=True).enabled().register(0)
    assert reach(program, SDMA + 0x1234, write=True) == 0x1234
    assert program.model.translate_many(1, np.array([SDMA, SDMA + 0x5008], dtype=np.uint64), write=True).tolist() == [0, 0x5008]


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_under_a_hypervisor_nothing_changes_before_rpcit():
    program = started(shadow=True)
    program.map(IO, 0x40_0000)
    assert reach(program, IO) == -4
    assert program.refresh(IO) == (0, 0)
    assert reach(program, IO) == 0x40_0000
    program.map(IO, 0x50_0000)
    assert reach(program, IO) == 0x40_0000
    program.map(IO, 0x50_0000, PAGE_INVALID)
    assert reach(program, IO) == 0x40_0000
    program.refresh(IO)
    assert reach(program, IO) == -4


def test_a_partition_sees_new_entries_at_once_and_keeps_old_ones():
    program = started()
    program.map(IO, 0x40_0000, PAGE_INVALID)
    assert reach(program, IO) == -4
    program.map(IO, 0x40_0000)
    assert reach(program, IO) == 0x40_0000
    program.map(IO, 0x40_0000, PAGE_INVALID)
    assert reach(program, IO) == 0x40_0000
    program.refresh(IO + 0x1000)
    assert reach(program, IO) == 0x40_0000
    program.refresh(IO)
    assert reach(program, IO) == -4


def test_a_partition_keeps_segment_table_entries_too():
    program = started()
    program.map(IO, 0x40_0000)
    program.map(IO + 0x1000, 0x41_0000)
    assert reach(program, IO) == 0x40_0000
    other = program.table(256, PAGE_INVALID)
    program.put(other + 8 * (IO + 0x1000 >> 12 & 255), 0x60_0000)
    program.put(program.slot(IO, 1), other)
    assert reach(program, IO + 0x1000) == 0x41_0000
    program.refresh(IO + 0x1000)
    assert reach(program, IO + 0x1000) == 0x60_0000


@pytest.mark.parametrize("shadow", [False, True])
def test_registering_again_forgets_everything(shadow):
    program = started(shadow=shadow)
    program.map(IO, 0x40_0000)
    program.refresh(IO)
    assert reach(program, IO) == 0x40_0000
    program.put(program.slot(IO), PAGE_INVALID)
    program.modify(6, iota=ROOT | REGION_THIRD)
    assert reach(program, IO) == -4


def test_rpcit_reaches_one_function():
    program = Program("a", "b").enabled()
    program.root()
    for model in program.models:
        program.modify(4, iota=ROOT | REGION_THIRD, handle=model.handle)
    program.map(IO, 0x40_0000)
    program.refresh(IO)
    assert [model.translate(model.facts.fid, IO, write=False) for model in program.models] == [0x40_0000, None]


def test_a_hypervisor_may_run_out_of_room():
    program = Program()
    program.model.shadow_limit = 20
    program.enabled().root()
    program.register()
    for page in range(40):
        program.map(SDMA + page * 0x1000, 0x40_0000 + page * 0x1000)
    assert program.refresh(SDMA, 18 * 0x1000) == (0, 0)
    assert program.refresh(SDMA + 18 * 0x1000, 4 * 0x1000) == (1, 16)
    assert reach(program, SDMA + 19 * 0x1000) == 0x40_0000 + 19 * 0x1000
    assert reach(program, SDMA + 20 * 0x1000) == -4
    assert program.model.state is State.ENABLED
    for page in range(10):
        program.put(program.slot(SDMA + page * 0x1000), PAGE_INVALID)
    # All of it: what has become invalid makes room, and then there is too little again.
    assert program.refresh(SDMA, 30 * 0x1000) == (0, 0)
    assert program.refresh(SDMA, 40 * 0x1000) == (1, 16)


# ---- at random -------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        0x40_0000,
        0x41_0000 | PROTECT,
        0x42_0000 | PAGE_INVALID,
        0x43_0000 | INVALID,
        PAGE_INVALID,
        0,
        INVALID,
        POOL,
        POOL + 0x4000 | 0x4,
        POOL + 0x8000 | 0x7,
        POOL + 0xC000 | 0x47,
        POOL + 0x4000 | 0xB,
        POOL | PROTECT | 0x7,
        POOL + 0x800 | PROTECT,
        0x10_0000 | FRAME,
        1 << 44,
    ]
)
"""Entries that mean something at one level or another."""
PLACES = st.integers(0, 7)
PICKS = st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 0x1FF, 0x200, 0x234]), st.sampled_from([0, 1, 255]))


@QUICK
@given(
    st.lists(st.tuples(PLACES, st.sampled_from([0, 1, 2, 255, 0x1FF, 0x200, 0x234]), WORDS), max_size=30),
    st.lists(PICKS, min_size=1, max_size=20),
    st.booleans(),
)
def test_one_many_and_shadowed_requests_read_the_same(writes, picks, write):
    """The three ways in which the model reads tables agree on anything that may lie in memory."""

    def fresh(shadow):
        program = Program(tlb_refresh=shadow, start_dma=0, size=1 << 24).enabled()
        program.memory.write(ROOT, (POOL | 0x7).to_bytes(8, "big") * 2048)
        for place in range(8):
            program.memory.write(POOL + place * 0x4000, (POOL + 0x1_0000 + place * 0x800).to_bytes(8, "big") * 2048)
        program.memory.write(POOL + 0x1_0000, b"".join((0x50_0000 + n * 0x1000).to_bytes(8, "big") for n in range(0x2000)))
        for place, index, word in writes:
            program.put(ROOT + 8 * index if place == 7 else POOL + place * 0x4000 + 8 * index, word)
        return program.register(base=0, limit=(1 << 42) - 1)

    iovas = [third << 31 | segment << 20 | page << 12 | 8 for third, segment, page in picks]
    one = fresh(False)
    answers = []
    for iova in iovas:
        answers.append(reach(one, iova, write=write))
        one.refresh(0, 1 << 42)
    many = fresh(False)
    found = many.model.translate_many(1, np.array(iovas, dtype=np.uint64), write=write).tolist()
    assert found == [int(UNMAPPED) if answer < 0 else answer for answer in answers]
    first = next((n for n, answer in enumerate(answers) if answer < 0), None)
    assert (many.event() or (0,))[0] == (0 if first is None else -answers[first])
    for iova, answer in zip(iovas, answers, strict=True):
        shadowed = fresh(True)
        for size in (0x1000, 0x10_0000):
            cc, _ = shadowed.refresh(iova & -size, size)
            if size == 0x1000 or not cc:
                assert (cc == 1) is (answer in (-7, -8, -9))
            if cc:
                break
        if not cc:
            assert reach(shadowed, iova, write=write) == answer


PAGES = 600
STEPS = st.lists(
    st.tuples(st.sampled_from(["map", "unmap", "refresh"]), st.integers(0, PAGES - 1), st.integers(1, 300)), min_size=1, max_size=25
)


@QUICK
@given(STEPS)
def test_a_shadow_is_what_was_there_at_the_last_rpcit(steps):
    """Ranges of any size and place, against two dictionaries."""
    program = started(shadow=True)
    base = 0x1_7FF0_0000 - 0x3000
    table, shadow = {}, {}
    for number, (what, start, count) in enumerate(steps):
        for page in range(start, min(start + count, PAGES)):
            if what == "refresh":
                shadow.pop(page, None)
                if page in table:
                    shadow[page] = table[page]
            elif what == "map":
                table[page] = 0x100_0000 + (page * 7 + number) % 4096 * 0x1000
                program.map(base + page * 0x1000, table[page])
            elif page in table:
                del table[page]
                program.put(program.slot(base + page * 0x1000), PAGE_INVALID)
        if what == "refresh":
            assert program.refresh(base + start * 0x1000, min(count, PAGES - start) * 0x1000) == (0, 0)
    iovas = np.arange(PAGES, dtype=np.uint64) * np.uint64(0x1000) + np.uint64(base)
    found = program.model.translate_many(1, iovas, write=True)
    assert found.tolist() == [shadow.get(page, int(UNMAPPED)) for page in range(PAGES)]
    assert program.model.registration.translation.pages == len(shadow)


def test_a_wide_rpcit_stops_at_the_lowest_wrong_entry():
    """The address in the event is the first at which translation fails, and lies in the range."""
    program = started(shadow=True)
    base = 0x1_8000_0000
    for segment in range(4):
        program.map(base + (segment << 20), 0x100_0000)
    program.map(base + (1 << 31), 0x100_0000)
    outside = program.bus.memory.end
    for address, level, entry, code in (
        (base + (1 << 31), 2, 0x10_0000 | 8, 9),  # another type of table, beyond the others
        (base + (3 << 20), 1, 8, 9),
        (base + (2 << 20), 1, outside, 7),  # a page table without memory
    ):
        program.put(program.slot(address, level), entry)
        wide = program.refresh(base, (1 << 31) + (1 << 20))
        assert (wide, program.event()[::3]) == ((1, 8), (code, address))
        program.modify(7)
    within = base + (2 << 20) + 0x3000
    assert program.refresh(within, 17 << 12) == (1, 8)
    assert program.event()[::3] == (7, within)
