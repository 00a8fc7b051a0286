"""How the hardware walks page tables: host tables (2.2.3) and guest tables (2.2.6), one address at a time.

``walker_many`` does the same for many addresses.  Both keep what they have read of directories in a ``DirectoryCache``, and start
from what is in it: a directory entry that was changed is seen once it has been invalidated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit_amd_vi.layout import (
    EVENT_PE,
    EVENT_PR,
    EVENT_RZ,
    GCR3_V,
    GUEST_A,
    GUEST_D,
    GUEST_P,
    GUEST_PS,
    GUEST_RW,
    GUEST_US,
    NEXT_LEVEL_SIZED,
    PTE_ADDRESS,
    PTE_PR,
    PTE_RESERVED,
    Event,
)
from iommukit_amd_vi.model.device_table import READ, WRITE

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory
    from iommukit_amd_vi.model.caches import DirectoryCache


@dataclass(frozen=True, slots=True)
class Translation:
    """A page: its first physical address (bytes), its size as a power of two, and a mask of ``READ`` and ``WRITE``."""

    base: int
    shift: int
    allow: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a walk found no page: the event to log, and its flags besides those of the request."""

    event: Event
    flags: int
    cacheable: bool = False
    """An absent entry: what NpCache lets an IOMMU remember."""


NOT_PRESENT = Refusal(Event.IO_PAGE_FAULT, 0, cacheable=True)
PERMISSION = Refusal(Event.IO_PAGE_FAULT, EVENT_PR.mask | EVENT_PE.mask)
RESERVED_BIT = Refusal(Event.IO_PAGE_FAULT, EVENT_PR.mask | EVENT_RZ.mask)
ILLEGAL_LEVEL = Refusal(Event.IO_PAGE_FAULT, EVENT_PR.mask)
UNREADABLE = Refusal(Event.PAGE_TAB_HARDWARE_ERROR, 0)

_GUEST_PRESENT = GUEST_P.mask | GUEST_US.mask
_GUEST_TABLE = _GUEST_PRESENT | GUEST_PS.mask

HOST_LEVELS = 6
GUEST_LEVELS = 4


def level_shift(level: int) -> int:
    """The lowest address bit that a level's index takes: 12 at level 1, and 9 more for each level."""
    return 3 + 9 * level


def coded_shift(entry: int) -> int:
    """The page size, as a power of two, that the address of an entry with NextLevel 7 codes (2.2.3, Table 14)."""
    address = entry >> PTE_ADDRESS.low
    return PTE_ADDRESS.low + 1 + (~address & address + 1).bit_length() - 1


def walk_host(memory: PhysicalMemory, root: int, mode: int, iova: int, cache: DirectoryCache) -> Translation | Refusal:
    """Walk host tables of ``mode`` levels from ``root``."""
    if mode < HOST_LEVELS and iova >> level_shift(mode + 1):
        return NOT_PRESENT
    level, table, allow = cache.deepest(iova) or (mode, root, READ | WRITE)
    while True:
        shift = 3 + 9 * level
        address = table + (iova >> shift & 511) * 8
        if not memory.holds(address, 8):
            return UNREADABLE
        entry = memory.quads[address - memory.base >> 3]
        if not entry & PTE_PR.mask:
            return NOT_PRESENT
        if entry & PTE_RESERVED.mask:
            return RESERVED_BIT
        allow &= entry >> 61 & 3  # IR and IW are adjoining bits
        below = entry >> 9 & 7
        if below == 0 or below == NEXT_LEVEL_SIZED:
            size = shift if below == 0 else coded_shift(entry)
            if (below and not shift < size < shift + 9) or level == HOST_LEVELS:
                return ILLEGAL_LEVEL
            return Translation(entry & PTE_ADDRESS.mask & -(1 << size), size, allow)
        if below >= level:
            return ILLEGAL_LEVEL
        if iova >> level_shift(below + 1) & (1 << 9 * (level - 1 - below)) - 1:
            return NOT_PRESENT  # the index of a skipped level must be zero (2.2.3)
        table = entry & PTE_ADDRESS.mask
        cache.keep(below, iova, table, allow)
        level = below


def host_directories_hold(memory: PhysicalMemory, root: int, mode: int, cache: DirectoryCache) -> bool:
    """Whether the cached directories are what a walk of the tables, as they are, would find."""
    return all(_host_directory(memory, root, mode, iova, kept[0]) == kept for iova, kept in cache.everything())


def _host_directory(memory: PhysicalMemory, root: int, mode: int, iova: int, wanted: int) -> tuple[int, int, int] | None:
    """The table of level ``wanted`` on an address's way, without any cache."""
    level, table, allow = mode, root, READ | WRITE
    while level > wanted:
        address = table + (iova >> 3 + 9 * level & 511) * 8
        entry = memory.word(address) if memory.holds(address, 8) else 0
        below = entry >> 9 & 7
        if not entry & PTE_PR.mask or entry & PTE_RESERVED.mask or not 0 < below < level:
            return None
        level, table, allow = below, entry & PTE_ADDRESS.mask, allow & entry >> 61 & 3
    return (level, table, allow) if level == wanted else None


def guest_directories_hold(memory: PhysicalMemory, root: int, cache: DirectoryCache) -> bool:
    """The same for guest tables."""
    return all(_guest_directory(memory, root, iova, kept[0]) == kept for iova, kept in cache.everything())


def _guest_directory(memory: PhysicalMemory, root: int, iova: int, wanted: int) -> tuple[int, int, int] | None:
    table, allow = root, READ | WRITE
    for level in range(GUEST_LEVELS, wanted, -1):
        address = table + (iova >> 3 + 9 * level & 511) * 8
        entry = memory.word(address) if memory.holds(address, 8) else 0
        if entry & _GUEST_TABLE != _GUEST_PRESENT:
            return None
        table = entry & PTE_ADDRESS.mask
        if not entry & GUEST_RW.mask:
            allow &= ~WRITE
    return wanted, table, allow


def guest_root(memory: PhysicalMemory, table: int, levels: int, pasid: int) -> int | Refusal:
    """The address of a PASID's guest table, from the GCR3 table (2.2.6.3)."""
    if pasid >> 9 * levels:
        return NOT_PRESENT
    for level in range(levels - 1, -1, -1):
        address = table + (pasid >> 9 * level & 511) * 8
        if not memory.holds(address, 8):
            return UNREADABLE
        entry = memory.word(address)
        if not entry & GCR3_V.mask:
            return NOT_PRESENT
        table = entry & PTE_ADDRESS.mask
    return table


def walk_guest(memory: PhysicalMemory, root: int, iova: int, cache: DirectoryCache, *, write: bool) -> Translation | Refusal:
    """Walk guest tables of four levels from ``root``, for a user's request; sets accessed and dirty bits (2.2.6.5).

    Addresses of requests without a PASID are not sign-extended.
    """
    if iova >> level_shift(GUEST_LEVELS + 1):
        return NOT_PRESENT
    level, table, allow = cache.deepest(iova) or (GUEST_LEVELS, root, READ | WRITE)
    while True:
        shift = 3 + 9 * level
        address = table + (iova >> shift & 511) * 8
        if not memory.holds(address, 8):
            return UNREADABLE
        entry = memory.word(address)
        if not entry & GUEST_P.mask:
            return NOT_PRESENT
        if not entry & GUEST_US.mask:
            return PERMISSION
        if not entry & GUEST_RW.mask:
            allow &= ~WRITE
        if level == 1 or entry & GUEST_PS.mask:
            if level > 3:
                return RESERVED_BIT
            seen = GUEST_A.mask | (GUEST_D.mask if write and allow & WRITE else 0)
            if entry & seen != seen:
                memory.set_word(address, entry | seen)
            return Translation(entry & PTE_ADDRESS.mask & -(1 << shift), shift, allow)
        if not entry & GUEST_A.mask:
            memory.set_word(address, entry | GUEST_A.mask)
        table = entry & PTE_ADDRESS.mask
        level -= 1
        cache.keep(level, iova, table, allow)
