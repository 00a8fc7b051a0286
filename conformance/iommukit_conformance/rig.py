"""The place where a hardware case is carried out: domains, mappings, DMA and faults on the ground of a booted system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from iommukit.device import Device, Unit
from iommukit.dma.mapping import iommu_map, iommu_unmap, iommu_unmap_gathered
from iommukit.domain import Domain, DomainType, Prot
from iommukit.errors import IommuError, NotApplicable
from iommukit.hookspecs import Gather
from iommukit.hw.fault import Fault
from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit.kernel.system import System
from iommukit_conformance.ground import SIZE, Ground
from iommukit_conformance.watched_bus import WatchedPlatform

READ_WRITE = Prot.READ | Prot.WRITE
BATCH = 64
"""Looks that fit into a device's buffer at once."""
POISON = b"\xa5" * SIZE
ELSEWHERE = -1
"""Something was read that is not stamped memory."""
BUSY = 8
"""Register writes after which a busy device reads."""


class Rig(Ground):
    """A ground that is worked on.  ``told`` collects the faults that the driver has read: an interrupt follows each look."""

    def __init__(self, system: System, platform: WatchedPlatform) -> None:
        super().__init__(system, platform)
        self.told: list[Fault] = []
        self._marks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.platform.close()

    # ---- domains -----------------------------------------------------------------------------------------------------

    def alloc(self, device: Device, kind: DomainType = DomainType.UNMANAGED) -> Domain:
        """A domain.  Raises ``NotApplicable`` where there is no such type."""
        try:
            domain = self.system.alloc(device, kind)
        except IommuError as error:
            if error.name != "EOPNOTSUPP":
                raise
            domain = None
        if domain is None:
            raise NotApplicable(f"{self.system.vendor.name} has no {kind.name} domains in {self.system.kernel.name}")
        return domain

    def domain(self, *devices: Device, kind: DomainType = DomainType.UNMANAGED) -> Domain:
        """A new domain with devices in it; without any, with ``nic``."""
        devices = devices or (self.nic,)
        domain = self.alloc(devices[0], kind)
        for device in devices:
            self.attach(device, domain)
        return domain

    def open_windows(self, device: Device, domain: Domain) -> None:
        """Map what the device needs for itself, in a domain with page tables."""
        if domain.type is DomainType.UNMANAGED or domain.type.uses_dma_api:
            for window in self.initiator(device).windows:
                if self.table_answer(domain, window.iova) is None:
                    iommu_map(domain, window.iova, window.physical, window.size, READ_WRITE)

    def attach(self, device: Device, domain: Domain) -> None:
        """Move a device, with its windows."""
        self.open_windows(device, domain)
        self.system.attach(device, domain)

    def add(self, device: Device) -> None:
        """Plug a device in, and let its driver come, so that units that wait for it probe the device."""
        kernel = self.system.kernel
        kernel.add(self.system, device)
        if device.unit is None:
            kernel.configure(self.system, device)

    def drop(self, domain: Domain, *devices: Device, to: Domain) -> None:
        """Move devices elsewhere and give the domain back."""
        for device in devices:
            self.attach(device, to)
        self.system.free(domain)

    # ---- mapping -----------------------------------------------------------------------------------------------------

    def map(self, domain: Domain, iova: int, physical: int, size: int, prot: int = READ_WRITE) -> None:
        """Map through the core."""
        iommu_map(domain, iova, physical, size, int(prot))

    def unmap(self, domain: Domain, iova: int, size: int) -> int:
        """Unmap through the core, and wait until it is done."""
        return iommu_unmap(domain, iova, size)

    def gather(self, domain: Domain, iova: int, size: int, gather: Gather | None = None) -> Gather:
        """Unmap without telling the TLB."""
        gather = gather or Gather()
        iommu_unmap_gathered(domain, iova, size, gather)
        return gather

    def sync(self, domain: Domain, gather: Gather) -> None:
        """Tell it."""
        self.ops.iotlb_sync(domain=domain, gather=gather)

    def flush(self, domain: Domain, gather: Gather) -> None:
        """Tell it to forget everything, and free the tables, as a flush queue does."""
        self.ops.flush_iotlb_all(domain=domain)
        for address, size in gather.freed:
            self.pages.free(address, size)
        gather.freed.clear()

    def map_pages(self, domain: Domain, iova: int, physical: int, pgsize: int, count: int = 1, prot: int = READ_WRITE) -> int:
        """Map pages of one size by the hook itself.  Returns what it answers."""
        done = self.ops.map_pages(domain=domain, iova=iova, paddr=physical, pgsize=pgsize, pgcount=count, prot=int(prot))
        self.ops.iotlb_sync_map(domain=domain, iova=iova, size=pgsize * count)
        return int(done)

    def unmap_pages(self, domain: Domain, iova: int, pgsize: int, count: int = 1) -> int:
        """Unmap pages of one size by the hook itself, and wait until it is done.  Returns what it answers."""
        gather = Gather()
        done = self.ops.unmap_pages(domain=domain, iova=iova, pgsize=pgsize, pgcount=count, gather=gather)
        self.sync(domain, gather)
        return int(done)

    def buffer(self, domain: Domain, size: int, *, align: int = 0, prot: int = READ_WRITE) -> tuple[int, int]:
        """Fresh memory mapped at fresh addresses: I/O address and physical address, equally aligned.

        Without ``align`` only pages of the smallest size are used.
        """
        granule = self.granule(domain)
        physical, iova = self.frames(size, align or granule), self.iovas(domain, size, align)
        if align:
            self.map(domain, iova, physical, size, prot)
        else:
            self.map_pages(domain, iova, physical, granule, size // granule, prot)
        return iova, physical

    def table_answer(self, domain: Domain, iova: int) -> int | None:
        """What the driver says of an address."""
        answer = self.ops.iova_to_phys(domain=domain, iova=np.array([iova], dtype=np.uint64))[0]
        return None if answer == UNMAPPED else int(answer)

    # ---- DMA ---------------------------------------------------------------------------------------------------------

    def reached(self, device: Device, *iovas: int) -> list[int | None]:
        """The physical addresses that reads reach; ``None`` where nothing comes, ``ELSEWHERE`` where it is no stamped memory."""
        found: list[int | None] = []
        for at in range(0, len(iovas), BATCH):
            some = iovas[at : at + BATCH]
            self.arm(device, len(some))
            for place, iova in enumerate(some):
                self.load(device, iova, place)
            found += self.arrived(device, len(some))
        return found

    def arm(self, device: Device, count: int = 1) -> None:
        """Fill the device's buffer with something that is nowhere in memory; it must be able to do DMA."""
        self.initiator(device).poke(0, POISON * count)

    def load(self, device: Device, iova: int, place: int = 0) -> None:
        """Let the device read, wherever it is; then the interrupt is dealt with."""
        self.initiator(device).load(iova, SIZE, place * SIZE)
        self.collect()

    def arrived(self, device: Device, count: int = 1) -> list[int | None]:
        """What the device has read since ``arm``; it must be able to do DMA."""
        data = self.initiator(device).peek(0, count * SIZE)
        return [self._where(data[at : at + SIZE]) for at in range(0, count * SIZE, SIZE)]

    def _where(self, data: bytes) -> int | None:
        if data in (POISON, bytes(SIZE)):
            return None
        one, two = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        return one if two == one + 8 and self.memory.holds(one) else ELSEWHERE

    def mark(self, device: Device) -> bytes:
        """Fill the device's buffer with something new."""
        self._marks += 1
        data = self._marks.to_bytes(8, "big") + b"iommukit"
        self.initiator(device).poke(0, data)
        return data

    def store(self, device: Device, iova: int) -> None:
        """Let the device write what it holds; then the interrupt is dealt with."""
        self.initiator(device).store(iova, SIZE)
        self.collect()

    def lands(self, device: Device, iova: int, physical: int) -> bool:
        """Whether what the device writes to an address arrives at the physical one, which is stamped again."""
        data = self.mark(device)
        self.store(device, iova)
        return self.was_hit(physical, data)

    def was_hit(self, physical: int, data: bytes) -> bool:
        """Whether these bytes are at a physical address, which is stamped again."""
        hit = self.memory.read(physical, SIZE) == data
        if hit:
            self._stamp_here(physical)
        return hit

    @contextmanager
    def busy(self, device: Device, *iovas: int) -> Iterator[None]:
        """Meanwhile the device reads these addresses after each of the driver's first register writes.

        Not after all of them: a driver that deals with faults on the way would never come to an end.
        """
        engine = self.initiator(device)
        rounds, reading = 0, False

        def read() -> None:
            nonlocal rounds, reading
            if not reading and rounds < BUSY:
                rounds, reading = rounds + 1, True
                for iova in iovas:
                    engine.load(iova, SIZE)
                reading = False

        self.platform.bus.after = read
        try:
            yield
        finally:
            self.platform.bus.after = None
            self.collect()

    def words(self, device: Device, iovas: Sequence[int] | Addresses) -> Addresses:
        """The words at many addresses; ``UNMAPPED`` where nothing comes.  In stamped memory they are physical addresses."""
        found = self.initiator(device).load_words(np.asarray(iovas, dtype=np.uint64))
        self.collect()
        return found

    # ---- faults ------------------------------------------------------------------------------------------------------

    @property
    def units(self) -> list[Unit]:
        """The units above the devices."""
        return list(dict.fromkeys(device.unit for device in self.users if device.unit is not None))

    def collect(self) -> None:
        """Let the driver read the faults."""
        for unit in self.units:
            self.told += self.ops.take_faults(unit=unit)

    def faults(self) -> list[Fault]:
        """What the driver has read since the last time."""
        self.collect()
        told, self.told = self.told, []
        return told

    def requester(self, device: Device) -> int:
        """The hardware's name for a device."""
        return int(self.ops.requester(device=device))

    # ---- what cases look at ------------------------------------------------------------------------------------------

    def expect(
        self, device: Device, iova: int, size: int, physical: int | None, when: str = "", *, was: int | None = None
    ) -> Iterator[str | None]:
        """A device reads a range: the physical range is what it must reach, or nothing, though it ``was`` at another before."""
        spots = [offset for offset in self.spots(size) if physical is None or self.is_buffer(physical + offset)]
        for known in (place for place in (physical, was) if place is not None):
            for offset in spots:
                if self.is_buffer(known + offset):
                    self._stamp_here(known + offset)
        for offset, at in zip(spots, self.reached(device, *(iova + offset for offset in spots)), strict=True):
            wanted = None if physical is None else physical + offset
            if at == wanted:
                yield None
            else:
                yield f"{device.name} at {iova + offset:#x}{when} reaches {_shown(at)}; {_shown(wanted)} was expected"

    def expect_write(self, device: Device, iova: int, physical: int, *, lands: bool, when: str = "") -> Iterator[str | None]:
        """A device writes: the data must land at the physical address, or must not."""
        hit = self.lands(device, iova, physical)
        said = ("does not reach", "reaches")
        text = f"{device.name} writing at {iova:#x}{when} {said[hit]} {physical:#x}; it {said[lands]} it by right"
        yield None if hit == lands else text

    @staticmethod
    def refusal(action: Callable[..., object], *arguments: Any) -> str:
        """The errno with which something is refused; empty where it is not."""
        try:
            action(*arguments)
        except IommuError as error:
            return error.name
        return ""


def _shown(physical: int | None) -> str:
    if physical is None:
        return "nothing"
    return "other memory" if physical == ELSEWHERE else f"{physical:#x}"
