"""What a device's driver calls: mapping a buffer for DMA, and taking the mapping back (``drivers/iommu/dma-iommu.c``)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from iommukit.device import Device, DmaOps
from iommukit.dma.bounce import Bounce, must_bounce
from iommukit.dma.flush_queue import Entry, FlushQueue
from iommukit.dma.iova import IovaSpace
from iommukit.dma.mapping import iommu_map, iommu_unmap_gathered
from iommukit.domain import Domain, Prot
from iommukit.errors import IommuError
from iommukit.hookspecs import FlushQueueOptions, Gather
from iommukit.hw.clock import Clock
from iommukit.hw.memory import PhysicalMemory
from iommukit.regions import RegionType

BELOW_4G = (1 << 32) - 1


class Direction(enum.Enum):
    """Which way data flows, as a driver says it."""

    TO_DEVICE = Prot.READ
    FROM_DEVICE = Prot.WRITE
    BIDIRECTIONAL = Prot.READ | Prot.WRITE


@dataclass(frozen=True, slots=True)
class Mapping:
    """One live mapping: whole granules (bytes), what it allows, and the pages that stand in for the buffer, if any."""

    length: int
    prot: Prot
    bounce: Bounce | None


@dataclass(slots=True, eq=False)
class DmaSpace:
    """A default domain's I/O addresses, and its flush queue once it has one (``struct iommu_dma_cookie``)."""

    domain: Domain
    memory: PhysicalMemory
    clock: Clock
    iovas: IovaSpace
    queue: FlushQueue | None = None
    live: dict[int, Mapping] = field(default_factory=dict)
    """Live mappings by their first granule."""

    def release(self, entry: Entry) -> None:
        """An address range may be used again, and so may its tables."""
        for address, size in entry.tables:
            self.memory.pages.free(address, size)
        self.iovas.free(entry.iova, entry.size)

    def flush(self) -> None:
        """Forget everything cached of the domain."""
        self.domain.ops.flush_iotlb_all(domain=self.domain)

    def started_queue(self) -> FlushQueue | None:
        """The flush queue, made when the domain has turned lazy; ``None`` while it is strict."""
        options = self.domain.flush_queue
        if self.queue is None and isinstance(options, FlushQueueOptions):
            self.queue = FlushQueue(options, self.clock, self.flush, self.release)
        return self.queue


def _space(device: Device, domain: Domain) -> DmaSpace:
    """The domain's addresses, prepared by the first device that maps (``iommu_dma_init_domain``)."""
    space = domain.dma_space
    if space is None:
        assert device.unit is not None
        assert device.unit.bus is not None
        bus = device.unit.bus
        granule = domain.page_sizes & -domain.page_sizes
        # The first page is never handed out: an address of 0 looks like none.
        iovas = IovaSpace(granule, max(granule, domain.aperture[0]), domain.aperture[1])
        for region in device.system.regions(device):
            if region.type is not RegionType.SW_MSI:
                iovas.reserve(region.start, region.end)
        space = domain.dma_space = DmaSpace(domain, bus.memory, bus.clock, iovas)
    assert isinstance(space, DmaSpace)
    return space


def _take(space: DmaSpace, device: Device, size: int) -> int:
    """An address for the device: PCI devices get one below 4 GiB where there is one (``iommu_dma_alloc_iova``)."""
    limit = min(device.facts.dma_mask, space.domain.aperture[1])
    if device.facts.pci is not None and limit > BELOW_4G and not device.system.boot.forcedac:
        try:
            return space.iovas.alloc(size, BELOW_4G)
        except IommuError:
            pass
    return space.iovas.alloc(size, limit)


def dma_map(device: Device, physical: int, size: int, direction: Direction) -> int:
    """Map ``size`` bytes of memory from ``physical`` for a device.  Returns the address (bytes) that the device is to use.

    Where the device's mapping calls reach no domain the physical address is the answer, whether or not the device can use it.
    An untrusted device gets a copy of a buffer that does not fill whole granules.  Raises ``IommuError``: ``ENOSPC`` without a
    free address, ``EINVAL`` for too much to copy, and what the driver raises, as from ``iommu_map``.
    """
    if device.dma_ops is not DmaOps.IOMMU:
        return physical
    assert device.group is not None
    domain = device.group.default_domain
    assert domain is not None
    if device.attach_deferred:
        device.system.attach(device, domain)
        device.attach_deferred = False
    space = _space(device, domain)
    granule = space.iovas.granule
    offset = physical % granule
    length = -(-(offset + size) // granule) * granule
    bounce = None
    if must_bounce(device, physical, size, granule):
        bounce = Bounce.make(space.memory, physical, size, granule)
    target = bounce.pages if bounce is not None else physical - offset
    iova = None
    try:
        iova = _take(space, device, length)
        iommu_map(domain, iova, target, length, direction.value)
    except IommuError:
        if iova is not None:
            space.iovas.free(iova, length)
        if bounce is not None:
            space.memory.pages.free(bounce.pages, bounce.length)
        raise
    space.live[iova] = Mapping(length, direction.value, bounce)
    return iova + offset


def dma_unmap(device: Device, address: int) -> None:
    """Take back what ``dma_map`` answered.

    A strict domain's TLB is told before this returns; a lazy domain's later, and the address is not used again until then.
    Raises ``IommuError("EINVAL")`` for an address that is not mapped.
    """
    if device.dma_ops is not DmaOps.IOMMU:
        return
    assert device.group is not None
    domain = device.group.default_domain
    assert domain is not None
    space = _space(device, domain)
    iova = address - address % space.iovas.granule
    mapping = space.live.pop(iova, None)
    if mapping is None:
        raise IommuError("EINVAL", f"{address:#x} is not mapped")
    length = mapping.length
    queue = space.started_queue()
    gather = Gather(queued=queue is not None)
    iommu_unmap_gathered(domain, iova, length, gather)
    if queue is not None:
        queue.add(iova, length, gather.freed)
    else:
        domain.ops.iotlb_sync(domain=domain, gather=gather)
        space.iovas.free(iova, length)
    if mapping.bounce is not None:
        mapping.bounce.finish(space.memory, mapping.prot)
