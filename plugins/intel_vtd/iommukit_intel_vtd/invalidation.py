"""How the driver makes a unit forget: by the invalidation queue, or by registers where there is none (``dmar.c``, ``iommu.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from iommukit.errors import IommuError
from iommukit_intel_vtd.capabilities import IRO, Capabilities
from iommukit_intel_vtd.layout import (
    CCMD_CIRG,
    CCMD_ICC,
    IH,
    IOTLB_DID,
    IOTLB_DR,
    IOTLB_DW,
    IOTLB_IIRG,
    IOTLB_IVT,
    IQA_DW,
    PAGE,
    PAGE_BITS,
    WAIT_SW,
    Descriptor,
    Fsts,
    Gcmd,
    Granularity,
    PasidGranularity,
    PasidIotlbGranularity,
    Reg,
)

if TYPE_CHECKING:
    from iommukit_intel_vtd.running import RunningUnit

QUEUE_LENGTH = 256
"""Request in the ring (``QI_LENGTH``)."""

_WAIT = Descriptor.WAIT | WAIT_SW

Request = tuple[int, int]
"""The lower two words of a descriptor; the upper two of a wide one are zero."""


def context_device(domain: int, requester: int) -> Request:
    """Forget one requester's context entry."""
    return Descriptor.CONTEXT | Granularity.SELECTIVE << 4 | domain << 16 | requester << 32, 0


def context_global() -> Request:
    """Forget all context entries."""
    return Descriptor.CONTEXT | Granularity.GLOBAL << 4, 0


def iotlb_global() -> Request:
    """Forget all translations."""
    return Descriptor.IOTLB | Granularity.GLOBAL << 4 | IOTLB_DR | IOTLB_DW, 0


def iotlb_domain(domain: int) -> Request:
    """Forget a domain's translations."""
    return Descriptor.IOTLB | Granularity.DOMAIN << 4 | IOTLB_DR | IOTLB_DW | domain << 16, 0


_IOTLB_PAGES = Descriptor.IOTLB | Granularity.SELECTIVE << 4 | IOTLB_DR | IOTLB_DW


def iotlb_pages(domain: int, address: int, mask: int, leaves_only: bool) -> Request:
    """Forget ``1 << mask`` pages of a domain; ``leaves_only``: no table has gone (IH)."""
    return _IOTLB_PAGES | domain << 16, address | (IH if leaves_only else 0) | mask


def pasid_iotlb(domain: int, pasid: int) -> Request:
    """Forget the first-stage translations of a PASID."""
    return Descriptor.PASID_IOTLB | PasidIotlbGranularity.PASID << 4 | domain << 16 | pasid << 32, 0


def pasid_iotlb_pages(domain: int, pasid: int, address: int, mask: int, leaves_only: bool) -> Request:
    """Forget ``1 << mask`` pages of a PASID."""
    low = Descriptor.PASID_IOTLB | PasidIotlbGranularity.PAGES << 4 | domain << 16 | pasid << 32
    return low, address | (IH if leaves_only else 0) | mask


def pasid_cache(domain: int, pasid: int) -> Request:
    """Forget the PASID-table entries of a PASID."""
    return Descriptor.PASID_CACHE | PasidGranularity.PASID << 4 | domain << 16 | pasid << 32, 0


def pasid_cache_global() -> Request:
    """Forget all PASID-table entries."""
    return Descriptor.PASID_CACHE | PasidGranularity.GLOBAL << 4, 0


def range_mask(first: int, last: int) -> int:
    """The address mask (AM) of the smallest aligned block of pages that holds the bytes ``first``..``last``."""
    return (first >> PAGE_BITS ^ last >> PAGE_BITS).bit_length()


def domain_pages(largest: int, number: int, first: int, last: int, leaves_only: bool) -> Request:
    """Forget a range of a domain's second-stage translations, or all of them where it needs more than the ``largest`` mask."""
    mask = range_mask(first, last)
    if mask > largest:
        return iotlb_domain(number)
    return iotlb_pages(number, first & -PAGE << mask, mask, leaves_only)


def domain_pasid_pages(largest: int, number: int, pasid: int, first: int, last: int, leaves_only: bool) -> Request:
    """The same for first-stage translations."""
    mask = range_mask(first, last)
    if mask > largest:
        return pasid_iotlb(number, pasid)
    return pasid_iotlb_pages(number, pasid, first & -PAGE << mask, mask, leaves_only)


class Invalidation(Protocol):
    """A way to make a unit forget."""

    def submit(self, *descriptors: Request) -> None:
        """Have descriptors carried out in order, and wait for the last.  Raises ``IommuError("EIO")``."""


class QueuedInvalidation:
    """The invalidation queue (``struct q_inval``)."""

    def __init__(self, running: RunningUnit, wide: bool) -> None:
        """Allocate the ring and switch the queue on.  Raises ``IommuError("ENOMEM")``."""
        bus = running.bus
        self._bus, self._base = bus, running.base
        self._step = 32 if wide else 16
        size = QUEUE_LENGTH * self._step
        self._ring = bus.memory.pages.alloc(size)
        try:
            self._status = bus.memory.pages.alloc(PAGE)
        except IommuError:
            bus.memory.pages.free(self._ring, size)
            raise
        self._size = size
        self._tail = 0
        self._sequence = 0
        bus.write(self._base + Reg.IQT, 8, 0)
        bus.write(self._base + Reg.IQA, 8, self._ring | (IQA_DW if wide else 0) | (size // PAGE).bit_length() - 1)
        running.command(Gcmd.QIE)

    def submit(self, *descriptors: Request) -> None:
        """Write descriptors and a wait behind them, and ring the doorbell."""
        memory = self._bus.memory
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        wait = _WAIT | self._sequence << 32, self._status
        first = self._tail
        for low, high in (*descriptors, wait):
            at = self._ring + self._tail
            memory.set_word(at, low)
            memory.set_word(at + 8, high)
            self._tail = (self._tail + self._step) % self._size
        self._bus.write(self._base + Reg.IQT, 8, self._tail)
        if memory.word(self._status) & 0xFFFF_FFFF != self._sequence:
            self._recover(first, wait)

    def _recover(self, first: int, wait: Request) -> None:
        """Put harmless descriptors in the place of what the unit did not do, and let it go on (``qi_check_fault``)."""
        memory, bus = self._bus.memory, self._bus
        error = bus.read(self._base + Reg.FSTS, 4) & Fsts.IQE
        if error:
            at = first
            while at != self._tail:
                memory.set_word(self._ring + at, wait[0])
                memory.set_word(self._ring + at + 8, wait[1])
                at = (at + self._step) % self._size
            bus.write(self._base + Reg.FSTS, 4, Fsts.IQE)
            bus.write(self._base + Reg.IQT, 8, self._tail)
        raise IommuError("EIO", "the unit refuses an invalidation" if error else "the unit does not answer the invalidation queue")


class RegisterInvalidation:
    """Context command and IOTLB registers, for units without a queue: legacy mode only."""

    def __init__(self, running: RunningUnit, words: Capabilities) -> None:
        self._bus, self._base = running.bus, running.base
        self._iotlb = running.base + words.get(IRO) * 16

    def submit(self, *descriptors: Request) -> None:
        """Do what the descriptors say, register by register."""
        bus = self._bus
        for low, high in descriptors:
            granularity, domain = low >> 4 & 3, low >> 16 & 0xFFFF
            if low & 0xF == Descriptor.CONTEXT:
                requester = low >> 32 & 0xFFFF
                bus.write(self._base + Reg.CCMD, 8, CCMD_ICC | granularity << CCMD_CIRG | requester << 16 | domain)
                busy = bus.read(self._base + Reg.CCMD, 8) & CCMD_ICC
            else:
                bus.write(self._iotlb, 8, high)
                drain = 3 << 48
                bus.write(self._iotlb + 8, 8, IOTLB_IVT | granularity << IOTLB_IIRG | drain | domain << IOTLB_DID)
                busy = bus.read(self._iotlb + 8, 8) & IOTLB_IVT
            if busy:
                raise IommuError("EIO", "the unit does not answer its invalidation registers")
