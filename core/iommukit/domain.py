"""Domains: address spaces that a device can be attached to."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class DomainType(enum.Enum):
    """A domain's type; the value is the bit pattern of ``include/linux/iommu.h``."""

    BLOCKED = 0
    UNMANAGED = 1
    DMA = 3
    IDENTITY = 4
    DMA_FQ = 11
    PLATFORM = 32

    __hash__ = object.__hash__  # members are single objects; the inherited hash is slow

    @property
    def sysfs(self) -> str:
        """What ``/sys/kernel/iommu_groups/N/type`` prints for a default domain of this type."""
        return _SYSFS[self]

    @property
    def label(self) -> str:
        """The word of the kernel's log: ``Translated`` or ``Passthrough`` (``iommu_domain_type_str``)."""
        return _LABEL[self]

    @property
    def uses_dma_api(self) -> bool:
        """True for the two translated types that the DMA API maps into."""
        return self is DomainType.DMA or self is DomainType.DMA_FQ


_SYSFS = {
    DomainType.BLOCKED: "blocked",
    DomainType.UNMANAGED: "unmanaged",
    DomainType.DMA: "DMA",
    DomainType.IDENTITY: "identity",
    DomainType.DMA_FQ: "DMA-FQ",
    DomainType.PLATFORM: "unknown",
}
_LABEL = {
    DomainType.BLOCKED: "Blocked",
    DomainType.UNMANAGED: "Unmanaged",
    DomainType.DMA: "Translated",
    DomainType.IDENTITY: "Passthrough",
    DomainType.DMA_FQ: "Translated",
    DomainType.PLATFORM: "Platform",
}

UNBOUNDED = (1 << 64) - 1


class Prot(enum.IntFlag):
    """What a mapping allows (``IOMMU_READ`` and so on); hooks take it as a plain number."""

    READ = 1
    WRITE = 2
    CACHE = 4
    """Coherent with the processors' caches."""
    NOEXEC = 8
    MMIO = 16
    """Registers of another device, not memory."""


@dataclass(slots=True, eq=False)
class Domain:
    """One address space of an IOMMU, allocated by a driver's ``domain_alloc``.

    Two domains are the same only if they are the same object.  A driver may subclass it to keep its page tables.
    """

    type: DomainType
    aperture: tuple[int, int] = (0, UNBOUNDED)
    """First and last I/O virtual address (bytes, inclusive) that the domain can translate."""
    page_sizes: int = 0x1000
    """Bitmap of the page sizes (bytes) that can be mapped."""
    static: bool = False
    """One object for the whole driver: never freed (identity and blocked domains since 6.6)."""
    generic_pt: bool = False
    """Page tables come from the kernel's generic library, which always supports a flush queue (7.2)."""
    flush_queue: Any = None
    """The started flush queue's options; ``None`` while unmaps are synchronous.  Never stopped once started."""
    iova_initialised: bool = False
    """The IOVA allocator has been set up (``iommu_dma_init_domain``); mapping through the DMA API needs it."""
    direct: set[tuple[int, int]] = field(default_factory=set)
    """Direct regions (first and last byte) mapped 1:1 so far."""
    freed: bool = False
    """Set by the core when the domain has been given back."""
    dma_space: Any = None
    """The DMA API's addresses and flush queue in it (``iommukit.dma.api.DmaSpace``), once a driver has mapped."""
    ops: Any = None
    """The vendor's hooks, bound by the core when the domain is allocated, so that mapping does not look them up again."""

    def covers(self, start: int, end: int) -> bool:
        """Whether the bytes ``start``..``end`` lie in the aperture."""
        return self.aperture[0] <= start and end <= self.aperture[1]
