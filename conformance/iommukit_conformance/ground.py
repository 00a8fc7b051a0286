"""The ground that a hardware case stands on: a booted system on a platform, its devices, and addresses that nothing else uses.

Memory under test is stamped: each 64-bit word holds its own physical address, so that what a device reads says where it has read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from iommukit.device import Device
from iommukit.domain import Domain
from iommukit.errors import NotApplicable
from iommukit.hw.platform import Initiator
from iommukit.kernel.system import System
from iommukit.regions import RegionType
from iommukit_conformance.watched_bus import WatchedPlatform

SIZE = 16
"""Bytes of one look (two words)."""
WHOLE = 1 << 23
"""Ranges up to this size (bytes) are stamped as a whole."""
SHOWN = 8
"""Pages at either end of a long range that are looked at."""


class Ground:
    """A system on hardware, with the devices ``nic`` and ``second``.  Addresses and sizes are in bytes."""

    def __init__(self, system: System, platform: WatchedPlatform) -> None:
        self.system = system
        self.platform = platform
        self.memory = platform.bus.memory
        self.pages = self.memory.pages
        self._initiators: dict[Device, Initiator] = {}
        self._frame = platform.buffers.start
        self._taken: list[tuple[int, int]] = []
        """I/O addresses that no test may use again."""
        if platform.is_model:
            # Where entries of nothing but zeros lead.
            self.memory.words[:512] = np.arange(self.memory.base, self.memory.base + 0x1000, 8, dtype=np.uint64)

    # ---- devices -----------------------------------------------------------------------------------------------------

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

    def is_buffer(self, physical: int) -> bool:
        """Whether a look at a physical address finds memory for buffers."""
        return self.platform.buffers.start <= physical and physical + SIZE <= self.platform.buffers.stop
