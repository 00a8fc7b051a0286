"""Bouncing: what an untrusted device shares a page with, it must not see (``iommu_dma_map_swiotlb``)."""

from __future__ import annotations

from dataclasses import dataclass

from iommukit.device import Device
from iommukit.domain import Prot
from iommukit.errors import IommuError
from iommukit.hw.memory import PhysicalMemory

LARGEST = 256 << 10
"""The most that one mapping may bounce (bytes): a segment of the kernel's bounce pool."""


def must_bounce(device: Device, physical: int, size: int, granule: int) -> bool:
    """Whether a buffer goes through pages of its own: the device is untrusted and the buffer does not fill whole granules."""
    return device.untrusted and bool((physical | size) % granule)


@dataclass(frozen=True, slots=True)
class Bounce:
    """Pages of their own for a buffer; what is beside the buffer's copy in them is zero.  All in bytes."""

    pages: int
    """The first page's address."""
    length: int
    physical: int
    """The buffer that is meant."""
    size: int
    offset: int
    """Where in the pages the copy begins."""

    @classmethod
    def make(cls, memory: PhysicalMemory, physical: int, size: int, granule: int) -> Bounce:
        """Copy a buffer into fresh pages.  Raises ``IommuError``: ``EINVAL`` for too large a buffer, ``ENOMEM``."""
        if size > LARGEST:
            raise IommuError("EINVAL", f"{size:#x} bytes are too many to bounce")
        offset = physical % granule
        length = -(-(offset + size) // granule) * granule
        pages = memory.pages.alloc(granule, length // granule)
        # Also where the device only writes: what it leaves out must not come back as somebody else's bytes.
        memory.write(pages + offset, memory.read(physical, size))
        return cls(pages, length, physical, size, offset)

    def finish(self, memory: PhysicalMemory, prot: Prot) -> None:
        """Copy back what the device was allowed to write, and give the pages back."""
        if prot & Prot.WRITE:
            memory.write(self.physical, memory.read(self.pages + self.offset, self.size))
        memory.pages.free(self.pages, self.length)
