"""Reading radix tables of any format out of a memory: what ``walk_tables`` of a vendor is made of.

A vendor says what entries of a level mean, a table at a time (``TableFormat``); ``pages`` goes through the tables lazily, and gives
adjoining entries of a table as one ``Leaf``.  Nothing here is shared with ``iommukit.hw.radix``, which writes tables.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iommukit.errors import InputError
from iommukit.hw.walk import Leaf, Step

if TYPE_CHECKING:
    from iommukit.hw.memory import TableReader, Words

READ = 1
WRITE = 2


class Kind(enum.IntEnum):
    """What an entry is."""

    ABSENT = 0
    TABLE = 1
    PAGE = 2
    BAD = 3


@dataclass(frozen=True, slots=True)
class TableLevel:
    """The name of a level's entries in the specification, and the bits of the address that index them."""

    name: str
    shift: int
    bits: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the entries of a table mean: arrays with one element for each entry.

    ``kind`` holds ``Kind``; ``address`` the physical address (bytes) of the next table or the page; ``rights`` a mask of READ and
    WRITE, which everything below an entry has at most.  ``size`` is the size of pages (bytes) where it is not the level's own: a
    larger page fills several entries, and ``address`` is aligned to it.
    """

    kind: NDArray[np.uint8]
    address: Words
    rights: NDArray[np.uint8]
    size: Words | None = None


class TableFormat(ABC):
    """A format of tables.  ``levels`` are numbered as the specification does."""

    levels: Mapping[int, TableLevel]
    big_endian = False

    @abstractmethod
    def decode(self, level: int, entries: Words) -> Decoded:
        """Say what the entries of a table at ``level`` mean."""

    @abstractmethod
    def explain(self, level: int, value: int) -> str:
        """The bits of an entry in words, with the specification's names."""

    def next_level(self, level: int, value: int) -> int:
        """The level of the table that an entry names."""
        return level - 1

    def next_count(self, level: int, value: int) -> int | None:
        """How many entries that table has, where it is not all of the level's."""
        return None

    def fault(self, level: int, value: int) -> str:
        """What is wrong with an entry that ``decode`` calls bad."""
        return "reserved bits are set"


def pages(
    memory: TableReader,
    format: TableFormat,
    table: int,
    level: int,
    *,
    iova: int | None = None,
    base: int = 0,
    count: int | None = None,
    rights: int = READ | WRITE,
) -> Iterator[Leaf]:
    """Go through the tables below the one at the physical address ``table``, by rising address.

    ``base`` is the address (bytes) that its first entry translates; ``count`` its entries, where it has more or fewer than
    ``level`` says; ``rights`` what the entries before allow.  With ``iova`` there is one leaf, with a ``reason`` where nothing is
    mapped.  A table outside the memory gives a leaf with the reason, and the walk goes on behind it.
    """
    tables = _Tables(memory, format, iova)
    return tables.below(table, level, base, 1 << format.levels[level].bits if count is None else count, rights, ())


class _Tables:
    def __init__(self, memory: TableReader, format: TableFormat, iova: int | None) -> None:
        self.format = format
        self.read = memory.big_table if format.big_endian else memory.table
        self.iova = iova

    def below(self, table: int, level: int, base: int, count: int, rights: int, path: tuple[Step, ...]) -> Iterator[Leaf]:
        shape = self.format.levels[level]
        first = 0
        if self.iova is not None:
            first, count = (self.iova - base) >> shape.shift, _one(self.iova - base, shape.shift, count)
            if not count:
                yield Leaf(self.iova, 0, 0, False, False, path, reason=f"{self.iova:#x} is beyond the table at {table:#x}")
                return
        try:
            entries = self.read(table + 8 * first, count)
        except InputError as error:
            start, size = (base, count << shape.shift) if self.iova is None else (self.iova, 0)
            yield Leaf(start, 0, size, False, False, path, reason=error.message)
            return
        for start, length, kind, address, own, page in _runs(self.format.decode(level, entries), first, shape, self.iova):
            value = int(entries[start])
            where = base + (first + start << shape.shift)
            step = Step(shape.name, table + 8 * (first + start), value, self.format.explain(level, value))
            way = (*path, step)
            own &= rights
            if kind == Kind.TABLE:
                below = self.format.next_level(level, value)
                if below not in self.format.levels or below >= level:
                    yield Leaf(where, 0, 1 << shape.shift, False, False, way, reason=f"names a table of level {below}")
                    continue
                entries_below = self.format.next_count(level, value)
                if entries_below is None:
                    entries_below = 1 << self.format.levels[below].bits
                yield from self.below(address, below, where, entries_below, own, way)
            elif kind == Kind.PAGE:
                size = length << shape.shift
                if self.iova is not None:
                    # The page as a whole.
                    where, size = where & -page, page
                yield Leaf(where, address + (where & page - 1), size, bool(own & READ), bool(own & WRITE), way, page)
            else:
                reason = "not present" if kind == Kind.ABSENT else self.format.fault(level, value)
                yield Leaf(where, 0, length << shape.shift, False, False, way, reason=reason)


def _one(offset: int, shift: int, count: int) -> int:
    """1 where a table of ``count`` entries translates the byte at ``offset``, else 0."""
    return int(0 <= offset >> shift < count)


_Run = tuple[int, int, int, int, int, int]
"""The first entry of some, how many, and of the first: kind, address, rights, size of a page."""


def _runs(found: Decoded, first: int, shape: TableLevel, iova: int | None) -> Iterator[_Run]:
    """Adjoining pages that go on in both address spaces, as one; other entries that are there one by one.

    Where one address is asked for, the one entry is given even if nothing is there.
    """
    live = np.flatnonzero(found.kind) if iova is None else np.arange(len(found.kind))
    shift = np.uint64(shape.shift)
    kind, address, rights = found.kind[live], found.address[live], found.rights[live]
    size = np.full(len(live), 1 << shape.shift, dtype=np.uint64) if found.size is None else found.size[live]
    index = live.astype(np.uint64) + np.uint64(first)
    physical = address + ((index << shift) & (size - np.uint64(1)))
    joined = (np.diff(live) == 1) & (physical[1:] - physical[:-1] == np.uint64(1 << shape.shift)) & (rights[1:] == rights[:-1])
    joined &= (kind[1:] == Kind.PAGE) & (kind[:-1] == Kind.PAGE) & (size[1:] == size[:-1])
    starts = np.flatnonzero(np.concatenate((np.ones(min(1, len(live)), bool), ~joined)))
    lengths = np.diff(starts, append=len(live))
    columns = (live[starts], lengths, kind[starts], address[starts], rights[starts], size[starts])
    return zip(*(column.tolist() for column in columns), strict=True)
