"""A TLB: translations that hardware keeps until it is told to forget them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Addresses: TypeAlias = NDArray[np.uint64]
Permissions: TypeAlias = NDArray[np.uint8]
Tag: TypeAlias = Hashable
"""What an entry belongs to besides its address: a tuple such as domain id and PASID.  Not callable."""

LAST = (1 << 64) - 1
FEW = 32
"""Fewer addresses than this are looked up one by one."""
_SIEVE = 1 << 16
_Pages: TypeAlias = dict[int, tuple[int, int]]
"""By page number: what to add to an I/O virtual address (modulo 2^64) to get the physical one, and the permissions."""


class Tlb:
    """Up to ``capacity`` translations of pages of any sizes, by tag.

    The entry that was inserted longest ago makes room for a new one; a look-up changes nothing.  Where pages of several sizes
    translate one address, the smallest answers.  ``permissions`` is any number from 0 to 255: the TLB only keeps it, and an absent
    entry can be kept as one without permissions.

    Requests that are made together (``lookup_many``, then ``insert_many`` of what was missed) are in flight together: all
    of them are looked up before the first walk of a table returns, so that what the TLB holds, stale or not, answers for all.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self._tags: dict[Tag, dict[int, _Pages]] = {}
        self._order: OrderedDict[tuple[Tag, int, int], None] = OrderedDict()
        self._arrays: dict[tuple[Tag, int], _Sorted] = {}

    def __len__(self) -> int:
        return len(self._order)

    # ---- one by one --------------------------------------------------------------------------------------------------

    def lookup(self, tag: Tag, iova: int) -> tuple[int, int] | None:
        """The physical address of ``iova`` (bytes) and the permissions; ``None`` where nothing is kept."""
        sizes = self._tags.get(tag)
        if sizes is not None:
            for shift, pages in sizes.items():
                found = pages.get(iova >> shift)
                if found is not None:
                    return found[0] + iova & LAST, found[1]
        return None

    def insert(self, tag: Tag, iova: int, shift: int, physical: int, permissions: int) -> None:
        """Keep the translation of the page of ``1 << shift`` bytes around ``iova``, which is at ``physical``."""
        pages = self._pages(tag, shift)
        self._put(tag, shift, pages, iova >> shift, (physical - iova & LAST, permissions))

    def _pages(self, tag: Tag, shift: int) -> _Pages:
        sizes = self._tags.setdefault(tag, {})
        pages = sizes.get(shift)
        if pages is None:
            pages = {}
            self._tags[tag] = dict(sorted([*sizes.items(), (shift, pages)]))
        return pages

    def _put(self, tag: Tag, shift: int, pages: _Pages, page: int, value: tuple[int, int]) -> None:
        key = (tag, shift, page)
        if page in pages:
            self._order.move_to_end(key)
        else:
            self._order[key] = None
            if len(self._order) > self.capacity:
                self._drop(next(iter(self._order)))
        pages[page] = value
        self._arrays.pop((tag, shift), None)

    def _drop(self, key: tuple[Tag, int, int]) -> None:
        tag, shift, page = key
        del self._order[key]
        del self._tags[tag][shift][page]
        self._arrays.pop((tag, shift), None)

    # ---- many at once ------------------------------------------------------------------------------------------------

    def lookup_many(self, tag: Tag, iovas: Addresses) -> tuple[NDArray[np.bool_], Addresses, Permissions]:
        """Which addresses are kept, and for those the physical addresses and permissions (0 for the others)."""
        hits = np.zeros(len(iovas), dtype=np.bool_)
        physical = np.zeros(len(iovas), dtype=np.uint64)
        permissions = np.zeros(len(iovas), dtype=np.uint8)
        sizes = self._tags.get(tag, {})
        if len(iovas) < FEW:
            for at, iova in enumerate(iovas.tolist()):
                found = self.lookup(tag, iova)
                if found is not None:
                    hits[at], physical[at], permissions[at] = True, *found
            return hits, physical, permissions
        for shift in reversed(sizes):  # the smallest last, so that it wins
            pages = sizes[shift]
            if not pages:
                continue
            known = self._arrays.get((tag, shift))
            if known is None:
                known = self._arrays[tag, shift] = _Sorted(pages)
            which, entry = known.find(iovas >> np.uint64(shift))
            hits[which] = True
            physical[which] = iovas[which] + known.offsets[entry]
            permissions[which] = known.permissions[entry]
        return hits, physical, permissions

    def insert_many(self, tag: Tag, shift: int, iovas: Addresses, physical: Addresses, permissions: Permissions) -> None:
        """Insert many pages of one size, in order: the same as one after another."""
        pages = self._pages(tag, shift)
        numbers = iovas >> np.uint64(shift)
        last = _last_of_each(numbers, self.capacity)
        offsets = (physical[last] - iovas[last]).tolist()
        for page, offset, allowed in zip(numbers[last].tolist(), offsets, permissions[last].tolist(), strict=True):
            self._put(tag, shift, pages, page, (offset, allowed))

    # ---- forgetting --------------------------------------------------------------------------------------------------

    def invalidate(self, matches: Tag | Callable[[Tag], bool], first: int = 0, last: int = LAST) -> int:
        """Forget what overlaps the bytes ``first``..``last``, of one tag or of those for which a function says so.

        Returns how many entries that were.  Pages of any size that overlap the range go as a whole.
        """
        tags = [tag for tag in self._tags if matches(tag)] if callable(matches) else [matches] if matches in self._tags else []
        gone = 0
        for tag in tags:
            for shift, pages in self._tags[tag].items():
                low, high = first >> shift, last >> shift
                if high - low < len(pages):
                    found = [page for page in range(low, high + 1) if page in pages]
                elif low == 0 and high == LAST >> shift:
                    found = list(pages)
                else:
                    found = [page for page in pages if low <= page <= high]
                for page in found:
                    self._drop((tag, shift, page))
                gone += len(found)
            if not any(self._tags[tag].values()):
                del self._tags[tag]
        return gone

    def clear(self) -> None:
        """Forget everything."""
        self._tags.clear()
        self._order.clear()
        self._arrays.clear()


class _Sorted:
    """The pages of one tag and size as arrays, for searching many at once."""

    def __init__(self, pages: _Pages) -> None:
        numbers = np.fromiter(pages, dtype=np.uint64, count=len(pages))
        order = np.argsort(numbers)
        self.numbers = numbers[order]
        self.offsets = np.fromiter((value[0] for value in pages.values()), dtype=np.uint64, count=len(pages))[order]
        self.permissions = np.fromiter((value[1] for value in pages.values()), dtype=np.uint8, count=len(pages))[order]
        # Most addresses of a batch are not kept: their low bits tell nearly all of those apart.
        self._sieve = np.zeros(_SIEVE, dtype=np.bool_)
        self._sieve[self.numbers & np.uint64(_SIEVE - 1)] = True

    def find(self, wanted: Addresses) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the wanted page numbers are there, and where each of those is in the arrays."""
        which = np.flatnonzero(self._sieve[wanted & np.uint64(_SIEVE - 1)])
        wanted = wanted[which]
        at = np.searchsorted(self.numbers, wanted)
        at[at == len(self.numbers)] = 0
        there = self.numbers[at] == wanted
        return which[there], at[there]


def _last_of_each(numbers: Addresses, limit: int) -> NDArray[np.int64]:
    """Where each of the last ``limit`` different numbers stands for the last time, in order."""
    length = len(numbers)
    take = min(length, 2 * limit)
    while True:
        tail = numbers[length - take :]
        _, back = np.unique(tail[::-1], return_index=True)
        if len(back) >= limit or take == length:
            return np.sort(length - 1 - back)[-limit:]
        take = min(length, 2 * take)
