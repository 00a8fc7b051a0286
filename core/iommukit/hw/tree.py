"""Trees of tables in memory: how they are made, read and given back.  ``iommukit.hw.radix`` writes pages into them.

A slot is an entry's number at its level counted over the whole address space (``iova >> shift``), so that a range of addresses
is one range of slots at each level, whatever tables they lie in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iommukit.errors import IommuError
from iommukit.hw.format import Format
from iommukit.hw.platform import UNMAPPED

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory, Words

CHUNK = 1 << 16
"""So many entries are looked at at once: they and what is computed of them stay in the cache."""
ABSENT = (1 << 64) - 1
"""In an array of tables' addresses: no table."""

Freed: TypeAlias = list[tuple[int, int]]
"""Tables that no entry names any more: address and size in bytes, adjoining ones as one."""
Indices: TypeAlias = NDArray[np.int64]
_Part: TypeAlias = tuple[Indices | slice, NDArray[np.uint64], NDArray[np.uint64] | int]
"""Some of the addresses that are looked up: which, the addresses, and the index of the table to go on with."""


class TableTree:
    """The tables of one address space in a memory, their root at level ``top``.

    ``root`` is the root's address, ``bytes`` what all tables take.  Raises ``IommuError("ENOMEM")`` without a page for the root.
    """

    def __init__(self, format: Format, memory: PhysicalMemory, *, top: int | None = None) -> None:
        self.format = format
        self.memory = memory
        self.top = len(format.levels) - 1 if top is None else top
        self.bytes = 0
        self._base = memory.base
        self._view: Words = memory.big_words if format.big_endian else memory.words
        self._get, self._set = memory.accessors(format.big_endian)
        self._steps = [(level.shift, (1 << level.bits) - 1) for level in format.levels]
        # Looked up once: following an entry must cost little.
        self._ways = format.present, format.is_leaf, format.address, format.skips, self._steps, self._base, self._get
        self.root = self._new_tables(self.top, 1)[0][0]
        self.span = self._reach_of(self.top)
        """The first address (bytes) beyond what the tables can translate."""

    def _reach_of(self, top: int) -> int:
        level = self.format.levels[top]
        return 1 << level.shift + level.bits

    # ---- looking up --------------------------------------------------------------------------------------------------

    def _find(self, iova: int, lowest: int = 0) -> tuple[int, int, int]:
        """Level, index and contents of the last entry on an address's way: of ``lowest``, a leaf, or not present.

        It names a table where levels are skipped that the address does not allow to skip, or those down to ``lowest``.
        """
        present, is_leaf, address, skips, steps, base, get = self._ways
        level = self.top
        shift, mask = steps[level]
        index = (self.root - base >> 3) + (iova >> shift & mask)
        while True:
            entry = get(index)
            if level == lowest or not present(entry, level) or is_leaf(entry, level):
                return level, index, entry
            table = address(entry, level)
            if skips:
                below = self.format.next_level(entry, level)
                if below < lowest or (below < level - 1 and iova & self._skipped(level, below)):
                    return level, index, entry
                level = below
            else:
                level -= 1
            shift, mask = steps[level]
            index = (table - base >> 3) + (iova >> shift & mask)

    def _skipped(self, level: int, below: int) -> int:
        """The address bits of the levels skipped from ``level`` to ``below``: they must be zero."""
        return (1 << self.format.levels[level].shift) - (1 << self.format.levels[below + 1].shift)

    def _page(self, iova: int) -> tuple[int, int, int, int, int] | None:
        """The page at an address inside the tables: level, index of the entry at that address, entry, first address, size."""
        format = self.format
        level, index, entry = self._find(iova)
        if not format.present(entry, level) or (level and not format.is_leaf(entry, level)):
            return None
        size = format.leaf_size(entry, level)
        return level, index, entry, iova & -size, size

    def lookup(self, iova: int) -> int | None:
        """The physical address of an I/O virtual address; ``None`` where nothing is mapped."""
        page = self._page(iova) if 0 <= iova < self.span else None
        if page is None:
            return None
        level, _, entry, start, size = page
        return (int(self.format.address(entry, level)) & -size) + iova - start

    def lookup_many(self, iovas: Words) -> Words:
        """The same for many; ``UNMAPPED`` where nothing is mapped."""
        found = np.full(iovas.shape, UNMAPPED)
        for at in range(0, len(iovas), CHUNK):
            self._lookup(iovas[at : at + CHUNK], found[at : at + CHUNK])
        return found

    def _lookup(self, iovas: Words, found: Words) -> None:
        """Translate some addresses, level by level; ``found`` is ``UNMAPPED`` so far."""
        format, base = self.format, self._base
        if not len(iovas):
            return
        everything = slice(None)
        which: Indices | slice = everything
        if int(iovas.max()) >= self.span:
            which = np.flatnonzero(iovas < self.span)
        wanted = iovas[which]
        todo: dict[int, list[_Part]] = {self.top: [(which, wanted, (self.root - base >> 3))]}
        for level in range(self.top, -1, -1):
            shift, mask = self._steps[level]
            for which, wanted, tables in todo.pop(level, ()):
                index = (wanted >> shift & mask) + tables
                entries = self._view.take(index.view(np.int64)).astype(np.uint64, copy=False)
                there = np.asarray(format.present(entries, level))
                leaf = there & format.is_leaf(entries, level) if level else there
                if leaf.any():
                    leaves, pages, to = (
                        (which, entries, wanted) if leaf.all() else (_among(which, leaf), entries[leaf], wanted[leaf])
                    )
                    offset = np.asarray(format.leaf_size(pages, level), dtype=np.uint64) - np.uint64(1)
                    found[leaves] = format.address(pages, level) & ~offset | to & offset
                    there &= ~leaf
                if level and there.any():
                    if not there.all():
                        which, entries, wanted = _among(which, there), entries[there], wanted[there]
                    self._hand_down(level, which, entries, wanted, todo)

    def _hand_down(self, level: int, which: Indices | slice, entries: Words, wanted: Words, todo: dict[int, list[_Part]]) -> None:
        """Sort what goes on to tables by their level."""
        format = self.format
        tables = format.address(entries, level) - self._base >> 3
        below = np.asarray(format.next_level(entries, level)) if format.skips else None
        if below is None or (below == level - 1).all():
            todo.setdefault(level - 1, []).append((which, wanted, tables))
            return
        for target in range(level):
            some = (below == target) & (wanted & self._skipped(level, target) == 0)
            todo.setdefault(target, []).append((_among(which, some), wanted[some], tables[some]))

    def entries(self, iova: int) -> list[tuple[int, int, int]]:
        """Level, address and contents of the entries on an address's way, from the root on; none outside the tables."""
        way: list[tuple[int, int, int]] = []
        for lowest in range(self.top, -1, -1) if 0 <= iova < self.span else ():
            level, index, entry = self._find(iova, lowest)
            if not way or level != way[-1][0]:
                way.append((level, self._base + (index << 3), entry))
        return way

    # ---- tables ------------------------------------------------------------------------------------------------------

    def grow(self, level: int) -> None:
        """Put tables above the root until it is of ``level``; what is mapped stays.  Raises ``ENOMEM``, with all as it was."""
        levels = self.format.levels
        made: Freed = []
        root = self.root
        try:
            for at in range(self.top + 1, level + 1):
                table = self._new_tables(at, 1)[0][0]
                made.append((table, levels[at].size))
                self._set(table - self._base >> 3, self.format.encode_address(root) | self.format.table(at))
                root = table
        except IommuError:
            for address, size in made:
                self._drop(address, size)
            raise
        self.root, self.top = root, max(self.top, level)
        self.span = self._reach_of(self.top)

    def free(self) -> None:
        """Give all tables back; the object is of no use afterwards."""
        format, levels = self.format, self.format.levels
        tables = np.array([self.root], dtype=np.uint64)
        gone: Freed = []
        for at in range(self.top, -1, -1):
            children = []
            if at:
                for address, size in _joined(tables, levels[at].size):
                    index = address - self._base >> 3
                    for part in range(index, index + (size >> 3), CHUNK):
                        entries = self._view[part : min(part + CHUNK, index + (size >> 3))]
                        named = format.present(entries, at) & ~np.asarray(format.is_leaf(entries, at))
                        children.append(format.address(entries[named], at))
            self._discard(tables, levels[at].size, gone)
            if not children:
                break
            tables = np.concatenate(children)
        for address, size in gone:
            self.memory.pages.free(address, size)

    def _new_tables(self, level: int, count: int) -> list[tuple[int, int]]:
        """Empty tables, as runs: address and number of adjoining tables."""
        here = self.format.levels[level]
        runs = self.memory.pages.alloc_runs(here.size, count)
        if here.empty:
            for address, number in runs:
                index = address - self._base >> 3
                self._view[index : index + (number * here.size >> 3)] = here.empty
        self.bytes += here.size * count
        return runs

    def _drop(self, address: int, size: int) -> None:
        """Give back a table that no entry names and no hardware has seen."""
        self.bytes -= size
        self.memory.pages.free(address, size)

    def _discard(self, tables: Words, size: int, freed: Freed) -> None:
        """Hand tables of ``size`` bytes over for later."""
        self.bytes -= size * len(tables)
        freed += _joined(tables, size)

    def _runs(self, tables: Words, level: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Where the slots ``first``..``last`` of a level lie: first slot, its index, and number of slots of each adjoining run.

        ``tables``: addresses of the level's tables from the one with the slot ``first`` on, ``ABSENT`` where there is none.
        """
        here = self.format.levels[level]
        number = first >> here.bits
        tables = tables[: (last >> here.bits) - number + 1]
        breaks = np.flatnonzero(tables[1:] - tables[:-1] != 8 << here.bits) + 1
        starts = np.concatenate(([0], breaks))
        ends = np.concatenate((breaks, [len(tables)]))
        there = tables[starts] != ABSENT
        for start, end, address in zip(starts[there].tolist(), ends[there].tolist(), tables[starts[there]].tolist(), strict=True):
            origin = number + start << here.bits
            low, high = max(first, origin), min(last + 1, number + end << here.bits)
            yield low, (address - self._base >> 3) + low - origin, high - low


def _among(which: Indices | slice, some: NDArray[np.bool_]) -> Indices:
    """The indices of some of those that are meant."""
    return np.flatnonzero(some) if isinstance(which, slice) else which[some]


def adjoining(address: int, count: int, size: int) -> Words:
    """The addresses of ``count`` adjoining tables."""
    return np.arange(address, address + count * size, size, dtype=np.uint64)


def _joined(tables: Words, size: int) -> Freed:
    """Tables of one size as runs: address and size (bytes)."""
    if not len(tables):
        return []
    tables = np.sort(tables)
    breaks = np.flatnonzero(tables[1:] - tables[:-1] != size) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(tables)])))
    return [(address, count * size) for address, count in zip(tables[starts].tolist(), counts.tolist(), strict=True)]
