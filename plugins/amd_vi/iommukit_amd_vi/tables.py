"""The page tables that the driver writes: its two formats, for the engine (``iommukit.hw.radix``).

Format 1 is ``io_pgtable.c``, since 7.2 ``generic_pt/fmt/amdv1.h``; format 2 ``io_pgtable_v2.c``, since 7.2 ``x86_64.h``.
"""

from __future__ import annotations

import numpy as np

from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.format import Entry, Format, Level
from iommukit_amd_vi.layout import (
    GUEST_A,
    GUEST_ADDRESS,
    GUEST_D,
    GUEST_P,
    GUEST_PS,
    GUEST_RW,
    GUEST_US,
    NEXT_LEVEL_SIZED,
    PTE_ADDRESS,
    PTE_FC,
    PTE_IR,
    PTE_IW,
    PTE_NEXT_LEVEL,
    PTE_PR,
)

PAGE = 0x1000
_HOST_LEVELS = 6
_GUEST_LEVELS = 4
_LARGEST = 51
"""No larger page than 2^51 bytes has its size coded in the 52 address bits of an entry."""


class HostTables(Format):
    """Format 1: up to six levels, every power of two as page size.

    A page that is no level's own size takes several equal entries, with next level 7 and the size coded in the address.
    """

    # The root of six levels has 128 entries that are used, in a page of 4 KiB.
    levels = tuple(Level(12 + 9 * number, 9) for number in range(_HOST_LEVELS))

    def present(self, entry: Entry, level: int) -> Entry:
        """PR is set."""
        return (entry & PTE_PR.mask) != 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """Next level 0 or 7."""
        below = entry & PTE_NEXT_LEVEL.mask
        return (below == 0) | (below == PTE_NEXT_LEVEL.mask)

    def address(self, entry: Entry, level: int) -> Entry:
        """Bits 51:12."""
        return entry & PTE_ADDRESS.mask

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """PR, FC, the permissions, and the size where it is not the level's own."""
        bits = PTE_PR.mask | PTE_FC.mask
        if prot & Prot.READ:
            bits |= PTE_IR.mask
        if prot & Prot.WRITE:
            bits |= PTE_IW.mask
        if pgsize != 1 << self.levels[level].shift:
            bits |= NEXT_LEVEL_SIZED << 9 | (pgsize >> 1) - PAGE
        return bits

    def table(self, level: int) -> int:
        """PR, all permissions, and the next level."""
        # A level's number here is that of the mode below it: level 1 names tables of mode 1.
        return PTE_PR.mask | PTE_IR.mask | PTE_IW.mask | level << PTE_NEXT_LEVEL.low

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        """The level in whose reach the size is, and the number of equal entries."""
        shift = pgsize.bit_length() - 1
        if pgsize != 1 << shift or not 12 <= shift <= _LARGEST:
            raise IommuError("EINVAL", f"no page has {pgsize:#x} bytes")
        number = (shift - 12) // 9
        return number, 1 << shift - self.levels[number].shift

    def leaf_size(self, entry: Entry, level: int) -> Entry:
        """The level's own size, or what the address codes."""
        own = 1 << self.levels[level].shift
        if isinstance(entry, int):
            if entry & PTE_NEXT_LEVEL.mask == 0:
                return own
            address = entry >> PTE_ADDRESS.low
            return (~address & address + 1) << PTE_ADDRESS.low + 1
        plain = entry & np.uint64(PTE_NEXT_LEVEL.mask) == 0
        if plain.all():
            return own
        address = entry >> np.uint64(PTE_ADDRESS.low)
        return np.where(plain, np.uint64(own), (~address & address + np.uint64(1)) << np.uint64(PTE_ADDRESS.low + 1))


class GuestTables(Format):
    """Format 2: the processor's four levels, with pages of 4 KiB, 2 MiB and 1 GiB.  What is present can be read."""

    levels = tuple(Level(12 + 9 * number, 9) for number in range(_GUEST_LEVELS))

    def present(self, entry: Entry, level: int) -> Entry:
        """P is set."""
        return (entry & GUEST_P.mask) != 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """PS is set."""
        return (entry & GUEST_PS.mask) != 0

    def address(self, entry: Entry, level: int) -> Entry:
        """Bits 51:12."""
        return entry & GUEST_ADDRESS.mask

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """P, U/S, A and D, R/W for writing, and PS above the lowest level."""
        bits = GUEST_P.mask | GUEST_US.mask | GUEST_A.mask | GUEST_D.mask
        if prot & Prot.WRITE:
            bits |= GUEST_RW.mask
        return bits | GUEST_PS.mask if level else bits

    def table(self, level: int) -> int:
        """P, R/W, U/S, A and D."""
        return GUEST_P.mask | GUEST_RW.mask | GUEST_US.mask | GUEST_A.mask | GUEST_D.mask

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        """4 KiB, 2 MiB and 1 GiB."""
        if pgsize > 1 << 30:
            raise IommuError("EINVAL", f"no page has {pgsize:#x} bytes")
        return super().leaf_level(pgsize)


HOST = HostTables()
GUEST = GuestTables()
FIRST_TOP = 2
"""Host tables begin with three levels, and grow."""
