"""The place where a hardware case is carried out: a booted system on a platform, with devices that do DMA when told.

Memory under test is stamped: each 64-bit word holds its own physical address, so that what a device reads says where it has read.
"""

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
from iommukit.hw.platform import UNMAPPED, Addresses, Initiator
from iommukit.kernel.system import System
from iommukit.regions import RegionType
from iommukit_conformance.watched_bus import WatchedPlatform

READ_WRITE = Prot.READ | Prot.WRITE
SIZE = 16
"""Bytes of one look (two words)."""
BATCH = 64
"""Looks that fit into a device's buffer at once."""
POISON = b"\xa5" * SIZE
ELSEWHERE = -1
"""Something was read that is not stamped memory."""
BUSY = 8
"""Register writes after which a busy device reads."""
WHOLE = 1 << 23
"""Ranges up to this size (bytes) are stamped as a whole."""
SHOWN = 8
"""Pages at either end of a long range that are looked at."""


class Rig:
    """A system on hardware, with the devices ``nic`` and ``second``.

    Addresses and sizes are in bytes.  ``told`` collects the faults that the driver has read: an interrupt follows each look.
    """

    def __init__(self, system: System, platform: WatchedPlatform) -> None:
        self.system = system
        self.platform = platform
        self.memory = platform.bus.memory
        self.pages = self.memory.pages
        self.told: list[Fault] = []
        self._initiators: dict[Device, Initiator] = {}
        self._frame = platform.buffers.start
        self._marks = 0
        self._taken: list[tuple[int, int]] = []
        """I/O addresses that no test may use again."""
        if platform.is_model:
            # Where entries of nothing but zeros lead.
            self.memory.words[:512] = np.arange(self.memory.base, self.memory.base + 0x1000, 8, dtype=np.uint64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.platform.close()

    # ---- devices and domains -----------------------------------------------------------------------------------------

    @property
    def ops(self) -> Any:
        """The vendor's hooks."""
        return self.system.vendor.ops

    @property
    def emulated(self) -> bool:
        """Whether an emulator stands behind the bus: everything takes longer, and memory is smaller."""
        return not self.platform.is_model

    @property
    def nic(self) -> Device:
        """The device that is mostly used."""
        return self.device("nic")

    @property
    def second(self) -> Device:
        """The other one."""
        return self.device("second")

    def device(self, name: str) -> Device:
        """A device of the machine that a unit translates for."""
        device = self.system.devices.get(name)
        if device is None or device.unit is None:
            raise NotApplicable(f"{self.system.vendor.name} has no unit for {name} in {self.system.kernel.name}")
        return device

    @property
    def users(self) -> list[Device]:
        """Those of the two that are there."""
        devices = (self.system.devices.get(name) for name in ("nic", "second"))
        return [device for device in devices if device is not None and device.unit is not None]

    def initiator(self, device: Device) -> Initiator:
        """The device's DMA."""
        if device not in self._initiators:
            initiator = self._initiators[device] = self.platform.initiator(device)
            self._taken += [(window.iova, window.iova + window.size) for window in initiator.windows]
        return self._initiators[device]

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

    @property
    def reach(self) -> int:
        """The first address that is too high for some of the devices."""
        return min(self.initiator(device).reach for device in self.users)

    # ---- addresses ---------------------------------------------------------------------------------------------------

    def granule(self, domain: Domain) -> int:
        """The smallest page (bytes)."""
        return domain.page_sizes & -domain.page_sizes

    def sizes(self, domain: Domain) -> list[int]:
        """The page sizes that can be tried, up to 1 GiB: aligned physical memory must be there, and room in the aperture."""
        first, last = domain.aperture
        room = min(last + 1, self.reach) - first
        found = [1 << bit for bit in range(12, 31) if domain.page_sizes >> bit & 1]
        return [size for size in found if size <= room // 8 and self._aligned(size) is not None]

    def _aligned(self, size: int) -> int | None:
        """The first aligned physical address, of a page of which at least the beginning or the end is buffer memory."""
        buffers = self.platform.buffers
        address = -(-buffers.start // size) * size
        if address + size <= buffers.stop:
            return address
        address = buffers.start & -size
        lowest = self.platform.emulation.lowest if self.platform.emulation is not None else 0
        return address if address >= lowest and self.memory.holds(address) and address + size > buffers.start else None

    def frames(self, size: int, align: int = 0) -> int:
        """``size`` bytes of physical memory, aligned to ``align`` (else to the page of 4 KiB), stamped.

        A larger page than there is room for begins before the memory for buffers or ends beyond it.
        """
        align = align or 0x1000
        address = -(-self._frame // align) * align
        if address + size <= self.platform.buffers.stop:
            self._frame = address + size
        else:
            found = self._aligned(align)
            if found is None:
                raise NotApplicable(f"no physical memory is aligned to {align:#x}")
            address = found
        self.stamp(address, size)
        return address

    def stamp(self, physical: int, size: int) -> None:
        """Let words hold their own addresses, as far as the range is memory for buffers; of very long ranges, the ``spots``."""
        buffers = self.platform.buffers
        first, last = max(physical, buffers.start), min(physical + size, buffers.stop)
        if last - first <= WHOLE:
            words = self.memory.words[first - self.memory.base >> 3 : last - self.memory.base >> 3]
            words[:] = np.arange(first, last, 8, dtype=np.uint64)
            return
        for offset in self.spots(size):
            at = physical + offset
            if buffers.start <= at and at + SIZE <= buffers.stop:
                self._stamp_here(at)

    def _stamp_here(self, physical: int) -> None:
        for at in range(physical, physical + SIZE, 8):
            self.memory.set_word(at, at)

    def iovas(self, domain: Domain, size: int, align: int = 0) -> int:
        """``size`` bytes of I/O addresses that are free for a test, aligned to ``align`` (else to the smallest page).

        A page of the smallest size on either side is free as well.
        """
        granule = self.granule(domain)
        align = align or granule
        first, last = domain.aperture
        last = min(last, self.reach - 1)
        # Not at the very beginning, where some case looks at the edge.
        address = max(first + granule, 1 << 20 if not first else 0)
        while True:
            address = -(-address // align) * align
            low, high = address - granule, address + size + granule
            hit = next((end for start, end in self._barred() if start < high and low < end), None)
            if hit is None:
                break
            address = hit + granule
        if high - 1 > last:
            raise NotApplicable(f"the aperture {first:#x}..{last:#x} has no room for {size:#x} bytes")
        self._taken.append((low, high))
        return address

    def border(self, domain: Domain, room: int) -> int:
        """The address with ``room`` bytes free on both sides that is aligned best: a border of tables of every level."""
        first, last = domain.aperture
        last = min(last, self.reach - 1)
        for bit in range(63, 11, -1):
            step = 1 << bit
            address = -(-(first + room) // step) * step
            for at in (address, address + step, address + 2 * step):
                if at + room - 1 > last or any(start < at + room and at - room < end for start, end in self._barred()):
                    continue
                self._taken.append((at - room, at + room))
                return at
        raise NotApplicable(f"the aperture {first:#x}..{last:#x} has no border of tables")

    def edges(self, domain: Domain) -> tuple[int, int]:
        """The first and the last address (bytes) of the aperture that is not reserved for the devices."""
        first, last = domain.aperture
        regions = sorted((region.start, region.end) for device in self.users for region in self.system.regions(device))
        for start, end in regions:
            if start <= first <= end:
                first = end + 1
        for start, end in reversed(regions):
            if start <= last <= end:
                last = start - 1
        return first, last

    def free_there(self, iova: int, size: int) -> bool:
        """Whether a test may use these I/O addresses."""
        return not any(start < iova + size and iova < end for start, end in self._barred())

    def larger(self, domain: Domain) -> list[int]:
        """Up to three of the larger page sizes: the smallest, the largest and one between."""
        sizes = self.sizes(domain)[1:]
        return sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]}) if sizes else []

    def _barred(self) -> Iterator[tuple[int, int]]:
        yield from self._taken
        for device in self.users:
            for region in self.system.regions(device):
                if region.type is not RegionType.SW_MSI:
                    yield region.start, region.end + 1

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

    def spots(self, size: int) -> list[int]:
        """The offsets of a range that are looked at: each page's beginning, and the very end.

        Of many pages, those at either end and those around powers of two.
        """
        pages = range(0, size, 0x1000)
        if len(pages) <= 2 * SHOWN:
            return [*pages, size - SIZE]
        middle = [1 << bit for bit in range(13, size.bit_length()) if 1 << bit < size]
        near = [at - 0x1000 for at in middle]
        return [*sorted({*pages[:SHOWN], *pages[-SHOWN:], *middle, *near}), size - SIZE]

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

    def is_buffer(self, physical: int) -> bool:
        """Whether a look at a physical address finds memory for buffers."""
        return self.platform.buffers.start <= physical and physical + SIZE <= self.platform.buffers.stop

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
