"""Machines of PCI functions for tests, and tables for them written by hand: numbers here are the architecture's own."""

from __future__ import annotations

import struct

import iommukit_s390
from iommukit.hw.bus import ModelBus
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import Era
from iommukit.vendors import VendorRegistry
from iommukit_s390.functions import find_functions
from iommukit_s390.model.facility import Facility
from iommukit_s390.model.unit import FunctionModel

REGISTRY = VendorRegistry()
S390 = REGISTRY.register(iommukit_s390, "s390")
KERNELS = ("6.1", "rfc", "6.12", "7.2")
SDMA = 0x1_0000_0000
"""First DMA address of a function, as QEMU has it."""
ROOT, POOL = 0x10_0000, 0x20_0000
INVALID, PAGE_INVALID, PROTECT, FRAME = 0x20, 0x400, 0x200, 0x400
SEGMENT, REGION_THIRD, REGION_SECOND, REGION_FIRST = 0x800, 0x804, 0x808, 0x80C
"""The low bits of anchors: T, and the designation type."""


def machine(*names, hardware=None, **attributes):
    return Machine.model_validate(
        {
            "machine": "z",
            "arch": "s390x",
            "hardware": hardware or {},
            "devices": [
                {"name": name, "id": "1af4:1042", "class": "010000", "kind": "zpci", "attributes": attributes}
                for name in names or ("nic",)
            ],
        }
    )


def boot(kernel, *names, hardware=None, kconfig="strict", registry=REGISTRY, cmdline=""):
    """A kernel on a machine of the hardware model: the system and its platform."""
    platform = ModelPlatform(1 << 32)
    spec = BootSpec(kconfig=kconfig, cmdline=cmdline)
    vendor = registry.get("s390")
    document = machine(*names, hardware=hardware)
    return start_system(get_kernel(kernel), vendor, registry, document, spec, platform=platform), platform


class Program:
    """A program that uses the instructions of a machine without any driver."""

    def __init__(self, *names, size=1 << 27, **hardware):
        self.bus = ModelBus(PhysicalMemory(size))
        self.memory = self.bus.memory
        self.facility = Facility(self.memory)
        functions = find_functions(machine(*names, hardware=hardware), factor=0, era=Era.V7_2)
        self.models: list[FunctionModel] = [self.facility.add(function) for function in functions]
        self.next = POOL

    @property
    def model(self) -> FunctionModel:
        return self.models[0]

    @property
    def handle(self):
        return self.model.handle

    def enabled(self):
        for model in self.models:
            answer = self.clp(5, struct.pack(">IHBBQ", model.handle, 0, 0, 1, 0), 32)
            assert answer[2:4] == b"\0\x10"
        return self

    def clp(self, command, argument, room):
        request = struct.pack(">HHIQ", 32, command, 0, 0) + argument
        completion, answer = self.facility.clp(request + struct.pack(">HH", room, 0))
        assert (completion.cc, completion.interruption) == (0, 0)
        return answer

    def modify(self, operation, *, base=SDMA, limit=SDMA + (1 << 31) - 1, iota=0, handle=None, space=0, measurement=0):
        block = struct.pack(">QQQQQQQQQQ", 0, 0, base, limit, iota, 0, 0, 0, measurement, 0)
        completion = self.facility.modify_controls(self.handle if handle is None else handle, operation, space, block)
        return completion.cc, completion.status, completion.interruption

    def register(self, iota=ROOT | REGION_THIRD, **range):
        assert self.modify(4, iota=iota, **range) == (0, 0, 0)
        return self

    def refresh(self, iova, size=0x1000, handle=None):
        completion = self.facility.refresh_translations(self.handle if handle is None else handle, iova, size)
        return completion.cc, completion.status

    def event(self):
        """The next event: code, function id, handle, address, and write or not; ``None`` without one."""
        block = self.facility.store_event()
        if block is None:
            return None
        length, code = struct.unpack_from(">HH", block)
        assert (length, code, block[7], block[11]) == (len(block), 1, 2, 1)
        handle, fid, bits = struct.unpack_from(">III", block, 64 + 4)
        write = {2: False, 3: True}.get(bits & 3)
        return struct.unpack_from(">H", block, 64 + 30)[0], fid, handle, struct.unpack_from(">Q", block, 64 + 16)[0], write

    # ---- tables by hand ----------------------------------------------------------------------------------------------

    def put(self, address, value):
        self.memory.write(address, value.to_bytes(8, "big"))

    def get(self, address):
        return int.from_bytes(self.memory.read(address, 8), "big")

    def table(self, entries, fill):
        address = -(-self.next // (entries * 8)) * entries * 8
        self.next = address + entries * 8
        self.memory.write(address, fill.to_bytes(8, "big") * entries)
        return address

    def root(self):
        self.memory.write(ROOT, INVALID.to_bytes(8, "big") * 2048)
        return ROOT

    def slot(self, iova, level=0, top=2):
        """Where the entry for an address is, at a level (0: page table), in tables made on the way below the root at ROOT."""
        shifts, table = (12, 20, 31, 42, 53), ROOT
        for at in range(top, -1, -1):
            address = table + 8 * (iova >> shifts[at] & (2047 if at else 255))
            if at == level:
                return address
            entry = self.get(address)
            if entry & INVALID:
                below = self.table(2048, INVALID) if at > 1 else self.table(256, PAGE_INVALID)
                entry = below | ((at - 1) << 2 | 3 if at > 1 else 0)
                self.put(address, entry)
            table = entry & (~0xFFF if at > 1 else ~0x7FF)
        raise AssertionError(level)

    def map(self, iova, frame, bits=0, *, top=2, level=0):
        self.put(self.slot(iova, level, top), frame | bits)
