"""What stays translated until it is refreshed: a hypervisor's shadow of the tables, or the machine's own buffer.

A hypervisor (z/VM, KVM) shadows a function's tables: RPCIT makes it read them, and nothing else does.  A machine without one reads
tables as requests come and keeps what it has read, pages and segment-table entries, until RPCIT.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.memory import PhysicalMemory, Words
from iommukit.hw.tlb import Tlb
from iommukit_s390.layout import PAGE_FRAME, PAGE_SHIFT, PROTECT, SEGMENT_SHIFT
from iommukit_s390.model.walker import (
    PAGES,
    VALID,
    Anchor,
    TableError,
    page_word,
    page_words,
    segment_entry,
    segment_words,
    segments,
)

FEW = 16
"""Up to so many pages are refreshed one by one."""
CHUNK = 1 << 12
"""So many segments at once (8 MiB of words)."""
_READABLE, _WRITABLE = 1, 2


class Shadow:
    """A hypervisor's shadow of one function's tables, a row of 256 words for each segment with anything in it.

    ``limit``, where it is set, is how many pages it can hold (pinned memory); ``pages`` how many it holds.
    """

    def __init__(self, memory: PhysicalMemory, anchor: Anchor, limit: int | None = None) -> None:
        self._memory = memory
        self._anchor = anchor
        self.limit = limit
        self.pages = 0
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._words = np.zeros((0, PAGES), dtype=np.uint64)
        self._quads = self._words.reshape(-1).data
        self._sorted: tuple[Words, NDArray[np.int64]] | None = None

    # ---- requests ----------------------------------------------------------------------------------------------------

    def translate(self, iova: int) -> int:
        """The word for an address; 0 where the shadow has none."""
        row = self._rows.get(iova >> SEGMENT_SHIFT)
        return 0 if row is None else self._quads[row << 8 | iova >> PAGE_SHIFT & PAGES - 1]

    def translate_many(self, iovas: Words) -> tuple[Words, NDArray[np.int64]]:
        """The words for many addresses; and event codes, of which there are none here: a wrong table is found by RPCIT."""
        if self._sorted is None:
            rows = sorted(self._rows.items())
            self._sorted = np.array([key for key, _ in rows], dtype=np.uint64), np.array([row for _, row in rows], dtype=np.int64)
        keys, where = self._sorted
        words = np.zeros(len(iovas), dtype=np.uint64)
        if len(keys):
            wanted = iovas >> np.uint64(SEGMENT_SHIFT)
            at = np.searchsorted(keys, wanted)
            at[at == len(keys)] = 0
            index = where[at] << 8 | (iovas >> np.uint64(PAGE_SHIFT) & np.uint64(PAGES - 1)).view(np.int64)
            words = self._words.reshape(-1).take(index) * (keys[at] == wanted)
        return words, np.zeros(len(iovas), dtype=np.int64)

    # ---- RPCIT -------------------------------------------------------------------------------------------------------

    def refresh(self, first: int, last: int) -> bool:
        """Read the tables for the bytes ``first``..``last``.  False where not all that is valid there found room.

        Where there is too little, it goes over the range once more: what the first pass has dropped makes room.  Raises
        ``TableError``; what was read before the wrong entry may be shadowed then.
        """
        return self._pass(first, last) or self._pass(first, last)

    def _pass(self, first: int, last: int) -> bool:
        if last - first < FEW << PAGE_SHIFT:
            return self._refresh_few(first, last)
        anchor = self._anchor
        last = min(last, anchor.span - 1)
        numbers, entries = segments(self._memory, anchor, first, last)
        self._forget(first, last, numbers)
        complete = True
        for start in range(0, len(numbers), CHUNK):
            some = numbers[start : start + CHUNK]
            words = segment_words(self._memory, entries[start : start + CHUNK])
            complete &= self._take(some, words, first, last)
        return complete

    def _refresh_few(self, first: int, last: int) -> bool:
        complete = True
        segment = 0
        for page in range(first >> PAGE_SHIFT, (last >> PAGE_SHIFT) + 1):
            iova = page << PAGE_SHIFT
            if not segment or not page & PAGES - 1:
                segment = segment_entry(self._memory, self._anchor, iova)
            word = page_word(self._memory, segment, iova)
            row = self._rows.get(page >> 8)
            if row is None:
                if not word:
                    continue
                row = self._row(page >> 8)
            at = row << 8 | page & PAGES - 1
            old = self._quads[at]
            if word and not old and self.limit is not None and self.pages >= self.limit:
                complete = False
                continue
            self._quads[at] = word
            self.pages += bool(word) - bool(old)
        return complete

    def _take(self, numbers: Words, words: Words, first: int, last: int) -> bool:
        """Put the words of rising segments into the shadow, as far as they lie in the range and there is room."""
        before = first - (int(numbers[0]) << SEGMENT_SHIFT) >> PAGE_SHIFT
        after = (last - (int(numbers[-1]) << SEGMENT_SHIFT) >> PAGE_SHIFT) + 1
        rows = self._rows_of(numbers)
        kept = self._words[rows]
        if before > 0:
            words[0, :before] = kept[0, :before]
        if after < PAGES:
            words[-1, after:] = kept[-1, after:]
        self.pages -= int(np.count_nonzero((words == 0) & (kept != 0)))
        new = (words != 0) & (kept == 0)
        gained = int(np.count_nonzero(new))
        complete = True
        if self.limit is not None and self.pages + gained > self.limit:
            room = max(self.limit - self.pages, 0)
            over = np.flatnonzero(new.reshape(-1))[room:]
            words.reshape(-1)[over] = 0
            gained = room
            complete = False
        self._words[rows] = words
        self.pages += gained
        return complete

    def _forget(self, first: int, last: int, keep: Words) -> None:
        """Drop what the shadow has in a range, but for the segments that are about to be read again."""
        low, high = first >> SEGMENT_SHIFT, last >> SEGMENT_SHIFT
        kept = set(keep.tolist())
        if high - low < len(self._rows):
            gone = [number for number in range(low, high + 1) if number in self._rows and number not in kept]
        else:
            gone = [number for number in self._rows if low <= number <= high and number not in kept]
        for number in gone:
            row = self._words[self._rows[number]]
            begin = max(first - (number << SEGMENT_SHIFT), 0) >> PAGE_SHIFT
            end = min((last - (number << SEGMENT_SHIFT) >> PAGE_SHIFT) + 1, PAGES)
            self.pages -= int(np.count_nonzero(row[begin:end]))
            row[begin:end] = 0
            if end - begin == PAGES:
                self._free.append(self._rows.pop(number))
                self._sorted = None

    def _rows_of(self, numbers: Words) -> NDArray[np.int64]:
        """The rows of many segments."""
        wanted = numbers.tolist()
        missing = [number for number in wanted if number not in self._rows]
        if len(missing) > len(self._free):
            self._grow(len(missing) - len(self._free))
        for number in missing:
            self._rows[number] = self._free.pop()
            self._sorted = None
        return np.fromiter((self._rows[number] for number in wanted), dtype=np.int64, count=len(wanted))

    def _row(self, number: int) -> int:
        """A segment's row, made where it is missing."""
        row = self._rows.get(number)
        if row is None:
            if not self._free:
                self._grow(1)
            row = self._rows[number] = self._free.pop()
            self._sorted = None
        return row

    def _grow(self, wanted: int) -> None:
        have = len(self._words)
        more = max(wanted, have, 16)
        self._quads.release()
        self._words = np.concatenate((self._words, np.zeros((more, PAGES), dtype=np.uint64)))
        self._quads = self._words.reshape(-1).data
        self._free += range(have + more - 1, have - 1, -1)


class Buffer:
    """What a machine without a hypervisor keeps: pages in a TLB, and segment-table entries, which both last until RPCIT."""

    SEGMENTS = 4096

    def __init__(self, memory: PhysicalMemory, anchor: Anchor) -> None:
        self._memory = memory
        self._anchor = anchor
        self._tlb = Tlb()
        self._segments: dict[int, int] = {}

    def translate(self, iova: int) -> int:
        """The word for an address, kept or from the tables; an invalid entry is not kept.  Raises ``TableError``."""
        found = self._tlb.lookup(None, iova)
        if found is not None:
            return found[0] & PAGE_FRAME | VALID | (0 if found[1] & _WRITABLE else PROTECT)
        number = iova >> SEGMENT_SHIFT
        segment = self._segments.get(number)
        if segment is None:
            segment = segment_entry(self._memory, self._anchor, iova)
            if segment:
                if len(self._segments) >= self.SEGMENTS:
                    self._segments.pop(next(iter(self._segments)))
                self._segments[number] = segment
        word = page_word(self._memory, segment, iova)
        if word:
            rights = _READABLE if word & PROTECT else _READABLE | _WRITABLE
            self._tlb.insert(None, iova & PAGE_FRAME, PAGE_SHIFT, word & PAGE_FRAME, rights)
        return word

    def translate_many(self, iovas: Words) -> tuple[Words, NDArray[np.int64]]:
        """The words for many addresses in flight together, and the event codes of those whose tables are wrong, else 0."""
        hits, physical, rights = self._tlb.lookup_many(None, iovas)
        errors = np.zeros(len(iovas), dtype=np.int64)
        protect = np.where(rights & _WRITABLE, 0, PROTECT).astype(np.uint64)
        words = (physical & np.uint64(PAGE_FRAME) | protect | np.uint64(VALID)) * hits
        missed = np.flatnonzero(~hits)
        if len(missed):
            asked = iovas[missed]
            words[missed], errors[missed] = self._walk(asked)
            valid = missed[words[missed] != 0]
            read = words[valid]
            allowed = np.where(read & np.uint64(PROTECT), _READABLE, _READABLE | _WRITABLE).astype(np.uint8)
            page = np.uint64(PAGE_FRAME)
            self._tlb.insert_many(None, PAGE_SHIFT, iovas[valid] & page, read & page, allowed)
        return words, errors

    def _walk(self, iovas: Words) -> tuple[Words, NDArray[np.int64]]:
        """The tables' answers, except that segment-table entries that are kept outrank them."""
        words, errors = page_words(self._memory, self._anchor, iovas)
        if self._segments:
            numbers = iovas >> np.uint64(SEGMENT_SHIFT)
            for at in np.flatnonzero(np.isin(numbers, np.fromiter(self._segments, dtype=np.uint64))).tolist():
                iova = int(iovas[at])
                try:
                    words[at], errors[at] = page_word(self._memory, self._segments[iova >> SEGMENT_SHIFT], iova), 0
                except TableError as error:
                    words[at], errors[at] = 0, error.code
        return words, errors

    def refresh(self, first: int, last: int) -> bool:
        """Forget the bytes ``first``..``last``; there is always room."""
        self._tlb.invalidate(None, first, last)
        low, high = first >> SEGMENT_SHIFT, last >> SEGMENT_SHIFT
        if low == high:
            self._segments.pop(low, None)
        else:
            for number in [number for number in self._segments if low <= number <= high]:
                del self._segments[number]
        return True


class Identity:
    """Relaxed translation: no tables; the first address of the function's DMA range is the first byte of memory."""

    def __init__(self, start: int) -> None:
        self._start = start

    def translate(self, iova: int) -> int:
        """The word for an address."""
        return iova - self._start & PAGE_FRAME | VALID

    def translate_many(self, iovas: Words) -> tuple[Words, NDArray[np.int64]]:
        """The words for many addresses; nothing can be wrong."""
        return iovas - np.uint64(self._start) & np.uint64(PAGE_FRAME) | np.uint64(VALID), np.zeros(len(iovas), dtype=np.int64)

    def refresh(self, first: int, last: int) -> bool:
        """There is nothing to refresh."""
        return True


Translation = Shadow | Buffer | Identity
"""What answers a function's requests once a translation is registered."""
