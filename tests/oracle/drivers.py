"""Four drivers of a page each, so that the platform is tested without the vendors' own.

Each brings an IOMMU up for the devices of its machine with one address space for all of them, maps single 4 KiB pages, and
invalidates everything.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod

from iommukit.errors import InputError
from iommukit.hookspecs import Emulation
from iommukit.hw.bus import Bus
from iommukit.hw.platform import Window
from iommukit_oracle.hardware.qemu import find

PAGE = 0x1000


def pci_machine(binary: str, *arguments: str, base: int = 0) -> Emulation:
    """A machine with the three devices in slots 3, 4 and 5."""
    devices = [{"name": name, "address": f"0000:00:0{slot}.0"} for slot, name in enumerate(("nic", "second", "bulk"), 3)]
    return Emulation(binary, arguments, {"devices": devices}, memory_base=base)


class Driver(ABC):
    """What the tests ask of a driver.  Addresses are bytes."""

    machine: Emulation
    functions = (3 << 3, 4 << 3, 5 << 3)

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.memory = bus.memory

    def page(self, size: int = PAGE) -> int:
        return self.memory.pages.alloc(size)

    def open(self, window: Window) -> None:
        for offset in range(0, window.size, PAGE):
            self.map(window.iova + offset, window.physical + offset)
        self.flush()

    def descend(self, table: int, iova: int, levels: int, link: int) -> int:
        """The address of the last level's entry; ``link`` is what an entry that leads to a table has besides its address."""
        for level in range(levels - 1, 0, -1):
            at = table + 8 * (iova >> 12 + 9 * level & 511)
            if not self.memory.word(at) & 1:
                self.memory.set_word(at, self.page() | link | (level << 9 if link >> 61 else 0))
            table = self.memory.word(at) & 0xFFFF_FFFF_F000
        return table + 8 * (iova >> 12 & 511)

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def map(self, iova: int, physical: int) -> None: ...

    @abstractmethod
    def unmap(self, iova: int) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...


class Vtd(Driver):
    machine = pci_machine("x86_64", "-M", "q35", "-device", "intel-iommu,aw-bits=39")
    base = 0xFED9_0000

    def start(self) -> None:
        root, context, self.top = self.page(), self.page(), self.page()
        self.memory.set_word(root, context | 1)
        for function in self.functions:
            self.memory.write(context + 16 * function, struct.pack("<QQ", self.top | 1, 1 | 7 << 8))
        self.bus.write(self.base + 0x20, 8, root)
        self.bus.write(self.base + 0x18, 4, 1 << 30)
        self.flush()
        self.bus.write(self.base + 0x18, 4, 1 << 31)

    def map(self, iova: int, physical: int) -> None:
        self.memory.set_word(self.descend(self.top, iova, 3, 3), physical | 3)

    def unmap(self, iova: int) -> None:
        self.memory.set_word(self.descend(self.top, iova, 3, 3), 0)

    def flush(self) -> None:
        self.bus.write(self.base + 0x28, 8, 1 << 63 | 1 << 61)
        self.bus.write(self.base + 0xF8, 8, 1 << 63 | 1 << 60)


def passes_through() -> bool:
    """Whether the AMD IOMMU of the QEMU that is installed passes all DMA through unless told otherwise."""
    try:
        return find("x86_64").version >= (9, 0)
    except InputError:
        return False


class AmdVi(Driver):
    machine = pci_machine("x86_64", "-M", "q35", "-device", "amd-iommu,pt=off" if passes_through() else "amd-iommu")
    base = 0xFED8_0000
    RIGHTS = 3 << 61

    def start(self) -> None:
        table, self.top = self.page(0x10000), self.page()
        self.commands, self.done = self.page(), self.page()
        self.tail = 0
        for function in self.functions:
            self.memory.write(table + 32 * function, struct.pack("<4Q", self.top | 3 << 9 | self.RIGHTS | 3, 7, 0, 0))
        self.bus.write(self.base, 8, table | 15)
        self.bus.write(self.base + 8, 8, self.commands | 8 << 56)
        self.bus.write(self.base + 0x18, 8, 1 | 1 << 12)

    def map(self, iova: int, physical: int) -> None:
        self.memory.set_word(self.descend(self.top, iova, 3, self.RIGHTS | 1), physical | self.RIGHTS | 1)

    def unmap(self, iova: int) -> None:
        self.memory.set_word(self.descend(self.top, iova, 3, self.RIGHTS | 1), 0)

    def flush(self) -> None:
        self.memory.write(self.commands + self.tail, struct.pack("<QQ", 3 << 60 | 7 << 32, 0x7FFF_FFFF_FFFF_F003))
        self.tail = (self.tail + 16) % PAGE
        self.bus.write(self.base + 0x2008, 8, self.tail)


class Smmu(Driver):
    machine = pci_machine("aarch64", "-M", "virt,iommu=smmuv3", "-cpu", "cortex-a57", base=1 << 30)
    base = 0x0905_0000

    def start(self) -> None:
        streams, context, self.top = self.page(0x4000), self.page(), self.page()
        self.commands, events = self.page(), self.page()
        self.produced = 0
        self.memory.write(
            context, struct.pack("<4Q", 25 | 5 << 8 | 3 << 12 | 1 << 30 | 0x6204 << 32 | 5 << 48 | 1 << 31, self.top, 0, 0xFF)
        )
        for function in self.functions:
            self.memory.set_word(streams + 64 * function, context | 5 << 1 | 1)
        for offset, size, value in (
            (0x80, 8, streams),
            (0x88, 4, 8),
            (0x90, 8, self.commands | 7),
            (0xA0, 8, events | 6),
            (0x20, 4, 0xD),
        ):
            self.bus.write(self.base + offset, size, value)
        self.flush()

    def map(self, iova: int, physical: int) -> None:
        self.memory.set_word(self.descend(self.top, iova, 3, 3), physical | 3 << 8 | 1 << 10 | 1 << 6 | 3)

    def unmap(self, iova: int) -> None:
        self.memory.set_word(self.descend(self.top, iova, 3, 3), 0)

    def flush(self) -> None:
        for command in ((4, 31), (0x30, 0)):
            self.memory.write(self.commands + 16 * (self.produced & 127), struct.pack("<QQ", *command))
            self.produced = self.produced + 1 & 255
        self.bus.write(self.base + 0x98, 4, self.produced)


class Zpci(Driver):
    machine = Emulation(
        "s390x",
        ("-M", "s390-ccw-virtio", "-cpu", "max"),
        {"devices": [{"name": name, "attributes": {"uid": fid, "fid": fid}} for fid, name in enumerate(("nic", "second"), 2)]},
    )
    INVALID = 0x20, 0x400
    SPAN = 1 << 32, 1 << 41

    def start(self) -> None:
        do = self.bus.instructions
        assert do is not None
        self.do = do
        self.top = self._table(2048, self.INVALID[0])
        _, answer = do.clp(struct.pack(">HHI24xHH", 32, 2, 0, 32 + 16 * 8, 0))
        self.handles = []
        for at in range(32, struct.unpack_from(">H", answer)[0], 16):
            handle = struct.unpack_from(">I", answer, at + 12)[0]
            _, enabled = do.clp(struct.pack(">HHIQIHBBQHH", 32, 5, 0, 0, handle, 0, 0, 1, 0, 32, 0))
            self.handles.append(struct.unpack_from(">I", enabled, 16)[0])
            assert do.modify_controls(self.handles[-1], 4, 0, self.registration()).cc == 0

    def registration(self) -> bytes:
        """The function information block that registers the tables."""
        return struct.pack(">5Q", 0, 0, self.SPAN[0], self.SPAN[1] - 1, self.top | 0x804)

    def _table(self, entries: int, fill: int) -> int:
        at = self.page(8 * entries)
        self.memory.write(at, struct.pack(">Q", fill) * entries)
        return at

    def _entry(self, iova: int) -> int:
        table = self.top
        for shift, bits, below, flags in ((31, 11, (2048, self.INVALID[0]), 7), (20, 11, (256, self.INVALID[1]), 0)):
            at = table + 8 * (iova >> shift & (1 << bits) - 1)
            if self.memory.big_word(at) & 0x20:
                self.memory.set_big_word(at, self._table(*below) | flags)
            table = self.memory.big_word(at) & ~0x7FF
        return table + 8 * (iova >> 12 & 255)

    def map(self, iova: int, physical: int) -> None:
        self.memory.set_big_word(self._entry(iova), physical)
        self._refresh(iova)

    def unmap(self, iova: int) -> None:
        self.memory.set_big_word(self._entry(iova), self.INVALID[1])
        self._refresh(iova)

    def _refresh(self, iova: int) -> None:
        for handle in self.handles:
            self.do.refresh_translations(handle, iova, PAGE)

    def flush(self) -> None:
        """Each entry was refreshed."""


DRIVERS = {"vtd": Vtd, "amdvi": AmdVi, "smmu": Smmu, "zpci": Zpci}
