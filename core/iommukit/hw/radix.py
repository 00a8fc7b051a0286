"""Page tables as drivers write them: one engine for every radix format.

``Format`` (in ``iommukit.hw.format``) says how entries look; ``PageTable`` maps, unmaps and looks up.  Work is done level by level
on all of a range's tables at once; few pages are done one by one, which costs less than numpy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from iommukit.errors import IommuError
from iommukit.hw.fill import Pages
from iommukit.hw.format import Entry, Format, Level
from iommukit.hw.tree import ABSENT, CHUNK, Freed, TableTree, adjoining

if TYPE_CHECKING:
    from iommukit.hw.memory import Words

__all__ = ["Entry", "Format", "Freed", "Level", "PageTable", "Partial"]

FEW = 8
"""Up to so many slots are done one by one."""


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


class PageTable(TableTree):
    """The page tables of one address space (``root``, ``top``, ``span`` and ``bytes`` as of ``TableTree``)."""

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
        encoded = format.encode_address(last)
        if format.address(encoded, level) != last:
            raise IommuError("ERANGE", f"{last:#x} does not fit an entry")
        if pgcount == repeat == 1:
            # Most calls: one page, in tables that are there.
            at, index, entry = self._find(iova, level)
            if at == level and not format.present(entry, level):
                self._set(index, encoded | bits)
                return size
        dead: Freed = []
        shift, mask = self._steps[level]
        pages = Pages(format, paddr, pgsize, pgcount, repeat, bits)
        if (iova >> shift & mask) + pages.slots <= mask + 1:
            self._map_in_table(level, iova, pages, dead)
        else:
            self._map_many(level, iova >> shift, pages, dead)
        for address, length in dead:
            self.bytes -= length
            if freed is None:
                self.memory.pages.free(address, length)
            else:
                freed.append((address, length))
        return size

    def _map_in_table(self, level: int, iova: int, pages: Pages, dead: Freed) -> None:
        """Write the entries of pages from an address on, all in one table of ``level``."""
        format = self.format
        at, index, entry = self._find(iova, level)
        if at == level:
            for entry in self._present(index, pages.slots, level):
                dead += self._empty_tables(entry, level)
            self._write(index, pages)
            return
        if format.present(entry, at):
            raise IommuError("EEXIST", f"{iova:#x} is mapped, or levels are skipped there")
        made: list[int] = []
        try:
            for below in range(level, at):
                made.append(self._new_tables(below, 1)[0][0])
        except IommuError:
            for below, table in enumerate(made, level):
                self._drop(table, format.levels[below].size)
            raise
        # A table is filled before an entry names it.
        for below, table in enumerate(made, level):
            shift, mask = self._steps[below]
            where = (table - self._base >> 3) + (iova >> shift & mask)
            if below == level:
                self._write(where, pages)
            else:
                self._set(where, entry)
            entry = format.encode_address(table) | format.table(below + 1)
        self._set(index, entry)

    def _write(self, index: int, pages: Pages) -> None:
        if pages.slots <= FEW:
            for number, entry in enumerate(pages.entries(), index):
                self._set(number, entry)
        else:
            pages.write(self._view, index, pages.slots, 0)

    def _map_many(self, level: int, first: int, pages: Pages, dead: Freed) -> None:
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
                    tables[at][where] = np.concatenate([adjoining(address, count, levels[at].size) for address, count in runs])
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

    def _present(self, index: int, count: int, level: int) -> Iterator[int]:
        """The entries that are present among some."""
        if count <= FEW:
            yield from (entry for entry in map(self._get, range(index, index + count)) if self.format.present(entry, level))
            return
        empty = self.format.levels[level].empty
        for at in range(index, index + count, CHUNK):
            entries = self._view[at : min(at + CHUNK, index + count)]
            if (entries != empty).any() if empty else entries.any():
                yield from entries[self.format.present(entries, level)].tolist()

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
        within = leaves.shift + leaves.bits
        if not level and iova >> within == end - 1 >> within and end - iova < 1 << within:
            done = self._unmap_in_table(index, end - iova >> leaves.shift)
        else:
            done = self._unmap_many(iova, end, release, freed)
        if partial is Partial.SPLIT and end < asked and iova + done == end:
            done += self.unmap(end, asked - end, 1, partial=partial, freed=freed, release=release, split=split)
        return done

    def _clear(self, level: int, index: int, size: int) -> None:
        """Empty all entries of one page."""
        here = self.format.levels[level]
        self._set(index, here.empty)
        for at in range(index + 1, index + (size >> here.shift)):
            self._set(at, here.empty)

    def _unmap_in_table(self, index: int, count: int) -> int:
        """Empty up to ``count`` entries of a table of leaves, up to a hole."""
        leaves = self.format.levels[0]
        if count > FEW:
            count = self._stretch(index, count, 0)
            self._view[index : index + count] = leaves.empty
            return count << leaves.shift
        for number in range(count):
            if not self.format.present(self._get(index + number), 0):
                return number << leaves.shift
            self._set(index + number, leaves.empty)
        return count << leaves.shift

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
        pages = Pages(format, format.address(entry, level), step, 1 << below.bits, 1, bits)
        pages.write(self._view, table - self._base >> 3, pages.slots, 0)
        self._set(index, format.encode_address(table) | format.table(level))
        return True
