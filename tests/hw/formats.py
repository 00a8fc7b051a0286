"""Formats of page tables that no hardware has, small enough that edges come up often."""

from __future__ import annotations

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Entry, Format, Level

READ_WRITE = Prot.READ | Prot.WRITE


class Plain(Format):
    """Present in bits 0 and 1, a page above level 0 by bit 7: pages at every level."""

    ADDRESS = 0x000F_FFFF_FFFF_FC00
    LARGE = 1 << 7
    levels = (Level(12, 7), Level(19, 7), Level(26, 8))

    def present(self, entry: Entry, level: int) -> Entry:
        return entry & 3 != 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        return entry & self.LARGE != 0

    def address(self, entry: Entry, level: int) -> Entry:
        return entry & self.ADDRESS

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        if not prot & READ_WRITE:
            raise IommuError("EINVAL", "neither read nor write")
        return prot & READ_WRITE | 1 << 63 | (self.LARGE if level else 0)

    def table(self, level: int) -> int:
        return 3

    def smaller(self, entry: int, level: int) -> int:
        return entry & 3 | 1 << 63 | (self.LARGE if level > 1 else 0)


class Full(Plain):
    """As wide as most real ones: four levels of 512."""

    levels = (Level(12, 9), Level(21, 9), Level(30, 9), Level(39, 9))


class Wide(Plain):
    """Two levels with a root that is wider than other tables."""

    levels = (Level(12, 7), Level(19, 12))


class Big(Format):
    """As on s390: big-endian, entries that map nothing are not zero, levels differ in width."""

    INVALID = (0x400, 0x20, 0x20)
    FRAME = 0x400
    PROTECTED = 0x200
    ADDRESS = 0xFFFF_FFFF_FFFF_F800
    big_endian = True
    levels = (Level(12, 8, empty=0x400), Level(20, 11, empty=0x20), Level(31, 11, empty=0x28))

    def present(self, entry: Entry, level: int) -> Entry:
        return entry & self.INVALID[level] == 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        return entry & self.FRAME != 0

    def address(self, entry: Entry, level: int) -> Entry:
        return entry & self.ADDRESS

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        return (0 if prot & Prot.WRITE else self.PROTECTED) | (self.FRAME if level else 0)

    def table(self, level: int) -> int:
        return level << 2

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        if pgsize > 1 << 20:
            raise IommuError("EINVAL", "no such frame")
        return super().leaf_level(pgsize)

    def smaller(self, entry: int, level: int) -> int:
        return entry & self.PROTECTED


class Sized(Format):
    """As AMD-Vi's: the next level in bits 9 to 11, where 7 means a page whose size the address's low bits tell."""

    ADDRESS = 0x000F_FFFF_FFFF_F000
    levels = (Level(12, 9), Level(21, 9), Level(30, 9), Level(39, 2))
    skips = True

    def present(self, entry: Entry, level: int) -> Entry:
        return entry & 1 != 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        following = entry >> 9 & 7
        return (following == 0) | (following == 7)

    def address(self, entry: Entry, level: int) -> Entry:
        return entry & self.ADDRESS

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        bits = 1 | (prot & READ_WRITE) << 61
        if pgsize == 1 << self.levels[level].shift:
            return bits
        return bits | 7 << 9 | (pgsize // 2 - 1) & self.ADDRESS

    def table(self, level: int) -> int:
        return 1 | level << 9

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        size = pgsize.bit_length() - 1
        if size < 12 or pgsize != 1 << size or size >= 39:
            raise IommuError("EINVAL", "no such page")
        return (size - 12) // 9, 1 << (size - 12) % 9

    def leaf_size(self, entry: Entry, level: int) -> Entry:
        coded = entry & self.ADDRESS | 0xFFF
        many = (coded ^ (1 << 52) - 1) & coded + 1
        seven = (entry >> 9 & 7) // 7
        return many * 2 * seven + (1 << self.levels[level].shift) * (1 - seven)

    def next_level(self, entry: Entry, level: int) -> Entry:
        return (entry >> 9 & 7) - 1


class Split(Plain):
    """As Arm's 52-bit output: address bits 48 to 51 stand in bits 12 to 15 of an entry of 64 KiB pages."""

    levels = (Level(16, 13), Level(29, 10))

    def address(self, entry: Entry, level: int) -> Entry:
        return entry & 0x0000_FFFF_FFFF_0000 | (entry >> 12 & 0xF) << 48

    def encode_address(self, paddr: Entry) -> Entry:
        return paddr & 0x0000_FFFF_FFFF_FFFF | (paddr >> 48) << 12


FORMATS: tuple[Format, ...] = (Plain(), Wide(), Big(), Sized(), Split())
