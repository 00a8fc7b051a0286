"""Reserved regions: I/O virtual addresses that a device's domains must treat specially."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class RegionType(enum.Enum):
    """``enum iommu_resv_type``; the declaration order is the kernel's numbering, used as the second sort key."""

    DIRECT = "direct"
    """Mapped 1:1 whenever the device is translated."""
    DIRECT_RELAXABLE = "direct-relaxable"
    """As DIRECT, but may be dropped when the device is assigned to a guest."""
    RESERVED = "reserved"
    """Never mapped."""
    MSI = "msi"
    """The hardware's own interrupt window."""
    SW_MSI = "sw-msi"
    """A window that the IOMMU's user chooses for interrupts; sysfs prints it as ``msi``."""

    __hash__ = object.__hash__  # members are single objects; the inherited hash is slow

    @property
    def is_direct(self) -> bool:
        """Both kinds that are mapped 1:1."""
        return self is RegionType.DIRECT or self is RegionType.DIRECT_RELAXABLE

    @property
    def sysfs(self) -> str:
        """The word in ``reserved_regions``."""
        return "msi" if self is RegionType.SW_MSI else self.value


_ORDER = {kind: number for number, kind in enumerate(RegionType)}


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """Bytes ``start``..``end`` (inclusive) of one type (``struct iommu_resv_region``)."""

    start: int
    end: int
    type: RegionType

    @property
    def sysfs(self) -> str:
        """One line of ``/sys/kernel/iommu_groups/N/reserved_regions``."""
        return f"0x{self.start:016x} 0x{self.end:016x} {self.type.sysfs}"


def merge_regions(regions: Iterable[ReservedRegion]) -> list[ReservedRegion]:
    """Sort by start, then type, and merge what overlaps within a type (``iommu_insert_resv_region``).

    Regions that only touch stay apart, as in the kernel.
    """
    merged: list[ReservedRegion] = []
    newest: dict[RegionType, int] = {}
    for region in sorted(regions, key=lambda r: (r.start, _ORDER[r.type], r.end)):
        at = newest.get(region.type)
        if at is not None and region.start <= merged[at].end:
            merged[at] = ReservedRegion(merged[at].start, max(merged[at].end, region.end), region.type)
            continue
        newest[region.type] = len(merged)
        merged.append(region)
    return merged
