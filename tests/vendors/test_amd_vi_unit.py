"""The IOMMU as hardware, bit by bit: registers, device table, host tables (AMD 48882, 2.2 and 3.4)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.hw.platform import UNMAPPED
from iommukit_amd_vi.units import Iommu

from .amd_vi_hardware import (
    CONTROL,
    DOMAIN,
    EFR,
    EVENT_LOG_EN,
    EXBASE,
    EXLIMIT,
    FC,
    IOMMU_EN,
    IR,
    IW,
    ON,
    PR,
    RW,
    SID,
    STATUS,
    TABLE,
    TV,
    Hand,
    V,
    tables,
)

PAGE_FAULT, ILLEGAL_ENTRY = 2, 1
F_PR, F_RW, F_PE, F_RZ = 0x010, 0x020, 0x040, 0x080


@pytest.fixture
def hand():
    return Hand()


# ---- registers -------------------------------------------------------------------------------------------------------


def test_off_lets_everything_through():
    hand = Hand(control=0)
    assert hand.read(0x12345678) == 0x12345678
    assert hand.get(STATUS) == 0


def test_registers_in_halves(hand):
    assert hand.get(EFR) == 0x29D3
    assert (hand.get(EFR, 4), hand.get(EFR + 4, 4)) == (0x29D3, 0)
    hand.put(0, 0x1234_5000 | 3, 4)
    hand.put(4, 0x7, 4)
    assert hand.get(0) == 0x7_1234_5003
    hand.put(EFR, 0)
    assert hand.get(EFR) == 0x29D3, "the features are read-only"


def test_status_tells_what_runs(hand):
    assert hand.get(STATUS) == 1 << 3 | 1 << 4
    hand.put(CONTROL, ON & ~EVENT_LOG_EN)
    assert hand.get(STATUS) == 1 << 4


def test_nothing_runs_in_an_iommu_that_is_off(hand):
    """MMIO Offset 0018h: the rings run while their own bit and IommuEn are both set."""
    hand.put(CONTROL, ON & ~1)
    assert hand.get(STATUS) == 0
    hand.put(CONTROL, ON)
    assert hand.get(STATUS) == 1 << 3 | 1 << 4


# ---- device table ----------------------------------------------------------------------------------------------------


def test_an_entry_without_v_passes(hand):
    hand.entry(RW | 3 << 9, 0)
    assert (hand.read(0x5000), hand.write(0x5000)) == (0x5000, 0x5000)
    assert hand.events() == []


def test_v_without_tv_stops(hand):
    hand.entry(V | RW, 0)
    assert hand.read(0x5000) is None
    assert hand.events() == [(PAGE_FAULT, SID, 0, 0, 0x5000)]


@pytest.mark.parametrize(
    ("allow", "read", "write"), [(RW, 0x5000, 0x5000), (IR, 0x5000, None), (IW, None, 0x5000), (0, None, None)]
)
def test_mode_0_is_governed_by_ir_and_iw(hand, allow, read, write):
    hand.entry(V | TV | allow, DOMAIN)
    assert (hand.read(0x5000), hand.write(0x5000)) == (read, write)


@pytest.mark.parametrize("bit", [2, 3, 4, 5, 6, 7, 8, 63])
def test_reserved_bits_of_an_entry(hand, bit):
    root = hand.page()
    tables(hand, root, 3, 0x5000, 0x9000 | RW | PR)
    hand.entry(root | 3 << 9 | V | TV | RW | 1 << bit, DOMAIN)
    assert hand.write(0x5000) is None
    assert hand.events() == [(ILLEGAL_ENTRY, SID, F_RW | F_RZ, 0, 0x5000)]


@pytest.mark.parametrize(
    ("hats", "mode", "legal"), [(0, 4, True), (0, 5, False), (1, 5, True), (1, 6, False), (2, 6, True), (2, 7, False)]
)
def test_hats_limits_the_mode(hats, mode, legal):
    hand = Hand(Iommu(0, 0, 2, efr=0x29D3 & ~(3 << 10) | hats << 10))
    root = hand.page()
    tables(hand, root, min(mode, 6), 0x5000, 0x9000 | RW | PR)
    hand.host(root, mode)
    assert hand.read(0x5000) == (0x9000 if legal else None)


def test_an_id_beyond_the_table(hand):
    hand.put(0, TABLE | 0)  # one page: 128 entries
    hand.entry(V | TV | RW, DOMAIN, device=127)
    hand.entry(V | TV | RW, DOMAIN, device=128)
    assert hand.read(0x5000, device=127) == 0x5000
    assert hand.read(0x5000, device=128) is None
    assert [event[:2] for event in hand.events()] == [(ILLEGAL_ENTRY, 128)]


def test_a_table_outside_memory(hand):
    hand.put(0, 1 << 45 | 511)
    assert hand.read(0x5000) is None
    assert hand.events()[0][0] == 3


def test_entries_are_cached_until_invalidated(hand):
    hand.entry(V | TV, 0)
    assert hand.read(0x5000) is None
    hand.entry(V | TV | RW, DOMAIN)
    assert hand.read(0x5000) is None
    hand.command(2 << 60 | SID + 8)
    assert hand.read(0x5000) is None, "another device's entry was invalidated"
    hand.command(2 << 60 | SID)
    assert hand.read(0x5000) == 0x5000


# ---- host tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", range(1, 7))
def test_all_modes(hand, levels):
    root, iova = hand.page(), 0xFEDC_BA98_7654_3000 & (1 << min(64, 12 + 9 * levels)) - 1
    tables(hand, root, levels, iova, 0x9000 | RW | PR | FC)
    hand.host(root, levels)
    assert hand.read(iova + 0x123) == 0x9123
    assert hand.read(iova ^ 0x1000) is None
    if levels < 6:
        assert hand.read(iova | 1 << 12 + 9 * levels) is None, "beyond what the mode translates"


@pytest.mark.parametrize(("level", "shift"), [(1, 12), (2, 21), (3, 30), (4, 39), (5, 48)])
def test_the_levels_own_page_sizes(hand, level, shift):
    root, size = hand.page(), 1 << shift
    iova, physical = 3 << shift, 0
    tables(hand, root, 6, iova, physical | RW | PR, level=level)
    hand.host(root, 6)
    for offset in (0, 0x123, size - 1):
        assert hand.read(iova + offset) == offset
    assert (hand.read(iova - 1), hand.read(iova + size)) == (None, None)


@pytest.mark.parametrize("shift", [shift for shift in range(13, 48) if (shift - 12) % 9])
def test_sizes_coded_in_the_address(hand, shift):
    """Next level 7: the lowest zero of the address is at bit shift - 1."""
    level = (shift - 12) // 9 + 1
    size, own = 1 << shift, 3 + 9 * level
    root, iova, physical = hand.page(), 5 << shift, 7 << shift
    value = physical | (size >> 1) - 0x1000 | 7 << 9 | RW | PR
    for slot in range(size >> own):
        tables(hand, root, 6, iova + (slot << own), value, level=level)
    hand.host(root, 6)
    for offset in (0, 0x123, size // 2, size - 1):
        assert hand.read(iova + offset) == physical + offset
        hand.command(3 << 60 | DOMAIN << 32, 0x7FFF_FFFF_FFFF_F000 | 3)
    assert (hand.read(iova - 1), hand.read(iova + size)) == (None, None)


@pytest.mark.parametrize("code", [0x001FF000, 0x003FF000, 0x0], ids=["too large", "next level's", "too small at level 2"])
def test_a_size_that_its_level_cannot_have(hand, code):
    root, level = hand.page(), 2 if code == 0 else 1
    tables(hand, root, 3, 0, 0x40000000 | code | 7 << 9 | RW | PR, level=level)
    hand.host(root, 3)
    assert hand.read(0x123) is None
    assert hand.events() == [(PAGE_FAULT, SID, F_PR, DOMAIN, 0x123)]


def test_levels_may_be_skipped(hand):
    root, leaves = hand.page(), hand.page()
    hand.memory.set_word(root + 3 * 8, leaves | 1 << 9 | RW | PR)
    hand.memory.set_word(leaves + 5 * 8, 0x9000 | RW | PR)
    hand.host(root, 3)
    assert hand.read(3 << 30 | 5 << 12) == 0x9000
    assert hand.read(3 << 30 | 1 << 21 | 5 << 12) is None, "the skipped index must be zero"
    assert [event[2] for event in hand.events()] == [0]


@pytest.mark.parametrize("below", [2, 3, 6])
def test_a_next_level_that_is_not_lower(hand, below):
    root, other = hand.page(), hand.page()
    hand.memory.set_word(root, other | 1 << 9 | RW | PR)
    hand.memory.set_word(other, hand.page() | below << 9 | RW | PR)
    hand.host(root, 2)
    assert hand.read(0) is None
    assert hand.events() == [(PAGE_FAULT, SID, F_PR, DOMAIN, 0)]


@pytest.mark.parametrize("bit", range(52, 59))
@pytest.mark.parametrize("level", [1, 2])
def test_reserved_bits_of_tables(hand, bit, level):
    root = hand.page()
    tables(hand, root, 2, 0, 0x9000 | RW | PR)
    address = root if level == 2 else hand.memory.word(root) & 0xF_FFFF_FFFF_F000
    hand.memory.set_word(address, hand.memory.word(address) | 1 << bit)
    hand.host(root, 2)
    assert hand.write(0) is None
    assert hand.events() == [(PAGE_FAULT, SID, F_PR | F_RW | F_RZ, DOMAIN, 0)]


def test_ignored_bits_of_tables(hand):
    root = hand.page()
    tables(hand, root, 2, 0, 0x9000 | RW | PR | FC | 0x1FE | 1 << 59 | 1 << 63, directory=PR | RW | 0x1FE)
    hand.host(root, 2)
    assert hand.read(0) == 0x9000


@pytest.mark.parametrize("where", ["device", "directory", "leaf"])
@pytest.mark.parametrize(("allow", "read", "write"), [(IR, True, False), (IW, False, True), (0, False, False)])
def test_permissions_of_all_levels_count(hand, where, allow, read, write):
    root = hand.page()
    given_at = {"device": RW, "directory": RW, "leaf": RW, where: allow}
    tables(hand, root, 3, 0x5000, 0x9000 | given_at["leaf"] | PR, directory=PR | given_at["directory"])
    hand.host(root, 3, allow=given_at["device"])
    assert (hand.read(0x5000) is not None, hand.write(0x5000) is not None) == (read, write)
    expected = [] if read else [(PAGE_FAULT, SID, F_PR | F_PE, DOMAIN, 0x5000)]
    expected += [] if write else [(PAGE_FAULT, SID, F_PR | F_PE | F_RW, DOMAIN, 0x5000)]
    assert hand.events() == expected


def test_a_table_of_tables_outside_memory(hand):
    root = hand.page()
    hand.memory.set_word(root, 1 << 45 | 1 << 9 | RW | PR)
    hand.host(root, 2)
    assert hand.read(0) is None
    assert hand.events() == [(4, SID, 0, DOMAIN, 0)]


# ---- windows and the exclusion range ---------------------------------------------------------------------------------


@pytest.mark.parametrize("iova", [0xFEE00000, 0xFEEFFFFF, 0xFD_0000_0000, 0xFF_FFFF_FFFF])
def test_windows_reach_no_memory_and_are_no_fault(hand, iova):
    root = hand.page()
    tables(hand, root, 6, iova, 0x9000 | RW | PR)
    hand.host(root, 6)
    assert hand.write(iova) is None
    assert hand.events() == []


def test_the_hypertransport_range_can_be_ordinary():
    hand = Hand(Iommu(0, 0, 2, efr2=1 << 11))
    root = hand.page()
    tables(hand, root, 6, 0xFD_0000_0000, 0x9000 | RW | PR)
    hand.host(root, 6)
    assert hand.read(0xFD_0000_0000) == 0x9000
    assert hand.read(0xFEE00000) is None


@pytest.mark.parametrize(
    ("base", "word1", "excluded"), [(1, 1 << 39, True), (1, 0, False), (3, 0, True), (0, 1 << 39, False), (2, 0, False)]
)
def test_exclusion_range(hand, base, word1, excluded):
    """ExEn and Allow of the base register, EX of the entry."""
    root = hand.page()
    hand.entry(root | 3 << 9 | V | TV | RW, DOMAIN | word1)
    hand.put(EXBASE, 0x200000 | base)
    hand.put(EXLIMIT, 0x201000)
    for iova, inside in ((0x1FFFFF, False), (0x200000, True), (0x201FFF, True), (0x202000, False)):
        assert hand.write(iova) == (iova if excluded and inside else None)


# ---- many at once ----------------------------------------------------------------------------------------------------


def _assorted(hand):
    """Tables with everything in them; returns addresses to try."""
    root = hand.page()
    put = lambda iova, value, level=1: tables(hand, root, 4, iova, value, level=level)  # noqa: E731
    put(0x5000, 0x9000 | RW | PR)
    put(0x6000, 0xA000 | IR | PR)
    put(0x7000, 0xB000 | IW | PR)
    put(0x8000, 0xC000 | RW | PR | 1 << 53)
    put(0x9000, 0xD000 | RW)
    for slot in range(16):
        put(0x10000 + slot * 0x1000, 0x700000 | 0x7000 | 7 << 9 | RW | PR)
    put(0x20000, 0x700000 | 0xFF000 | 7 << 9 | RW | PR)
    put(0x400000, 0x800000 | RW | PR, level=2)
    put(0x40000000, 0x40000000 | RW | PR, level=3)
    put(0x80000000, hand.page() | 1 << 9 | RW | PR, level=3)
    put(0x80200000, 0x9000 | 3 << 9 | RW | PR, level=2)
    put(0x1_0000_0000, 1 << 45 | 2 << 9 | RW | PR, level=3)
    put(0xFEE00000, 0xE000 | RW | PR)
    hand.host(root, 4)
    pages = [0x4000, *range(0x5000, 0x30000, 0x1000), 0x400000, 0x5FF000, 0x600000, 0x40000000, 0x7FFFF000, 0x80000000]
    return [*pages, 0x80200000, 0x1_0000_0000, 0xFEE00000, 1 << 47, 1 << 48, 1 << 60, 0x3000]


@pytest.mark.parametrize("np_cache", [False, True])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_many_at_once_are_what_they_are_one_by_one(np_cache, data):
    one, many = Hand(Iommu(0, 0, 2, np_cache=np_cache)), Hand(Iommu(0, 0, 2, np_cache=np_cache))
    pages = _assorted(one)
    assert _assorted(many) == pages
    for _ in range(3):
        asked = data.draw(st.lists(st.sampled_from(pages), min_size=1, max_size=80))
        write = data.draw(st.booleans())
        wanted = [one.model.translate(SID, iova + 0x18, write=write) for iova in asked]
        found = many.model.translate_many(SID, np.array(asked, np.uint64) + np.uint64(0x18), write=write)
        assert [None if reached == UNMAPPED else int(reached) for reached in found] == wanted
        assert sorted(one.events()) == sorted(many.events())


def test_many_at_once_when_it_is_off_or_passes():
    iovas = np.arange(0, 0x100000, 0x1000, dtype=np.uint64)
    assert (Hand(control=0).model.translate_many(SID, iovas, write=True) == iovas).all()
    hand = Hand()
    assert (hand.model.translate_many(SID, iovas, write=True) == iovas).all()
    hand.entry(V | TV | IR, DOMAIN, device=0x20)
    assert (hand.model.translate_many(0x20, iovas, write=False) == iovas).all()
    assert (hand.model.translate_many(0x20, iovas, write=True) == UNMAPPED).all()
    hand.put(CONTROL, ON & ~IOMMU_EN)
    assert (hand.model.translate_many(0x20, iovas, write=True) == iovas).all()
