"""What the hardware does for each command (2.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommukit.hw.tlb import LAST
from iommukit_amd_vi.layout import (
    ALL_PAGES,
    COMMAND_DEVICE,
    COMMAND_DOMAIN,
    COMMAND_PASID,
    GT_SUP,
    IA_SUP,
    OPCODE,
    PAGES_ADDRESS,
    PAGES_GN,
    PAGES_PDE,
    PAGES_S,
    PPR_SUP,
    PREF_SUP,
    WAIT_ADDRESS,
    WAIT_FLUSH,
    WAIT_INTERRUPT,
    WAIT_STORE,
    Command,
)

if TYPE_CHECKING:
    from iommukit_amd_vi.model.unit import AmdModel

ANY = (1 << 64) - 1


class MasterAbort(Exception):
    """A command's own access went where there is no memory."""


def pages_of(word: int) -> tuple[int, int]:
    """The bytes (first and last) that the second word of an invalidation names (2.4.3).

    Without S one page of 4 KiB.  With S the lowest zero of the address from bit 12 on, at bit n, makes it 2^(n+1) bytes;
    the address that is all ones below bit 63 stands for everything.
    """
    address = word & PAGES_ADDRESS.mask
    if not word & PAGES_S.mask:
        return address, address | 0xFFF
    if address == ALL_PAGES:
        return 0, LAST
    pages = address >> 12
    inside = (1 << 12 + (~pages & pages + 1).bit_length()) - 1
    return address & ~inside, address | inside


def _completion_wait(unit: AmdModel, first: int, second: int) -> None:
    # Everything before it is done already: commands are carried out in order.
    if first & WAIT_STORE.mask:
        address = first & WAIT_ADDRESS.mask
        memory = unit.memory
        if not memory.holds(address, 8):
            raise MasterAbort
        memory.quads[address - memory.base >> 3] = second
    if first & WAIT_INTERRUPT.mask:
        unit.completion_interrupt()


def _invalidate_entry(unit: AmdModel, first: int, second: int) -> None:
    unit.caches.forget_entry(COMMAND_DEVICE.get(first))


def _invalidate_pages(unit: AmdModel, first: int, second: int) -> None:
    low, high = pages_of(second)
    pasid = first & COMMAND_PASID.mask if second & PAGES_GN.mask else None
    unit.caches.forget_pages(first >> 32 & 0xFFFF, pasid, low, high, directories=bool(second & PAGES_PDE.mask))


def _nothing(unit: AmdModel, first: int, second: int) -> None:
    """Devices' own TLBs, interrupts and page requests have no part in this model; prefetching is a hint."""


def _invalidate_all(unit: AmdModel, first: int, second: int) -> None:
    unit.caches.forget_all()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of command: what it does, which bits of its two words may be set, and the feature (of the EFR) that it needs."""

    act: Callable[[AmdModel, int, int], None]
    first: int
    second: int
    feature: int = 0


_IOTLB_FIRST = 0xFFFF | 0xFF << 16 | 0xFF << 24 | 0xFFFF << 32 | 0xFFF << 48

KINDS: dict[int, Kind] = {
    Command.COMPLETION_WAIT: Kind(
        _completion_wait, WAIT_STORE.mask | WAIT_INTERRUPT.mask | WAIT_FLUSH.mask | WAIT_ADDRESS.mask, ANY
    ),
    Command.INVALIDATE_DEVTAB_ENTRY: Kind(_invalidate_entry, COMMAND_DEVICE.mask, 0),
    Command.INVALIDATE_IOMMU_PAGES: Kind(
        _invalidate_pages,
        COMMAND_PASID.mask | COMMAND_DOMAIN.mask,
        PAGES_ADDRESS.mask | PAGES_S.mask | PAGES_PDE.mask | PAGES_GN.mask,
    ),
    Command.INVALIDATE_IOTLB_PAGES: Kind(_nothing, _IOTLB_FIRST, PAGES_ADDRESS.mask | PAGES_S.mask | PAGES_GN.mask | 1 << 1),
    Command.INVALIDATE_INTERRUPT_TABLE: Kind(_nothing, COMMAND_DEVICE.mask, 0),
    Command.PREFETCH_IOMMU_PAGES: Kind(_nothing, ANY, ANY, PREF_SUP.mask),
    Command.COMPLETE_PPR_REQUEST: Kind(_nothing, ANY, ANY, PPR_SUP.mask),
    Command.INVALIDATE_IOMMU_ALL: Kind(_invalidate_all, 0, 0, IA_SUP.mask),
}
"""By operation code."""


def kind_of(first: int, second: int, features: int) -> Kind | None:
    """The kind of a command; ``None`` for one that is illegal: an unknown code, a reserved bit, a feature that is not there."""
    kind = KINDS.get(first >> OPCODE.low)
    if kind is None or first & ~(kind.first | OPCODE.mask) or second & ~kind.second or kind.feature & ~features:
        return None
    if kind.act is _invalidate_pages and second & PAGES_GN.mask and not features & GT_SUP.mask:
        return None
    return kind
