"""Page tables as drivers write them: one engine for every radix format.

``Format`` (in ``iommukit.hw.format``) says how entries look; ``PageTable`` maps, unmaps and looks up.  A slot is an entry's
number at its level counted over the whole address space (``iova >> shift``), so that a range of addresses is one range of slots
at each level, whatever tables they lie in.  Work is done level by level on all of a range's tables at once; few pages are done
one by one, which costs less than numpy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iommukit.errors import IommuError
from iommukit.hw.format import Entry, Format, Level
from iommukit.hw.platform import UNMAPPED

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory, Words

__all__ = ["Entry", "Format", "Level", "PageTable", "Partial"]

FEW = 16
"""Up to so many slots are done one by one."""
CHUNK = 1 << 16
"""So many entries are looked at at once: they and what is computed of them stay in the cache."""
ABSENT = (1 << 64) - 1
"""In an array of tables' addresses: no table."""

Indices: TypeAlias = NDArray[np.int64]
_Part: TypeAlias = tuple[Indices, NDArray[np.uint64]]
Freed: TypeAlias = list[tuple[int, int]]
"""Tables that no entry names any more: address and size in bytes, adjoining ones as one."""


class Partial(enum.Enum):
    """What an unmap does with a page that is larger than what is left to unmap, or begins before it."""

    WHOLE = "whole"
    """Remove all of it, and count all of it (VT-d and AMD-Vi before 7.2)."""
    WHOLE_FROM_START = "whole from start"
    """The same where the unmap has come to the page's first byte; stop in its middle (the generic page tables of 7.2)."""
    SPLIT = "split"
    """Put a table of smaller pages in its place, and remove what was asked for (``io-pgtable-arm`` before 6.13)."""
    REFUSE = "refuse"
    """Stop there (``io-pgtable-arm`` since 6.13)."""


class PageTable:
    """Tables of one address space in a memory, their root at level ``top``.

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
        self.root = self._new_tables(self.top, 1)[0][0]

    @property
    def span(self) -> int:
        """The first address (bytes) beyond what the tables can translate."""
        level = self.format.levels[self.top]
        return 1 << level.shift + level.bits

    # ---- mapping -----------------------------------------------------------------------------------------------------

    def map(self, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int, freed: Freed | None = None) -> int:
        """Map ``pgcount`` pages of ``pgsize`` bytes, all or nothing.  Returns bytes mapped.

        An empty table in the way of a larger page is removed and appended to ``freed``, to be given to ``memory.pages.free``
        once the hardware has forgotten it; without ``freed`` it is given back at once.  Raises, with the tables as they were:
        ``EEXIST`` over a mapping, ``ENOMEM``, ``ERANGE`` outside the tables or the format's physical addresses, ``EINVAL`` for
        unaligned addresses, another page size, or a protection that the format cannot express.
        """
        format = self.format
        level, repeat = format.leaf_level(pgsize)
        bits = format.leaf(level, pgsize, prot)
        size = pgsize * pgcount
        if (iova | paddr) & pgsize - 1:
            raise IommuError("EINVAL", f"{iova:#x} or {paddr:#x} is not aligned to {pgsize:#x}")
        if iova < 0 or iova + size > self.span:
            raise IommuError("ERANGE", f"{iova:#x} is outside the tables")
        if not pgcount:
            return 0
        last = paddr + size - pgsize
        if format.address(format.encode_address(last), level) != last:
            raise IommuError("ERANGE", f"{last:#x} does not fit an entry")
        dead: Freed = []
        first = iova >> format.levels[level].shift
        if pgcount * repeat <= FEW:
            self._map_few(level, first, repeat, [format.encode_address(paddr + n * pgsize) | bits for n in range(pgcount)], dead)
        else:
            self._map_many(level, first, _Pages(format, paddr, pgsize, pgcount, repeat, bits), dead)
        for address, length in dead:
            self.bytes -= length
            if freed is None:
                self.memory.pages.free(address, length)
            else:
                freed.append((address, length))
        return size

    def _map_few(self, level: int, first: int, repeat: int, values: list[int], dead: Freed) -> None:
        """Write ``repeat`` entries of each value from the slot ``first`` of ``level`` on."""
        format, get, set = self.format, self._get, self._set
        mask = (1 << format.levels[level].bits) - 1
        undo: list[tuple[int, int]] = []
        made: Freed = []
        index = 0
        try:
            for number in range(len(values) * repeat):
                slot = first + number
                if not number or not slot & mask:
                    index = self._reach(level, slot, undo, made)
                entry = get(index)
                if format.present(entry, level):
                    dead += self._empty_tables(entry, level)
                undo.append((index, entry))
                set(index, values[number // repeat])
                index += 1
        except IommuError:
            for index, entry in reversed(undo):
                set(index, entry)
            for address, size in made:
                self._drop(address, size)
            dead.clear()
            raise

    def _reach(self, level: int, slot: int, undo: list[tuple[int, int]], made: Freed) -> int:
        """The index of a slot's entry, in tables that are made where they are missing."""
        format, levels, get = self.format, self.format.levels, self._get
        iova = slot << levels[level].shift
        at = self.top
        table = self.root
        while True:
            here = levels[at]
            index = (table - self._base >> 3) + (iova >> here.shift & (1 << here.bits) - 1)
            if at == level:
                return index
            entry = get(index)
            if not format.present(entry, at):
                table = self._new_tables(at - 1, 1)[0][0]
                made.append((table, levels[at - 1].size))
                undo.append((index, entry))
                self._set(index, format.encode_address(table) | format.table(at))
            elif format.is_leaf(entry, at):
                raise IommuError("EEXIST", f"{iova:#x} is mapped")
            else:
                table = format.address(entry, at)
            at -= 1

    def _map_many(self, level: int, first: int, pages: _Pages, dead: Freed) -> None:
        """Write the entries of pages from the slot ``first`` of ``level`` on."""
        format, levels, view = self.format, self.format.levels, self._view
        last = first + pages.slots - 1
        shift = levels[level].shift
        bounds = {at: (first << shift >> levels[at].shift, last << shift >> levels[at].shift) for at in range(level, self.top + 1)}
        tables = {self.top: np.array([self.root], dtype=np.uint64)}
        for at in range(self.top, level, -1):
            low, high = bounds[at]
            children = np.full(high - low + 1, ABSENT, dtype=np.uint64)
            for slot, index, count in self._runs(tables[at], at, low, high):
                entries = view[index : index + count]
                here = format.present(entries, at)
                if here.any():
                    if (here & format.is_leaf(entries, at)).any():
                        raise IommuError("EEXIST", "a larger page is mapped there")
                    part = children[slot - low : slot - low + count]
                    np.copyto(part, format.address(entries, at), where=here)
            tables[at - 1] = children
        for _, index, count in self._runs(tables[level], level, first, last):
            for entry in self._present(index, count, level):
                dead += self._empty_tables(entry, level)
        missing = {at: tables[at] == ABSENT for at in range(level, self.top)}
        made: Freed = []
        try:
            for at, where in missing.items():
                if where.any():
                    runs = self._new_tables(at, int(np.count_nonzero(where)))
                    made += [(address, count * levels[at].size) for address, count in runs]
                    size = levels[at].size
                    tables[at][where] = np.concatenate(
                        [address + np.arange(count, dtype=np.uint64) * size for address, count in runs]
                    )
        except IommuError:
            for address, length in made:
                self._drop(address, length)
            dead.clear()
            raise
        for slot, index, count in self._runs(tables[level], level, first, last):
            pages.write(view, index, count, slot - first)
        # A table is filled before an entry names it.
        for at in range(level + 1, self.top + 1):
            where = missing[at - 1]
            low, high = bounds[at]
            if where.any():
                slots = np.arange(low, high + 1, dtype=np.uint64)[where]
                bits = levels[at].bits
                parents = tables[at][(slots >> bits) - (low >> bits)]
                entries = format.encode_address(tables[at - 1][where]) | format.table(at)
                view[(parents - self._base >> 3) + (slots & (1 << bits) - 1)] = entries

    def _present(self, index: int, count: int, level: int) -> list[int]:
        """The entries that are present among many."""
        found: list[int] = []
        empty = self.format.levels[level].empty
        for at in range(index, index + count, CHUNK):
            entries = self._view[at : min(at + CHUNK, index + count)]
            if (entries != empty).any() if empty else entries.any():
                found += entries[self.format.present(entries, level)].tolist()
        return found

    def _empty_tables(self, entry: int, level: int) -> Freed:
        """The tables below an entry of ``level``.  Raises ``EEXIST`` where one maps anything, or the entry is a leaf."""
        format = self.format
        if not level or format.is_leaf(entry, level):
            raise IommuError("EEXIST", "a page is mapped there")
        below = format.levels[level - 1]
        address = format.address(entry, level)
        tables = [(address, below.size)]
        for child in self._present(address - self._base >> 3, 1 << below.bits, level - 1):
            tables += self._empty_tables(child, level - 1)
        return tables

    # ---- unmapping ---------------------------------------------------------------------------------------------------

    def unmap(
        self,
        iova: int,
        pgsize: int,
        pgcount: int,
        *,
        partial: Partial,
        freed: Freed,
        release: bool = True,
        split: Freed | None = None,
    ) -> int:
        """Unmap up to ``pgcount * pgsize`` bytes from ``iova`` on, up to the first hole.  Returns bytes unmapped.

        ``partial`` says what becomes of larger pages at the ends; with ``WHOLE`` all bytes of removed pages count, those before
        ``iova`` too.  With ``release``, tables that the range covers are removed and appended to ``freed``, for
        ``memory.pages.free`` once the hardware has forgotten them; their own entries stay as they are until then.  ``split``
        takes the ranges (I/O virtual address, bytes) of pages that were replaced by tables; a split that finds no memory ends
        the unmap.
        """
        end = min(iova + pgsize * pgcount, self.span)
        page = self._page(iova) if 0 <= iova < end else None
        if page is None:
            return 0
        level, index, entry, start, size = page
        if start < iova or start + size > end:
            if partial is Partial.REFUSE or (partial is Partial.WHOLE_FROM_START and start < iova):
                return 0
            if partial is Partial.SPLIT:
                if not self._split(level, index, entry):
                    return 0
                if split is not None:
                    split.append((start, size))
                return self.unmap(iova, end - iova, 1, partial=partial, freed=freed, release=release, split=split)
            index -= iova - start >> self.format.levels[level].shift
            iova, end = start, max(end, start + size)
        if start + size == end:
            self._clear(level, index, size)
            return size
        asked = end
        tail = self._page(end - 1)
        if tail is not None and tail[3] + tail[4] > end:
            end = tail[3] if partial in (Partial.SPLIT, Partial.REFUSE) else tail[3] + tail[4]
        leaves = self.format.levels[0]
        few = end - iova <= FEW << leaves.shift and end - iova < 1 << leaves.shift + leaves.bits
        done = self._unmap_few(iova, end) if few else self._unmap_many(iova, end, release, freed)
        if partial is Partial.SPLIT and end < asked and iova + done == end:
            done += self.unmap(end, asked - end, 1, partial=partial, freed=freed, release=release, split=split)
        return done

    def _clear(self, level: int, index: int, size: int) -> None:
        """Empty all entries of one page."""
        here = self.format.levels[level]
        for at in range(index, index + (size >> here.shift)):
            self._set(at, here.empty)

    def _unmap_few(self, iova: int, end: int) -> int:
        """Remove pages up to a hole, one by one; none goes beyond the ends."""
        at = iova
        while at < end:
            page = self._page(at)
            if page is None:
                break
            self._clear(page[0], page[1], page[4])
            at += page[4]
        return at - iova

    def _unmap_many(self, iova: int, end: int, release: bool, freed: Freed) -> int:
        """Remove pages up to a hole; none goes beyond the ends."""
        format, levels, view = self.format, self.format.levels, self._view
        tables = {self.top: np.array([self.root], dtype=np.uint64)}
        for at in range(self.top, -1, -1):
            here = levels[at]
            first, last = iova >> here.shift, end - 1 >> here.shift
            children = np.full(last - first + 1 if at else 0, ABSENT, dtype=np.uint64)
            for slot, index, count in self._runs(tables[at], at, first, last):
                length = self._stretch(index, count, at)
                if at and length:
                    entries = view[index : index + length]
                    part = children[slot - first : slot - first + length]
                    np.copyto(part, format.address(entries, at), where=~np.asarray(format.is_leaf(entries, at)))
                if length < count:
                    end = min(end, slot + length << here.shift)
                    break
            if not at or not (children != ABSENT).any():
                break
            tables[at - 1] = children
        lowest = min(tables)
        for at in range(self.top, lowest - 1, -1):
            here = levels[at]
            low, high = -(-iova >> here.shift), end >> here.shift
            if at < self.top and release:
                # What the range covers of this level's tables goes with the tables.
                covered, beyond = -(-iova >> here.shift + here.bits), end >> here.shift + here.bits
                if covered < beyond:
                    number = iova >> here.shift + here.bits
                    gone = tables[at][covered - number : beyond - number]
                    self._discard(gone[gone != ABSENT], here.size, freed)
                    self._empty(tables[at], at, low, covered << here.bits, iova, release)
                    low = max(low, beyond << here.bits)
            self._empty(tables[at], at, low, high, iova, release)
        return end - iova

    def _stretch(self, index: int, count: int, level: int) -> int:
        """How many entries from ``index`` on are present without a gap."""
        for at in range(0, count, CHUNK):
            here = self.format.present(self._view[index + at : index + min(at + CHUNK, count)], level)
            if not here.all():
                return at + int(here.argmin())
        return count

    def _empty(self, tables: Words, level: int, low: int, high: int, iova: int, release: bool) -> None:
        """Empty the slots ``low`` up to ``high`` of a level; without ``release``, those that are leaves."""
        here = self.format.levels[level]
        number = (iova >> here.shift) >> here.bits
        if low >= high:
            return
        for _, index, count in self._runs(tables[(low >> here.bits) - number :], level, low, high - 1):
            entries = self._view[index : index + count]
            if release or not level:
                entries[:] = here.empty
            else:
                entries[np.asarray(self.format.is_leaf(entries, level))] = here.empty

    def _split(self, level: int, index: int, entry: int) -> bool:
        """Replace a page by a table of smaller ones; False without memory for it."""
        format = self.format
        below = format.levels[level - 1]
        bits = format.smaller(entry, level)
        try:
            table = self._new_tables(level - 1, 1)[0][0]
        except IommuError:
            return False
        step = 1 << below.shift
        pages = _Pages(format, format.address(entry, level), step, 1 << below.bits, 1, bits)
        pages.write(self._view, table - self._base >> 3, pages.slots, 0)
        self._set(index, format.encode_address(table) | format.table(level))
        return True

    # ---- looking up --------------------------------------------------------------------------------------------------

    def _walk(self, iova: int) -> Iterator[tuple[int, int, int]]:
        """Level, index and contents of the entries on an address's way, to the leaf or to the first that is not present."""
        format, levels = self.format, self.format.levels
        level, table = self.top, self.root
        if not 0 <= iova < self.span:
            return
        while True:
            here = levels[level]
            index = (table - self._base >> 3) + (iova >> here.shift & (1 << here.bits) - 1)
            entry = self._get(index)
            yield level, index, entry
            if not level or not format.present(entry, level) or format.is_leaf(entry, level):
                return
            table = format.address(entry, level)
            below = format.next_level(entry, level)
            if (
                below < level - 1
                and iova >> levels[below].shift + levels[below].bits & (1 << here.shift - levels[below + 1].shift) - 1
            ):
                return  # the index of a skipped level must be zero
            level = below

    def _skipped(self, level: int, below: int) -> int:
        """The address bits of the levels skipped from ``level`` to ``below``: they must be zero."""
        return (1 << self.format.levels[level].shift) - (1 << self.format.levels[below + 1].shift)

    def _page(self, iova: int) -> tuple[int, int, int, int, int] | None:
        """The page at an address: level, index of the entry at that address, entry, first address, size."""
        format = self.format
        level = index = entry = -1
        for level, index, entry in self._walk(iova):  # noqa: B007
            pass
        if index < 0 or not format.present(entry, level) or (level and not format.is_leaf(entry, level)):
            return None
        size = format.leaf_size(entry, level)
        return level, index, entry, iova & -size, size

    def lookup(self, iova: int) -> int | None:
        """The physical address of an I/O virtual address; ``None`` where nothing is mapped."""
        page = self._page(iova)
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
        level = self.top
        inside = np.flatnonzero(iovas < self.span) if self.span < 1 << 64 else np.arange(len(iovas))
        todo: dict[int, list[_Part]] = {level: [(inside, np.full(len(inside), self.root, dtype=np.uint64))]}
        format, levels = self.format, self.format.levels
        for level in range(self.top, -1, -1):
            for which, tables in todo.pop(level, []):
                here = levels[level]
                wanted = iovas[which]
                index = (tables - self._base >> 3) + (wanted >> here.shift & (1 << here.bits) - 1)
                entries = self._view.take(index.view(np.int64)).astype(np.uint64, copy=False)
                there = np.asarray(format.present(entries, level))
                leaf = there & format.is_leaf(entries, level) if level else there
                pages = entries[leaf]
                size = np.uint64(1) * format.leaf_size(pages, level)
                found[which[leaf]] = (format.address(pages, level) & ~(size - np.uint64(1))) + (wanted[leaf] & size - np.uint64(1))
                if level:
                    self._hand_down(level, which, entries, there & ~leaf, wanted, todo)

    def _hand_down(
        self,
        level: int,
        which: Indices,
        entries: Words,
        tables: NDArray[np.bool_],
        wanted: Words,
        todo: dict[int, list[_Part]],
    ) -> None:
        """Sort what goes on to tables by their level."""
        format = self.format
        which, entries, wanted = which[tables], entries[tables], wanted[tables]
        if not format.skips:
            todo.setdefault(level - 1, []).append((which, format.address(entries, level)))
            return
        below = np.fromiter((format.next_level(entry, level) for entry in entries.tolist()), dtype=np.int64, count=len(entries))
        for target in range(level):
            some = (below == target) & (wanted & self._skipped(level, target) == 0)
            todo.setdefault(target, []).append((which[some], format.address(entries[some], level)))

    def entries(self, iova: int) -> list[tuple[int, int, int]]:
        """Level, address and contents of the entries on an address's way, from the root on."""
        return [(level, self._base + (index << 3), entry) for level, index, entry in self._walk(iova)]

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


def _adjoining(address: int, count: int, size: int) -> Words:
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


class _Pages:
    """The entries of adjoining pages, to be written in pieces."""

    _templates: dict[tuple[int, int], Words] = {}

    def __init__(self, format: Format, paddr: int, pgsize: int, pgcount: int, repeat: int, bits: int) -> None:
        self.slots = pgcount * repeat
        self._format = format
        self._paddr, self._pgsize, self._repeat, self._bits = paddr, pgsize, repeat, bits
        self._first = int(format.encode_address(paddr))
        span = pgsize * (pgcount - 1)
        self._linear = int(format.encode_address(paddr + span)) - self._first == span
        template = self._templates.get((pgsize, repeat))
        if template is None:
            template = np.arange(CHUNK, dtype=np.uint64) // np.uint64(repeat) * np.uint64(pgsize)
            self._templates[pgsize, repeat] = template
        self._template = template

    def write(self, view: Words, index: int, count: int, slot: int) -> None:
        """Write ``count`` entries to ``index``, beginning with the ``slot``-th of all: a multiple of the repetition."""
        for done in range(0, count, CHUNK):
            length = min(CHUNK, count - done)
            offset = (slot + done) // self._repeat * self._pgsize
            target = view[index + done : index + done + length]
            if self._linear:
                np.add(self._template[:length], np.uint64(self._first + offset | self._bits), out=target)
            else:
                target[:] = self._format.encode_address(self._template[:length] + np.uint64(self._paddr + offset)) | self._bits
