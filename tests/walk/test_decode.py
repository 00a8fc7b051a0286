"""Tables are decoded as they are, whole or for one address, and merged into ranges; hostile ones end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.hw.decode import pages
from iommukit.hw.walk import Leaf
from iommukit.report.walk import Range, merge
from tests.walk.toy import BAD, READ, ROOT, SIZE_SHIFT, TOY, WRITE, Ram

SMALL = 0x1000
RIGHTS = st.sampled_from([READ, WRITE, READ | WRITE])
# Few pages beside each other, near the ends of tables, so that ranges form and cross tables.
PAGES = st.dictionaries(
    st.integers(0, 7).map(lambda page: (0x3F_FFFC + page) << 12), st.tuples(st.integers(1, 9), RIGHTS), max_size=8
)


def mapped(leaves: Iterable[Leaf | Range]) -> dict[int, tuple[int, int]]:
    """Page by page: physical address and rights."""
    found = {}
    for leaf in leaves:
        assert not leaf.reason
        for offset in range(0, leaf.size, SMALL):
            assert leaf.iova + offset not in found
            found[leaf.iova + offset] = (leaf.physical + offset, READ * leaf.read | WRITE * leaf.write)
    return found


@settings(deadline=None)
@given(PAGES)
def test_a_map_is_decoded_whole_and_address_by_address(wanted: dict[int, tuple[int, int]]) -> None:
    ram = Ram()
    ram.tables[ROOT] = [0] * 512
    for iova, (page, rights) in wanted.items():
        ram.put(iova, page << 12, flags=rights)
    expected = {iova: (page << 12, rights) for iova, (page, rights) in wanted.items()}
    leaves = list(pages(ram, TOY, ROOT, 3))
    assert mapped(leaves) == expected
    assert [leaf.iova for leaf in leaves] == sorted(leaf.iova for leaf in leaves)
    for leaf in leaves:
        assert [ram.word(step.address) for step in leaf.path] == [step.value for step in leaf.path]
        assert [step.name for step in leaf.path] == ["E3", "E2", "E1"]
    for page in range(0x3F_FFF8, 0x40_0008):
        (leaf,) = pages(ram, TOY, ROOT, 3, iova=(page << 12) + 5)
        if page << 12 in expected:
            assert mapped([leaf]) == {page << 12: expected[page << 12]}
        else:
            assert leaf.reason == "not present"


@settings(deadline=None)
@given(PAGES)
def test_ranges_are_as_long_as_can_be(wanted: dict[int, tuple[int, int]]) -> None:
    ram = Ram()
    ram.tables[ROOT] = [0] * 512
    for iova, (page, rights) in wanted.items():
        ram.put(iova, page << 12, flags=rights)
    ranges = list(merge(pages(ram, TOY, ROOT, 3)))
    assert mapped(ranges) == {iova: (page << 12, rights) for iova, (page, rights) in wanted.items()}
    for before, after in pairwise(ranges):
        joined = (
            before.iova + before.size == after.iova
            and before.physical + before.size == after.physical
            and (before.read, before.write) == (after.read, after.write)
        )
        assert not joined
    assert all(each.pages == {SMALL: each.size // SMALL} for each in ranges)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=12))
def test_merging_keeps_every_page_and_joins_nothing_else(steps: list[tuple[int, bool, bool, bool, bool]]) -> None:
    leaves = []
    iova = physical = 0
    for length, gap, jump, read, write in steps:
        iova += SMALL * gap
        physical += SMALL * (jump + gap)
        leaves.append(Leaf(iova, physical, SMALL * length, read, write, page=SMALL))
        iova, physical = iova + SMALL * length, physical + SMALL * length
    ranges = list(merge(leaves))
    assert mapped(ranges) == mapped(leaves)
    assert list(merge([Leaf(r.iova, r.physical, r.size, r.read, r.write, page=SMALL) for r in ranges])) == ranges


def test_pages_of_several_sizes_are_one_range() -> None:
    ram = Ram()
    ram.put(0x20_0000, 0x8000_0000, level=2)
    ram.put(0x40_0000, 0x8020_0000)
    ram.put(0x40_1000, 0x8020_1000)
    (found,) = merge(pages(ram, TOY, ROOT, 3))
    assert (found.iova, found.physical, found.size) == (0x20_0000, 0x8000_0000, 0x20_2000)
    assert found.pages == {0x20_0000: 1, 0x1000: 2}
    assert [step.name for step in found.path] == ["E3", "E2"]


def test_a_page_that_fills_several_entries_is_one_page() -> None:
    """16 equal entries make a page of 64 KiB, as AMD-Vi's next level 7 does."""
    ram = Ram()
    for entry in range(32):
        ram.put(0x10_0000 + entry * 0x1000, 0x9000_0000 + (entry // 16 << 16), flags=READ | 4 << SIZE_SHIFT)
    (found,) = merge(pages(ram, TOY, ROOT, 3))
    assert (found.physical, found.size, found.pages) == (0x9000_0000, 0x2_0000, {0x1_0000: 2})
    (leaf,) = pages(ram, TOY, ROOT, 3, iova=0x10_5678)
    assert (leaf.iova, leaf.physical, leaf.size) == (0x10_0000, 0x9000_0000, 0x1_0000)


def test_rights_of_a_table_hold_for_what_is_below() -> None:
    ram = Ram()
    ram.put(0, 0x5000)
    ram.tables[ROOT][0] &= ~WRITE
    (leaf,) = pages(ram, TOY, ROOT, 3)
    assert (leaf.read, leaf.write) == (True, False)


def test_bad_entries_and_holes_are_said_and_passed_over() -> None:
    ram = Ram()
    ram.put(0, 0x5000)
    ram.put(0x1000, 0x6000, flags=READ | BAD)
    ram.put(0x2000, 0x7000)
    ram.tables[ROOT][1] = 0xDEAD_0000 | READ
    ram.put(2 << 30, 0x8000)
    found = list(merge(pages(ram, TOY, ROOT, 3)))
    assert [(each.iova, each.reason) for each in found] == [
        (0, ""),
        (0x1000, "reserved bits are set"),
        (0x2000, ""),
        (1 << 30, "no memory at 0xdead0000"),
        (2 << 30, ""),
    ]
    assert found[3].size == 1 << 30
    (leaf,) = pages(ram, TOY, ROOT, 3, iova=(1 << 30) + 0x1234)
    assert leaf.reason == "no memory at 0xdead0000"
    assert leaf.path[-1].value == 0xDEAD_0000 | READ
    (leaf,) = pages(ram, TOY, ROOT, 3, iova=1 << 39)
    assert "is beyond the table" in leaf.reason


@pytest.mark.parametrize("whole", [True, False])
def test_a_table_is_read_only_when_it_is_come_to(whole: bool) -> None:
    """A table that names itself in every entry is 512 x 512 tables; asking for one leaf reads three."""
    ram = Ram()
    ram.tables[ROOT] = [ROOT | READ | WRITE] * 512
    leaf = next(iter(pages(ram, TOY, ROOT, 3, iova=None if whole else 0x1000)))
    assert ram.reads == 3
    assert leaf.physical == ROOT


def test_a_scattered_map_has_a_leaf_for_each_page() -> None:
    ram = Ram()
    for page in range(2048):
        ram.put(page << 12, (page * 7919 % 4096) << 12)
    assert Counter(leaf.size for leaf in pages(ram, TOY, ROOT, 3)) == {SMALL: 2048}
