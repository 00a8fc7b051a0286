"""Page tables against a plain list of pages, for every toy format and every way to treat larger pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Format
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED
from iommukit.hw.radix import PageTable, Partial

from .formats import FORMATS, Big, Sized

_memory = PhysicalMemory(1 << 30)
"""One for all runs: each gives back all that it took."""


def page_sizes(format: Format) -> list[int]:
    """The sizes that the format maps and that leave room in the tables for several."""
    if isinstance(format, Sized):
        return [1 << size for size in (12, 13, 16, 20, 21, 22, 25, 30)]
    if isinstance(format, Big):
        return [1 << 12, 1 << 20]
    return [1 << level.shift for level in format.levels]


class Pages:
    """What a page table stands for: pages by their first address."""

    def __init__(self, format: Format) -> None:
        self.format = format
        self.sizes = page_sizes(format)
        self.pages: dict[int, tuple[int, int]] = {}

    def at(self, iova: int) -> int | None:
        for size in self.sizes:
            start = iova & -size
            if self.pages.get(start, (0, 0))[0] == size:
                return start
        return None

    def overlaps(self, start: int, end: int) -> bool:
        return self.at(start) is not None or any(start <= page < end for page in self.pages)

    def map(self, iova: int, paddr: int, pgsize: int, count: int) -> None:
        for number in range(count):
            self.pages[iova + number * pgsize] = (pgsize, paddr + number * pgsize)

    def unmap(self, iova: int, end: int, partial: Partial) -> int:
        total = 0
        while iova < end:
            start = self.at(iova)
            if start is None:
                break
            size, paddr = self.pages[start]
            if start < iova or start + size > end:
                if partial is Partial.REFUSE or (partial is Partial.WHOLE_FROM_START and start < iova):
                    break
                if partial is Partial.SPLIT:
                    smaller = self.sizes[self.sizes.index(size) - 1]
                    del self.pages[start]
                    self.map(start, paddr, smaller, size // smaller)
                    continue
            del self.pages[start]
            total += size
            iova = start + size
        return total

    def lookup(self, iova: int) -> int | None:
        start = self.at(iova)
        return None if start is None else self.pages[start][1] + iova - start


def contents(table: PageTable) -> dict[int, bytes]:
    """All tables that can be reached, by address."""
    format, found = table.format, {}
    todo = [(table.top, table.root)]
    while todo:
        level, address = todo.pop()
        size = format.levels[level].size
        found[address] = table.memory.read(address, size)
        if level:
            read = table.memory.big_table if format.big_endian else table.memory.table
            entries = read(address, size // 8)
            for entry in entries[format.present(entries, level)].tolist():
                if not format.is_leaf(entry, level):
                    todo.append((level - 1, format.address(entry, level)))
    return found


class Machine(RuleBasedStateMachine):
    """Random maps and unmaps around the borders of tables."""

    format: Format
    partial: Partial

    @initialize(release=st.booleans())
    def start(self, release: bool) -> None:
        _memory.pages.limit = None
        self.before = _memory.pages.outstanding
        self.table = PageTable(self.format, _memory)
        self.model = Pages(self.format)
        self.release = release
        self.freed: list[tuple[int, int]] = []

    def teardown(self) -> None:
        if hasattr(self, "table"):
            for address, size in self.freed:
                _memory.pages.free(address, size)
            self.table.free()
            assert self.table.bytes == 0
            assert _memory.pages.outstanding == self.before

    def _range(self, data: st.DataObject) -> tuple[int, int, int]:
        """An address, a page size and a count: few pages, or about a table or two of them, near a border."""
        pgsize = data.draw(st.sampled_from(self.model.sizes))
        leaves = self.format.levels[0]
        border = (
            data.draw(st.sampled_from([level.shift for level in self.format.levels])) if data.draw(st.booleans()) else leaves.shift
        )
        iova = (data.draw(st.integers(0, 3)) << border) + data.draw(st.integers(-3, 3)) * pgsize
        per_table = 1 << self.format.levels[self.format.leaf_level(pgsize)[0]].bits
        count = data.draw(st.one_of(st.integers(1, 5), st.integers(per_table - 3, per_table + 3), st.just(2 * per_table)))
        return max(0, iova) & -pgsize, pgsize, count

    @rule(data=st.data(), frame=st.integers(0, 1 << 20), shortage=st.one_of(st.none(), st.integers(0, 3)))
    def map(self, data: st.DataObject, frame: int, shortage: int | None) -> None:
        iova, pgsize, count = self._range(data)
        paddr = frame * pgsize % (1 << 46)
        end = iova + pgsize * count
        before, used, taken = contents(self.table), self.table.bytes, _memory.pages.outstanding
        if shortage is not None:
            _memory.pages.limit = taken + shortage * self.format.levels[0].size
        refused = None
        try:
            assert self.table.map(iova, paddr, pgsize, count, Prot.READ | Prot.WRITE, self.freed) == pgsize * count
        except IommuError as error:
            refused = error.name
        _memory.pages.limit = None
        if refused is None:
            assert not self.model.overlaps(iova, end)
            self.model.map(iova, paddr, pgsize, count)
            return
        if end > self.table.span:
            assert refused == "ERANGE"
        elif refused != "EEXIST":
            assert refused == "ENOMEM"
            assert shortage is not None
        else:
            assert self.model.overlaps(iova, end)
        assert contents(self.table) == before
        assert (self.table.bytes, _memory.pages.outstanding) == (used, taken)

    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        iova, pgsize, count = self._range(data)
        split: list[tuple[int, int]] = []
        known = dict(self.model.pages)
        done = self.table.unmap(iova, pgsize, count, partial=self.partial, freed=self.freed, release=self.release, split=split)
        assert done == self.model.unmap(iova, iova + pgsize * count, self.partial)
        for start, size in split:
            covering = [page for page, (length, _) in known.items() if page <= start and start + size <= page + length]
            assert covering, "only a page that was there can have been split"

    @rule(data=st.data())
    def unmap_known(self, data: st.DataObject) -> None:
        if self.model.pages:
            iova = data.draw(st.sampled_from(sorted(self.model.pages)))
            size = self.model.pages[iova][0]
            done = self.table.unmap(iova, size, 1, partial=self.partial, freed=self.freed, release=self.release)
            assert done == self.model.unmap(iova, iova + size, self.partial)

    @rule()
    def forget(self) -> None:
        for address, size in self.freed:
            _memory.pages.free(address, size)
        self.freed.clear()

    @invariant()
    def translates_alike(self) -> None:
        if not hasattr(self, "table"):
            return
        grain = self.model.sizes[0]
        wanted = {0, grain, self.table.span - 1, self.table.span, (1 << 64) - 1}
        for page, (size, _) in self.model.pages.items():
            wanted |= {page, page + 5, page + size - 1, page + size, max(0, page - 1), page + size // 2}
        iovas = sorted(wanted)
        expected = [self.model.lookup(iova) for iova in iovas]
        found = self.table.lookup_many(np.array(iovas, dtype=np.uint64))
        assert [None if value == UNMAPPED else int(value) for value in found] == expected
        some = iovas[:: max(1, len(iovas) // 50)]
        assert [self.table.lookup(iova) for iova in some] == [self.model.lookup(iova) for iova in some]

    @invariant()
    def accounts(self) -> None:
        if hasattr(self, "table"):
            held = sum(size for _, size in self.freed)
            assert _memory.pages.outstanding - self.before == self.table.bytes + held
            assert self.table.bytes == sum(len(table) for table in contents(self.table).values())


@pytest.mark.parametrize("partial", Partial, ids=lambda partial: partial.value)
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__.lower())
def test_like_a_list_of_pages(format: Format, partial: Partial) -> None:
    if isinstance(format, Sized) and partial is Partial.SPLIT:
        partial = Partial.WHOLE  # its pages are not split
    kind = type("Machine", (Machine,), {"format": format, "partial": partial})
    test = kind.TestCase
    test.settings = settings(
        max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    test().runTest()
