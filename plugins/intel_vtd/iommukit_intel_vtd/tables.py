"""The formats of page tables as the driver writes them (VT-d specification 9.7, 9.8)."""

from __future__ import annotations

from functools import lru_cache

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Entry, Format, Level

DEEPEST = 5
ADDRESS = 0x000F_FFFF_FFFF_F000
LARGE = 1 << 7
WRITE = int(Prot.WRITE)
ALLOWED = int(Prot.READ | Prot.WRITE)
"""The same bits in a protection and in an entry of the second stage."""
LARGEST_LEVEL = 2
"""Pages are 4 KiB, 2 MiB or 1 GiB: those of levels 0 to 2."""


class _VtdFormat(Format):
    """What both stages have in common: tables of 512 entries, and where the address and the size bit stand."""

    levels = tuple(Level(12 + 9 * number, 9) for number in range(DEEPEST))

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """Whether the size bit is set, where there is one."""
        return entry & LARGE != 0 if level <= LARGEST_LEVEL else entry & 0 != 0

    def address(self, entry: Entry, level: int) -> Entry:
        """The address bits."""
        return entry & ADDRESS

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        """Levels 0 to 2 hold pages."""
        for level in range(LARGEST_LEVEL + 1):
            if pgsize == 1 << self.levels[level].shift:
                return level, 1
        raise IommuError("EINVAL", f"no page has {pgsize:#x} bytes")


class SecondStage(_VtdFormat):
    """VT-d's own format: bit 0 lets read, bit 1 write; an entry without both is absent."""

    def present(self, entry: Entry, level: int) -> Entry:
        """Whether anything is allowed."""
        return entry & 0b11 != 0

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """Read and write as asked for."""
        allowed = prot & ALLOWED
        if not allowed:
            raise IommuError("EINVAL", "a mapping that allows nothing")
        return allowed | (LARGE if level else 0)

    def table(self, level: int) -> int:
        """Tables allow all, their leaves decide."""
        return 0b11


class FirstStage(_VtdFormat):
    """The processor's format: present 0, write 1, user 2, accessed 5, dirty 6.

    What is mapped can be read.  Accessed and dirty are set from the start, so that the unit never needs to write entries.
    """

    PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6

    def present(self, entry: Entry, level: int) -> Entry:
        """Bit 0."""
        return entry & self.PRESENT != 0

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """Write as asked for; read always."""
        if not prot & ALLOWED:
            raise IommuError("EINVAL", "a mapping that allows nothing")
        bits = self.PRESENT | self.USER | self.ACCESSED | (LARGE if level else 0)
        return bits | (self.WRITABLE | self.DIRTY if prot & WRITE else 0)

    def table(self, level: int) -> int:
        """Tables allow all, their leaves decide."""
        return self.PRESENT | self.WRITABLE | self.USER | self.ACCESSED


@lru_cache(maxsize=2)
def table_format(first_stage: bool) -> Format:
    """The format of a stage."""
    return FirstStage() if first_stage else SecondStage()
