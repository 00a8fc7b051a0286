"""How the hardware reads I/O translation tables: one address, many addresses, or a whole range.

Everything is decoded from big-endian words in memory (``layout.py`` names the facts); the driver's tables (``tables.py``) have no
part in it.  A translation is a *word* of this model: the frame's address with ``PROTECT`` and ``VALID`` in its low bits, 0 for
none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iommukit.errors import InputError
from iommukit.hw.memory import PhysicalMemory, Words
from iommukit_s390.layout import (
    FORMAT_CONTROL,
    INVALID,
    IOTA_ORIGIN,
    IOTA_TRANSLATE,
    IOTA_TYPE,
    IOTA_TYPE_SHIFT,
    PAGE_BITS,
    PAGE_FRAME,
    PAGE_INVALID,
    PAGE_SHIFT,
    PAGE_TABLE_ORIGIN,
    PROTECT,
    SEGMENT_FRAME,
    SEGMENT_SHIFT,
    SHIFT,
    TABLE_BITS,
    TABLE_LENGTH,
    TABLE_OFFSET,
    TABLE_ORIGIN,
    TABLE_TYPE,
    EventCode,
    TableType,
)

VALID = 1
PAGES = 1 << PAGE_BITS
"""Pages of a segment."""
ENTRIES = 1 << TABLE_BITS
QUARTER = TABLE_BITS - 2
"""TF and TL count quarters of a table: what lies above so many bits of an index."""
_SHIFTS = tuple(SHIFT[type] for type in sorted(TableType))
_NUMBERS = np.arange(PAGES, dtype=np.uint64) << np.uint64(PAGE_SHIFT)


class TableError(Exception):
    """A walk found what cannot be, or is not there: the event code and the address (bytes) that was being translated."""

    def __init__(self, code: EventCode, iova: int) -> None:
        super().__init__(f"{code.name} at {iova:#x}")
        self.code = code
        self.iova = iova


@dataclass(frozen=True, slots=True)
class Anchor:
    """A decoded I/O translation anchor (IOTA)."""

    translate: bool
    type: int
    """DT; up to 3 it is a ``TableType``."""
    origin: int

    @classmethod
    def decode(cls, iota: int) -> Anchor:
        """The fields of the anchor."""
        return cls(bool(iota & IOTA_TRANSLATE), (iota & IOTA_TYPE) >> IOTA_TYPE_SHIFT, iota & IOTA_ORIGIN)

    @property
    def span(self) -> int:
        """The first address (bytes) beyond what the designated table can hold."""
        return 1 << _SHIFTS[self.type] + TABLE_BITS


def segment_entry(memory: PhysicalMemory, anchor: Anchor, iova: int) -> int:
    """The segment-table entry for an address, with the protection of the entries above it; 0 where an entry is invalid.

    Raises ``TableError``.
    """
    table = anchor.origin
    protect = 0
    first, last = 0, 3
    for type in range(anchor.type, -1, -1):
        index = iova >> _SHIFTS[type] & ENTRIES - 1
        if not first <= index >> QUARTER <= last:
            raise TableError(EventCode.TABLE_LENGTH, iova)
        entry = _read(memory, table + 8 * index, iova)
        if not entry:
            raise TableError(EventCode.TABLE_ENTRY, iova)
        if entry & INVALID:
            return 0
        if (entry & TABLE_TYPE) >> 2 != type:
            raise TableError(EventCode.TABLE_TYPE, iova)
        protect |= entry & PROTECT
        first, last = (entry & TABLE_OFFSET) >> 6, entry & TABLE_LENGTH
        table = entry & TABLE_ORIGIN
    return entry | protect


def page_word(memory: PhysicalMemory, segment: int, iova: int) -> int:
    """The translation of one address below a segment-table entry.  Raises ``TableError``."""
    if not segment:
        return 0
    protect = segment & PROTECT
    if segment & FORMAT_CONTROL:
        return segment & SEGMENT_FRAME | iova & PAGE_FRAME & (1 << SEGMENT_SHIFT) - 1 | protect | VALID
    entry = _read(memory, (segment & PAGE_TABLE_ORIGIN) + (iova >> PAGE_SHIFT - 3 & PAGES - 1 << 3), iova)
    if entry & PAGE_INVALID:
        return 0
    return entry & (PAGE_FRAME | PROTECT) | protect | VALID


def _read(memory: PhysicalMemory, address: int, iova: int) -> int:
    try:
        return memory.big_word(address)
    except InputError:
        raise TableError(EventCode.TABLE_ENTRY, iova) from None


def segments(memory: PhysicalMemory, anchor: Anchor, first: int, last: int) -> tuple[Words, Words]:
    """The valid segments among the bytes ``first``..``last``: their numbers, rising, and their entries as from ``segment_entry``.

    Only tables that valid entries name are read, so that a wide and empty range costs little.  Raises ``TableError`` for the lowest
    address at which a table is wrong.
    """
    numbers: list[Words] = []
    entries: list[Words] = []
    for origin, found in _segments(memory, anchor, first, last):
        numbers.append(origin)
        entries.append(found)
    if not numbers:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
    return np.concatenate(numbers), np.concatenate(entries)


def _segments(memory: PhysicalMemory, anchor: Anchor, first: int, last: int) -> Iterator[tuple[Words, Words]]:
    todo: list[TableError | tuple[int, int, int, int, int, int]] = [(anchor.type, anchor.origin, 0, 0, 0, 3)]
    """From the last to the first: tables, and errors that come up where nothing below them is wrong."""
    while todo:
        table_or_error = todo.pop()
        if isinstance(table_or_error, TableError):
            raise table_or_error
        type, table, start, protect, low_quarter, high_quarter = table_or_error
        shift = _SHIFTS[type]
        low = max(first - start, 0) >> shift
        high = min(last - start >> shift, ENTRIES - 1)
        stop: TableError | None = None
        if not low_quarter <= low >> QUARTER <= high_quarter:
            raise TableError(EventCode.TABLE_LENGTH, max(first, start + (low << shift)))
        if high >> QUARTER > high_quarter:
            high = (high_quarter + 1 << QUARTER) - 1
            stop = TableError(EventCode.TABLE_LENGTH, start + (high + 1 << shift))
        if not memory.holds(table, ENTRIES * 8):
            raise TableError(EventCode.TABLE_ENTRY, max(first, start))
        found = memory.big_table(table + 8 * low, high - low + 1)
        valid = (found & np.uint64(INVALID)) == 0
        other = valid & ((found & np.uint64(TABLE_TYPE)) != type << 2)
        wrong = other | (found == 0)
        if type == TableType.SEGMENT:
            wrong |= valid & ~_inside(memory, found)
        if wrong.any():
            at = int(wrong.argmax())
            code = EventCode.TABLE_TYPE if other[at] and found[at] else EventCode.TABLE_ENTRY
            stop = TableError(code, max(first, start + (low + at << shift)))
            found, valid = found[:at], valid[:at]
        if stop is not None:
            todo.append(stop)
        which = np.flatnonzero(valid)
        found = found[which] | np.uint64(protect)
        if type == TableType.SEGMENT:
            yield which.astype(np.uint64) + np.uint64((start >> shift) + low), found
            continue
        below = [
            (
                type - 1,
                entry & TABLE_ORIGIN,
                start + (low + at << shift),
                entry & PROTECT,
                (entry & TABLE_OFFSET) >> 6,
                entry & TABLE_LENGTH,
            )
            for at, entry in zip(which.tolist(), found.tolist(), strict=True)
        ]
        todo += reversed(below)


def _inside(memory: PhysicalMemory, entries: Words) -> NDArray[np.bool_]:
    """Whether segment-table entries name frames, or page tables that lie in memory."""
    tables = entries & np.uint64(PAGE_TABLE_ORIGIN)
    frames = (entries & np.uint64(FORMAT_CONTROL)) != 0
    inside: NDArray[np.bool_] = frames | (tables >= np.uint64(memory.base)) & (tables <= np.uint64(memory.end - PAGES * 8))
    return inside


def segment_words(memory: PhysicalMemory, entries: Words) -> Words:
    """The translations of all pages of segments, as ``segments`` answers them: an array of so many rows, each of 256 words."""
    protect = entries & np.uint64(PROTECT)
    frames = (entries & np.uint64(FORMAT_CONTROL)) != 0
    tables = entries & np.uint64(PAGE_TABLE_ORIGIN)
    rows = np.where(frames, np.uint64(0), tables - np.uint64(memory.base) >> np.uint64(PAGE_BITS + 3)).view(np.int64)
    whole = memory.big_words[: len(memory.big_words) // PAGES * PAGES].reshape(-1, PAGES)
    raw = whole.take(rows, axis=0).astype(np.uint64)
    words = raw & np.uint64(PAGE_FRAME | PROTECT)
    words |= np.uint64(VALID)
    words |= protect[:, None]
    words *= (raw & np.uint64(PAGE_INVALID)) == 0
    if frames.any():
        large = entries[frames]
        base = large & np.uint64(SEGMENT_FRAME) | large & np.uint64(PROTECT) | np.uint64(VALID)
        words[frames] = base[:, None] + _NUMBERS
    return words


def page_words(memory: PhysicalMemory, anchor: Anchor, iovas: Words) -> tuple[Words, NDArray[np.int64]]:
    """The translations of many addresses; and the event codes of those whose tables are wrong, 0 for the others."""
    count = len(iovas)
    errors = np.zeros(count, dtype=np.int64)
    going = np.ones(count, dtype=np.bool_)
    """Which addresses have a next table."""
    protect = np.zeros(count, dtype=np.uint64)
    entries = np.full(count, anchor.origin | TABLE_LENGTH, dtype=np.uint64)
    origin = np.uint64(TABLE_ORIGIN)

    def fail(which: NDArray[np.bool_], code: EventCode) -> None:
        wrong = which & going
        if wrong.any():
            errors[wrong] = code
            going[wrong] = False

    def read(index: Words, origin: np.uint64, size: int) -> Words:
        tables = entries & origin
        fail((tables < memory.base) | (tables > np.uint64(memory.end - size)), EventCode.TABLE_ENTRY)
        at = np.where(going, (tables - np.uint64(memory.base) >> np.uint64(3)) + index, 0)
        return memory.big_words.take(at.view(np.int64)).astype(np.uint64)

    for type in range(anchor.type, -1, -1):
        index = iovas >> np.uint64(_SHIFTS[type]) & np.uint64(ENTRIES - 1)
        quarter = index >> np.uint64(QUARTER)
        if type != anchor.type:
            fail(
                (quarter < (entries & np.uint64(TABLE_OFFSET)) >> np.uint64(6)) | (quarter > entries & np.uint64(TABLE_LENGTH)),
                EventCode.TABLE_LENGTH,
            )
        entries = read(index, origin, ENTRIES * 8)
        fail(entries == 0, EventCode.TABLE_ENTRY)
        going &= (entries & np.uint64(INVALID)) == 0
        fail((entries & np.uint64(TABLE_TYPE)) != type << 2, EventCode.TABLE_TYPE)
        protect |= entries & np.uint64(PROTECT)
    frames = going & ((entries & np.uint64(FORMAT_CONTROL)) != 0)
    large = entries & np.uint64(SEGMENT_FRAME) | iovas & np.uint64(PAGE_FRAME & (1 << SEGMENT_SHIFT) - 1)
    going &= ~frames
    pages = read(iovas >> np.uint64(PAGE_SHIFT) & np.uint64(PAGES - 1), np.uint64(PAGE_TABLE_ORIGIN), PAGES * 8)
    going &= (pages & np.uint64(PAGE_INVALID)) == 0
    words = np.where(frames, large, pages & np.uint64(PAGE_FRAME | PROTECT)) | protect | np.uint64(VALID)
    return words * (frames | going), errors
