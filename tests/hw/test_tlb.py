"""The TLB against a list of entries that is searched from end to end."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.hw.tlb import FEW, LAST, Tlb

TAGS: list[Hashable] = [(1, None), (2, None), (1, 7)]
SHIFTS = (12, 16, 21)


class Naive:
    """What the TLB stands for: entries in the order in which they were inserted last."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: list[tuple[Hashable, int, int, int, int]] = []

    def insert(self, tag: Hashable, iova: int, shift: int, physical: int, permissions: int) -> None:
        page = iova >> shift
        self.entries = [entry for entry in self.entries if entry[:3] != (tag, shift, page)]
        self.entries.append((tag, shift, page, physical >> shift << shift, permissions))
        self.entries = self.entries[-self.capacity :]

    def lookup(self, tag: Hashable, iova: int) -> tuple[int, int] | None:
        found = [entry for entry in self.entries if entry[0] == tag and entry[2] == iova >> entry[1]]
        if not found:
            return None
        _, shift, _, physical, permissions = min(found, key=lambda entry: entry[1])
        return physical + (iova & (1 << shift) - 1), permissions

    def invalidate(self, tags: list[Hashable], first: int, last: int) -> int:
        before = len(self.entries)
        self.entries = [
            entry
            for entry in self.entries
            if entry[0] not in tags or entry[2] << entry[1] > last or (entry[2] + 1 << entry[1]) <= first
        ]
        return before - len(self.entries)


IOVAS = st.integers(0, 40).map(lambda page: page * 0x1800)
INSERT = st.tuples(
    st.just("insert"), st.sampled_from(TAGS), IOVAS, st.sampled_from(SHIFTS), st.integers(0, 1 << 20), st.integers(0, 255)
)
MANY = st.tuples(
    st.just("many"),
    st.sampled_from(TAGS),
    st.sampled_from(SHIFTS),
    st.lists(st.tuples(IOVAS, st.integers(0, 1 << 20)), max_size=40),
)
INVALIDATE = st.tuples(
    st.just("invalidate"), st.lists(st.sampled_from(TAGS)), IOVAS, st.one_of(st.integers(1, 1 << 16), st.just(LAST))
)


@settings(deadline=None, max_examples=80)
@given(steps=st.lists(st.one_of(INSERT, MANY, INVALIDATE), max_size=40), capacity=st.integers(1, 30))
def test_like_a_list(steps: list[tuple[str, object]], capacity: int) -> None:
    tlb, naive = Tlb(capacity), Naive(capacity)
    everywhere = np.arange(0, 45 * 0x1800, 0xC00, dtype=np.uint64)
    for step in steps:
        match step:
            case ("insert", tag, iova, shift, frame, permissions):
                for one in (tlb, naive):
                    one.insert(tag, iova, shift, (frame << 21) + (iova & (1 << shift) - 1), permissions)
            case ("many", tag, shift, pages):
                iovas = np.array([iova for iova, _ in pages], dtype=np.uint64)
                physical = np.array([(frame << 21) + (iova & (1 << shift) - 1) for iova, frame in pages], dtype=np.uint64)
                allowed = np.arange(len(pages), dtype=np.uint8)
                tlb.insert_many(tag, shift, iovas, physical, allowed)
                for iova, to, permissions in zip(iovas.tolist(), physical.tolist(), allowed.tolist(), strict=True):
                    naive.insert(tag, iova, shift, to, permissions)
            case ("invalidate", tags, first, size):
                last = min(LAST, first + size - 1)
                by_function = tlb.invalidate(lambda tag, tags=tags: tag in tags, first, last)
                assert by_function == naive.invalidate(tags, first, last)
        assert len(tlb) == len(naive.entries)
        for tag in TAGS:
            hits, physical, permissions = tlb.lookup_many(tag, everywhere)
            expected = [naive.lookup(tag, iova) for iova in everywhere.tolist()]
            found = zip(hits.tolist(), physical.tolist(), permissions.tolist(), strict=True)
            assert [(to, allowed) if hit else None for hit, to, allowed in found] == expected
            assert [tlb.lookup(tag, iova) for iova in everywhere[::7].tolist()] == expected[::7]


@pytest.mark.parametrize("count", [FEW - 1, FEW, 1000])
def test_stale_entries_answer_for_all_of_a_batch(count: int) -> None:
    tlb = Tlb()
    tlb.insert("domain", 0x5000, 12, 0xABC000, 3)
    iovas = np.arange(count, dtype=np.uint64) * np.uint64(0x1000) + np.uint64(8)
    hits, physical, permissions = tlb.lookup_many("domain", iovas)
    assert np.flatnonzero(hits).tolist() == [5]
    assert (int(physical[5]), int(permissions[5])) == (0xABC008, 3)


def test_a_batch_larger_than_the_tlb_leaves_its_last_pages() -> None:
    tlb = Tlb(capacity=4)
    iovas = np.array([1, 2, 3, 4, 5, 6, 5, 5, 2, 5], dtype=np.uint64) << np.uint64(12)
    tlb.insert_many("domain", 12, iovas, iovas, np.full(10, 3, dtype=np.uint8))
    assert [page for page in range(8) if tlb.lookup("domain", page << 12)] == [2, 4, 5, 6]


def test_an_entry_of_one_tag_and_all_of_it() -> None:
    tlb = Tlb()
    for tag in ("a", "b"):
        tlb.insert(tag, 0x20_0000, 21, 0x4000_0000, 1)
        tlb.insert(tag, 0x5000, 12, 0x6000, 1)
    assert tlb.invalidate("a", 0x30_0000, 0x30_0FFF) == 1
    assert tlb.lookup("a", 0x20_0000) is None
    assert tlb.lookup("a", 0x5000) == (0x6000, 1)
    assert tlb.lookup("b", 0x3F_FFFF) == (0x401F_FFFF, 1)
    assert tlb.invalidate("b") == 2
    assert tlb.invalidate("c") == 0
    tlb.clear()
    assert (len(tlb), tlb.lookup("a", 0x5000)) == (0, None)


def test_invalidating_one_page_does_not_look_at_the_others() -> None:
    """The work is counted in comparisons of keys: an entry's page number is asked for once a size."""
    tlb = Tlb(capacity=1 << 16)
    iovas = np.arange(1 << 16, dtype=np.uint64) << np.uint64(12)
    tlb.insert_many("domain", 12, iovas, iovas, np.ones(1 << 16, dtype=np.uint8))

    class Counting(dict[int, tuple[int, int]]):
        asked = 0

        def __contains__(self, page: object) -> bool:
            Counting.asked += 1
            return super().__contains__(page)

        def __iter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("all entries are gone through")

    tlb._tags["domain"][12] = Counting(tlb._tags["domain"][12])
    assert tlb.invalidate("domain", 0x5000, 0x5FFF) == 1
    assert Counting.asked == 1
