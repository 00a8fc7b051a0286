"""A small format of tables, written by hand, and a vendor that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from iommukit.errors import InputError
from iommukit.hookspecs import VendorDeclaration, hookimpl
from iommukit.hw.decode import Decoded, Kind, TableFormat, TableLevel, pages
from iommukit.hw.memory import TableReader, Words
from iommukit.hw.walk import Mode, Step, Walk
from iommukit.vendors import VendorRegistry

READ, WRITE, PAGE, BAD = 1, 2, 4, 8
SIZE_SHIFT = 4
"""Bits 4 to 8: 2^n entries of the table make one page."""
ADDRESS = 0x000F_FFFF_FFFF_F000
ROOT = 0x10_0000


class ToyFormat(TableFormat):
    """Three levels of 4 KiB tables; absent where neither read nor write is set."""

    levels = {level: TableLevel(f"E{level}", 12 + 9 * (level - 1), 9) for level in (1, 2, 3)}

    def decode(self, level: int, entries: Words) -> Decoded:
        rights = (entries & np.uint64(READ | WRITE)).astype(np.uint8)
        page = np.ones(len(entries), bool) if level == 1 else entries & np.uint64(PAGE) != 0
        kind = np.where(page, Kind.PAGE, Kind.TABLE)
        kind = np.where(entries & np.uint64(BAD), Kind.BAD, kind)
        kind = np.where(rights == 0, Kind.ABSENT, kind).astype(np.uint8)
        more = entries >> np.uint64(SIZE_SHIFT) & np.uint64(31)
        size = np.uint64(1 << self.levels[level].shift) << more
        return Decoded(kind, entries & np.uint64(ADDRESS), rights, size if more.any() else None)

    def explain(self, level: int, value: int) -> str:
        return f"R={value & 1} W={value >> 1 & 1}"


TOY = ToyFormat()


@dataclass
class Ram(TableReader):
    """Memory as a dictionary of tables; what is not there is not in the dump."""

    tables: dict[int, list[int]] = field(default_factory=dict)
    reads: int = 0

    def _table(self, address: int) -> list[int]:
        if address not in self.tables:
            raise InputError(f"no memory at {address:#x}")
        return self.tables[address]

    def word(self, address: int) -> int:
        return self._table(address & ~0xFFF)[(address & 0xFFF) >> 3]

    def table(self, address: int, count: int) -> Words:
        self.reads += 1
        at = (address & 0xFFF) >> 3
        return np.array(self._table(address & ~0xFFF)[at : at + count], dtype=np.uint64)

    def big_word(self, address: int) -> int:
        raise AssertionError

    def big_table(self, address: int, count: int) -> Words:
        raise AssertionError

    def segments(self) -> Iterator[tuple[int, bytes]]:
        for address, words in sorted(self.tables.items()):
            yield address, np.array(words, dtype="<u8").tobytes()

    def put(self, iova: int, physical: int, level: int = 1, flags: int = READ | WRITE) -> None:
        """Write one page's entry, with the tables on the way."""
        table = ROOT
        self.tables.setdefault(ROOT, [0] * 512)
        for above in range(3, level, -1):
            index = iova >> TOY.levels[above].shift & 511
            entry = self.tables[table][index]
            if not entry:
                entry = (ROOT + 0x1000 * len(self.tables)) | READ | WRITE
                self.tables[table][index] = entry
                self.tables[entry & ADDRESS] = [0] * 512
            table = entry & ADDRESS
        self.tables[table][iova >> TOY.levels[level].shift & 511] = physical | flags | (PAGE if level > 1 else 0)


class ToyWalker:
    """A vendor that does nothing but read tables: device 0x18 is translated, 0x20 bypasses, 0x28's entry is broken."""

    @hookimpl
    def declare(self) -> VendorDeclaration:
        return VendorDeclaration(title="a toy", arch=("x86_64",), capabilities=frozenset({"pci"}))

    @hookimpl
    def table_roots(self) -> Mapping[str, str]:
        return {"root": "where the tables begin", "mode": "1 for nothing"}

    @hookimpl
    def walk_tables(self, memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterable[Walk]:
        entry = Step("device", 0x1000, 0x99, "V=1")
        walks: Sequence[Walk] = (
            Walk(0x18, Mode.TRANSLATED, (entry,), pages(memory, TOY, roots["root"], 3, iova=iova), domain=4),
            Walk(0x20, Mode.PASS_THROUGH, (entry,)),
            Walk(0x28, Mode.BAD, (entry,), reason="V=1 with T=7"),
        )
        return [walk for walk in walks if requester in (None, walk.requester)]


class Blind:
    """A vendor whose tables nobody reads."""

    @hookimpl
    def declare(self) -> VendorDeclaration:
        return VendorDeclaration(title="blind", arch=("x86_64",), capabilities=frozenset())


def registry() -> VendorRegistry:
    found = VendorRegistry()
    found.register(ToyWalker(), "toy")
    found.register(Blind(), "blind")
    return found
