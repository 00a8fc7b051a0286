"""Reading the device table and page tables out of a memory, for ``iommukit walk``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from iommukit.errors import InputError
from iommukit.hw.decode import Decoded, Kind, TableFormat, TableLevel, pages
from iommukit.hw.memory import TableReader, Words
from iommukit.hw.walk import Leaf, Mode, Step, Walk
from iommukit_amd_vi.layout import (
    BASE_ADDRESS,
    DTE_SIZE,
    DTE_TV,
    DTE_V,
    GCR3_V,
    GLX_SUP,
    GT_SUP,
    GUEST_ADDRESS,
    GUEST_D,
    GUEST_P,
    GUEST_PS,
    GUEST_RW,
    GUEST_US,
    HATS,
    HD_SUP,
    NEXT_LEVEL_SIZED,
    PTE_ADDRESS,
    PTE_FC,
    PTE_IR,
    PTE_IW,
    PTE_NEXT_LEVEL,
    PTE_PR,
    PTE_RESERVED,
    TABLE_SIZE,
    Field,
)
from iommukit_amd_vi.model.device_table import DeviceEntry, decode

ROOTS: Mapping[str, str] = {
    "devtab": "Device Table Base Address Register (MMIO Offset 0000h): address and size of the device table"
}

EVERY_FEATURE = HATS.of(2) | GT_SUP.mask | GLX_SUP.mask | HD_SUP.mask
"""A dump does not tell what the IOMMU can do."""

_EMPTY = (0, DTE_V.mask, DTE_V.mask | DTE_TV.mask)
"""First words of entries that say no more than that a device is blocked, or never had an entry."""


def _set(value: int, *fields: Field) -> str:
    """The names of the fields of one bit that are set."""
    return " ".join(field.name for field in fields if value & field.mask)


class HostFormat(TableFormat):
    """Host tables (2.2.3), by the specification's levels."""

    levels = {level: TableLevel(f"level {level} entry", 3 + 9 * level, 9 if level < 6 else 7) for level in range(1, 7)}

    def decode(self, level: int, entries: Words) -> Decoded:
        """Present entries with next level 0 or 7 are pages, others tables."""
        one, own = np.uint64(1), self.levels[level].shift
        there = entries & np.uint64(PTE_PR.mask) != 0
        below = entries >> np.uint64(PTE_NEXT_LEVEL.low) & np.uint64(7)
        sized = below == NEXT_LEVEL_SIZED
        leaf = (below == 0) | sized
        number = entries >> np.uint64(PTE_ADDRESS.low)
        size = np.where(sized, (~number & number + one) << np.uint64(PTE_ADDRESS.low + 1), np.uint64(1 << own))
        bad = (entries & np.uint64(PTE_RESERVED.mask) != 0) | (~leaf & (below >= level))
        bad |= sized & ((size <= np.uint64(1 << own)) | (size >> np.uint64(own) >= 512))
        if level == 6:
            bad |= leaf
        kind = np.where(leaf, np.uint8(Kind.PAGE), np.uint8(Kind.TABLE))
        kind[bad] = Kind.BAD
        kind[~there] = Kind.ABSENT
        address = entries & np.uint64(PTE_ADDRESS.mask)
        address = np.where(leaf, address & ~(size - one), address)
        return Decoded(kind, address, (entries >> np.uint64(PTE_IR.low) & np.uint64(3)).astype(np.uint8), size)

    def explain(self, level: int, value: int) -> str:
        """Flags, next level and address."""
        below = PTE_NEXT_LEVEL.get(value)
        named = _set(value, PTE_PR, PTE_IR, PTE_IW, PTE_FC)
        return f"{named} NextLevel={below} Address={value & PTE_ADDRESS.mask:#x}".strip()

    def next_level(self, level: int, value: int) -> int:
        """Levels may be skipped."""
        return PTE_NEXT_LEVEL.get(value)

    def fault(self, level: int, value: int) -> str:
        """Reserved bits, or a next level that cannot follow."""
        if value & PTE_RESERVED.mask:
            return "reserved bits are set"
        return f"NextLevel {PTE_NEXT_LEVEL.get(value)} at level {level} with address {value & PTE_ADDRESS.mask:#x} is illegal"


class GuestFormat(TableFormat):
    """Guest tables of four levels (2.2.6.5)."""

    levels = {
        4: TableLevel("PML4E", 39, 9),
        3: TableLevel("PDPE", 30, 9),
        2: TableLevel("PDE", 21, 9),
        1: TableLevel("PTE", 12, 9),
    }

    def decode(self, level: int, entries: Words) -> Decoded:
        """Present entries at level 1 and with PS are pages."""
        there = entries & np.uint64(GUEST_P.mask) != 0
        large = entries & np.uint64(GUEST_PS.mask) != 0
        leaf = large if level > 1 else np.ones(len(entries), np.bool_)
        kind = np.where(leaf, np.uint8(Kind.PAGE), np.uint8(Kind.TABLE))
        kind[(entries & np.uint64(GUEST_US.mask) == 0) | (leaf & (level > 3))] = Kind.BAD
        kind[~there] = Kind.ABSENT
        address = entries & np.uint64(GUEST_ADDRESS.mask)
        own = np.uint64((1 << self.levels[level].shift) - 1)
        address = np.where(leaf, address & ~own, address)
        rights = np.where(entries & np.uint64(GUEST_RW.mask), np.uint8(3), np.uint8(1))
        return Decoded(kind, address, rights)

    def explain(self, level: int, value: int) -> str:
        """Flags and address."""
        return f"{_set(value, GUEST_P, GUEST_RW, GUEST_US, GUEST_D, GUEST_PS)} Address={value & GUEST_ADDRESS.mask:#x}".strip()

    def fault(self, level: int, value: int) -> str:
        """A supervisor's page, or a page where there are only tables."""
        return "U/S is 0, and devices are users" if not value & GUEST_US.mask else "PS at the highest level"


HOST = HostFormat()
GUEST = GuestFormat()


def walks(memory: TableReader, roots: Mapping[str, int], requester: int | None, iova: int | None) -> Iterator[Walk]:
    """One walk for each device whose entry says anything.

    Raises ``InputError`` for a device table outside the memory and for a requester id beyond it.
    """
    register = roots["devtab"]
    base = register & BASE_ADDRESS.mask
    count = (TABLE_SIZE.get(register) + 1 << 12) // DTE_SIZE
    if requester is not None:
        if requester >= count:
            raise InputError(f"{requester:#x} is beyond the device table of {count} entries")
        yield _walk(memory, base, requester, iova)
        return
    first_words = memory.table(base, count * 4)[::4]
    second_words = memory.table(base, count * 4)[1::4]
    empty = np.isin(first_words, np.array(_EMPTY, np.uint64)) & (second_words == 0)
    for device in np.flatnonzero(~empty).tolist():
        yield _walk(memory, base, device, iova)


def _walk(memory: TableReader, base: int, device: int, iova: int | None) -> Walk:
    address = base + device * DTE_SIZE
    bits = sum(word << 64 * number for number, word in enumerate(memory.table(address, 4).tolist()))
    entry = decode(bits, EVERY_FEATURE)
    steps = (Step("device table entry", address, bits, _meaning(entry)),)
    if not entry.valid:
        return Walk(device, Mode.PASS_THROUGH, steps)
    if entry.illegal:
        return Walk(device, Mode.BAD, steps, reason=entry.illegal)
    if not entry.translated or not entry.allow:
        return Walk(device, Mode.BLOCKED, steps)
    if entry.gcr3 is not None:
        return _guest_walk(memory, device, entry, steps, iova)
    if not entry.mode:
        return Walk(device, Mode.PASS_THROUGH, steps, domain=entry.domain)
    found = pages(memory, HOST, entry.root, entry.mode, iova=iova, rights=entry.allow)
    return Walk(device, Mode.TRANSLATED, steps, found, domain=entry.domain)


def _guest_walk(memory: TableReader, device: int, entry: DeviceEntry, steps: tuple[Step, ...], iova: int | None) -> Walk:
    """The guest table of PASID 0."""
    table = entry.gcr3
    assert table is not None
    for level in range(entry.gcr3_levels, 0, -1):
        try:
            value = memory.word(table)
        except InputError:
            reason = f"no memory for the GCR3 table at {table:#x}"
            return Walk(device, Mode.BAD, steps, reason=reason, domain=entry.domain)
        steps = (
            *steps,
            Step(f"GCR3 level {level} entry", table, value, f"{_set(value, GCR3_V)} Address={value & GUEST_ADDRESS.mask:#x}"),
        )
        if not value & GCR3_V.mask:
            return Walk(device, Mode.BAD, steps, reason="no guest table for PASID 0", domain=entry.domain)
        table = value & GUEST_ADDRESS.mask
    found: Iterator[Leaf] = pages(memory, GUEST, table, 4, iova=iova, rights=entry.allow)
    return Walk(device, Mode.TRANSLATED, steps, found, domain=entry.domain)


def _meaning(entry: DeviceEntry) -> str:
    """An entry in words, with the specification's names."""
    named = [
        name
        for name, there in (("V", entry.valid), ("TV", entry.translated), ("IR", entry.allow & 1), ("IW", entry.allow & 2))
        if there
    ]
    named += (
        [f"Mode={entry.mode}", f"HostPageTableRootPtr={entry.root:#x}"]
        if entry.gcr3 is None
        else ["GV", f"GCR3TRP={entry.gcr3:#x}"]
    )
    return " ".join([*named, f"DomainID={entry.domain:#x}"])
