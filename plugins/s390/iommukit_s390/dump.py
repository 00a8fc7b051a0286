"""Reading a function's I/O translation tables out of a memory, for ``iommukit walk``.

Levels are counted here from the page table, 0, to the region-first table, 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from iommukit.errors import InputError
from iommukit.hw.decode import READ, WRITE, Decoded, Kind, TableFormat, TableLevel, pages
from iommukit.hw.walk import Mode, Step, Walk
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
    SHIFT,
    TABLE_BITS,
    TABLE_LENGTH,
    TABLE_OFFSET,
    TABLE_ORIGIN,
    TABLE_TYPE,
    TableType,
)

if TYPE_CHECKING:
    from iommukit.hw.memory import TableReader, Words

_SEGMENT = 1
_NAMES = {
    TableType.SEGMENT: "segment-table entry",
    TableType.REGION_THIRD: "region-third-table entry",
    TableType.REGION_SECOND: "region-second-table entry",
    TableType.REGION_FIRST: "region-first-table entry",
}
_QUARTER = 1 << TABLE_BITS - 2


class ZpciTables(TableFormat):
    """Big-endian entries, as dynamic address translation has them."""

    big_endian = True
    levels = {
        0: TableLevel("page-table entry", PAGE_SHIFT, PAGE_BITS),
        **{type + 1: TableLevel(name, SHIFT[type], TABLE_BITS) for type, name in _NAMES.items()},
    }

    def decode(self, level: int, entries: Words) -> Decoded:
        """Invalid, a table, a frame of 1 MiB or a page; bad where the type or the length cannot be."""
        rights = np.where(entries & np.uint64(PROTECT), READ, READ | WRITE).astype(np.uint8)
        if not level:
            kind = np.where(entries & np.uint64(PAGE_INVALID), Kind.ABSENT, Kind.PAGE)
            return Decoded(kind.astype(np.uint8), entries & np.uint64(PAGE_FRAME), rights)
        large = (entries & np.uint64(FORMAT_CONTROL)) != 0 if level == _SEGMENT else np.zeros(len(entries), dtype=np.bool_)
        table = entries & np.uint64(PAGE_TABLE_ORIGIN if level == _SEGMENT else TABLE_ORIGIN)
        bad = ((entries & np.uint64(TABLE_TYPE)) >> np.uint64(2) != level - 1) | (entries == 0)
        if level > _SEGMENT:
            bad |= (entries & np.uint64(TABLE_OFFSET)) != 0
        kind = np.where(bad, Kind.BAD, np.where(large, Kind.PAGE, Kind.TABLE))
        kind = np.where(entries & np.uint64(INVALID), Kind.ABSENT, kind)
        return Decoded(kind.astype(np.uint8), np.where(large, entries & np.uint64(SEGMENT_FRAME), table), rights)

    def explain(self, level: int, value: int) -> str:
        """The bits that are set, by their letters, and the address."""
        if not level:
            letters = [("I", value & PAGE_INVALID), ("P", value & PROTECT)]
            address = value & PAGE_FRAME
        else:
            large = level == _SEGMENT and value & FORMAT_CONTROL
            letters = [("I", value & INVALID), ("P", value & PROTECT), ("FC", large)]
            address = value & (SEGMENT_FRAME if large else PAGE_TABLE_ORIGIN if level == _SEGMENT else TABLE_ORIGIN)
        words = [f"TT={(value & TABLE_TYPE) >> 2}"] if level else []
        words += [letter for letter, there in letters if there]
        if level > _SEGMENT:
            words.append(f"TF={(value & TABLE_OFFSET) >> 6} TL={value & TABLE_LENGTH}")
        return " ".join([*words, f"address {address:#x}"])

    def next_count(self, level: int, value: int) -> int | None:
        """A region-table entry says how many quarters the next table has."""
        return (value & TABLE_LENGTH) * _QUARTER + _QUARTER if level > _SEGMENT else None

    def fault(self, level: int, value: int) -> str:
        """What is wrong with an entry."""
        if not value:
            return "an entry of zeros"
        found = (value & TABLE_TYPE) >> 2
        if found != level - 1:
            return f"the entry is of a table of type {found}, and the table is of type {level - 1}"
        return "the next table lacks its first entries (TF), which is not read here"


TABLES = ZpciTables()


def walk(memory: TableReader, iota: int, requester: int | None, iova: int | None) -> Walk:
    """What an anchor translates.  Raises ``InputError`` for an anchor that designates frames without tables."""
    designation = (iota & IOTA_TYPE) >> IOTA_TYPE_SHIFT
    anchor = Step("I/O translation anchor", 0, iota, f"T={int(bool(iota & IOTA_TRANSLATE))} DT={designation}")
    name = requester or 0
    if not iota & IOTA_TRANSLATE:
        return Walk(name, Mode.PASS_THROUGH, (anchor,))
    if designation > TableType.REGION_FIRST:
        raise InputError(f"designation type {designation} in {iota:#x} has no tables", place="iota")
    found = pages(memory, TABLES, iota & IOTA_ORIGIN, designation + 1, iova=iova)
    return Walk(name, Mode.TRANSLATED, (anchor,), found)
