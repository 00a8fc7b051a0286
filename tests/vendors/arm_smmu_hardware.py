"""An SMMUv3 for tests: bits written by hand, without the driver, and systems that run the driver on the model."""

from __future__ import annotations

import numpy as np

import iommukit_arm_smmu
from iommukit.hw.bus import ModelBus
from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry
from iommukit_arm_smmu.model.configuration import Features
from iommukit_arm_smmu.model.unit import SmmuUnit

BASE, REGISTERS = 0x4000_0000, 0x0905_0000
TABLE, CONTEXT, COMMANDS, EVENTS, POOL = (BASE + offset for offset in (0x10_0000, 0x12_0000, 0x12_1000, 0x12_2000, 0x20_0000))
QUEUE = 5
"""Log2 of the entries of both queues."""
SID, ASID, VMID = 24, 5, 9
PAGE = 0x643
"""A page at stage 1: valid, page, AP[1], outer shareable, AF, and global: not global is bit 11."""
NOT_GLOBAL = 1 << 11


class Bench:
    """One unit on a bus, with a linear stream table of 256 entries; what it is told stands here as bare numbers."""

    def __init__(self, *, stages=(1,), granules=(12, 14, 16), output=44, large=False, size=1 << 30, two_level=False):
        self.bus = ModelBus(PhysicalMemory(size, BASE))
        self.memory = self.bus.memory
        self.unit = SmmuUnit(self.memory, Features(frozenset(stages), frozenset(granules), output, 16, large, True))
        self.bus.attach(REGISTERS, 0x2_0000, self.unit)
        self.prod = 0
        self.seen = 0
        self._next = POOL
        self.set(0x2C, 0b10)  # CR2.RECINVSID
        self.bus.write(REGISTERS + 0x80, 8, TABLE)
        self.set(0x88, (1 << 16 | 8 << 6 | 16) if two_level else 8)
        self.bus.write(REGISTERS + 0x90, 8, COMMANDS | QUEUE)
        self.bus.write(REGISTERS + 0xA0, 8, EVENTS | QUEUE)
        self.set(0x20, 0b1101)

    def set(self, offset, value):
        self.bus.write(REGISTERS + offset, 4, value)

    def get(self, offset):
        return self.bus.read(REGISTERS + offset, 4)

    # ---- memory ------------------------------------------------------------------------------------------------------

    def words(self, address, *words):
        for index, word in enumerate(words):
            self.memory.set_word(address + 8 * index, word)

    def room(self, size):
        address = -(-self._next // size) * size
        self._next = address + size
        return address

    def ste(self, *words, sid=SID):
        self.words(TABLE + 64 * sid, *words, *(0,) * (8 - len(words)))

    def cd(self, root, *, tsz=25, granule=0, flip=0, ttb1=0, asid=ASID, at=CONTEXT):
        """V, AA64, A, R, IPS 44 bits, EPD1 unless there is a TTB1."""
        word = tsz | granule << 6 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48
        word |= (tsz << 16 | 2 << 22) if ttb1 else 1 << 30
        self.words(at, word ^ flip, root, ttb1, 0xFF, 0, 0, 0, 0)

    def stage_1(self, root=None, **fields):
        """A stream with stage 1 tables; the root's address."""
        root = self.room(0x1_0000) if root is None else root
        self.cd(root, **fields)
        self.ste(0b1011 | CONTEXT)
        return root

    def stage_2(self, root=None, *, t0sz=25, sl0=1, tg=0, vmid=VMID, config=0b110, flip=0):
        root = self.room(0x1_0000) if root is None else root
        word = vmid | t0sz << 32 | sl0 << 38 | tg << 46 | 4 << 48 | 1 << 51 | 1 << 58
        self.ste(1 | config << 1 | (CONTEXT if config & 1 else 0), 0, word ^ flip, root)
        return root

    def map(self, root, bits, address, entry, *, granule=12, level=3, table=0, widen=0):
        """Put a descriptor in place, with the tables above it; answers its address."""
        stride = granule - 3
        at = 4 - -(-(bits - granule) // stride) + bool(widen)
        top = root
        while True:
            shift = granule + stride * (3 - at)
            index = address >> shift & ((1 << (bits - shift if root == top else stride)) - 1)
            where = root + 8 * index
            if at == level:
                self.memory.set_word(where, entry)
                return where
            word = self.memory.word(where)
            if not word & 1:
                word = self.room(1 << granule) | 3 | table
                self.memory.set_word(where, word)
            root = word & 0xFFFF_FFFF_F000 & -(1 << granule)
            at += 1

    # ---- queues ------------------------------------------------------------------------------------------------------

    def command(self, *commands, sync=True):
        for first, second in (*commands, *([(0x46, 0)] if sync else [])):
            self.words(COMMANDS + 16 * (self.prod & (1 << QUEUE) - 1), first, second)
            self.prod = (self.prod + 1) & (2 << QUEUE) - 1
        self.set(0x98, self.prod)
        return self.get(0x9C)

    def forget(self):
        """Everything: CFGI_ALL and NSNH_ALL."""
        self.command((0x04, 31), (0x30, 0))

    def events(self):
        """Type, stream, input address, whether it was a read, of the events since the last call."""
        found = []
        prod = self.get(0x1_00A8) & 0xFFFFF
        while self.seen != prod:
            words = self.memory.table(EVENTS + 32 * (self.seen & (1 << QUEUE) - 1), 4).tolist()
            found.append((words[0] & 0xFF, words[0] >> 32, words[2], bool(words[1] >> 35 & 1)))
            self.seen = (self.seen + 1) & (2 << QUEUE) - 1
        self.set(0x1_00AC, self.seen | self.get(0x1_00A8) & 1 << 31)
        return found

    def read(self, address, sid=SID):
        return self.unit.translate(sid, address, write=False)

    def write(self, address, sid=SID):
        return self.unit.translate(sid, address, write=True)

    def many(self, *addresses, write=False):
        return self.unit.translate_many(SID, np.array(addresses, dtype=np.uint64), write=write).tolist()


# ---- the driver ------------------------------------------------------------------------------------------------------

REGISTRY = VendorRegistry()
ARM = REGISTRY.register(iommukit_arm_smmu, "arm_smmu")
NIC = {"name": "nic", "address": "0000:00:03.0", "id": "8086:10d3", "class": "020000", "kind": "integrated_endpoint"}
SECOND = {**NIC, "name": "second", "address": "0000:00:04.0"}


def boot(kernel, *devices, hardware=None, platform=None, kconfig="strict", cmdline="", registry=REGISTRY):
    document = {"machine": "board", "arch": "aarch64", "hardware": hardware or {}, "devices": devices or (NIC, SECOND)}
    spec = BootSpec(kconfig=kconfig, cmdline=cmdline)
    platform = platform or ModelPlatform(8 << 30)
    return start_system(
        get_kernel(kernel), registry.get("arm_smmu"), registry, Machine.model_validate(document), spec, platform=platform
    )


class Recorded:
    """A platform that keeps what the driver writes to registers and, at each doorbell, the new commands."""

    def __init__(self):
        self.platform = ModelPlatform(8 << 30)
        self.writes = []
        self.commands = []
        self._prod = 0
        bus = self.platform.bus
        honest = bus.write

        def write(address, size, value):
            offset = address - REGISTERS
            self.writes.append((offset, value))
            if offset == 0x98:
                self._take(bus, value)
            honest(address, size, value)

        bus.write = write

    def _take(self, bus, prod):
        base = bus.read(REGISTERS + 0x90, 8)
        size = 1 << (base & 0x1F)
        while self._prod != prod:
            at = (base & ((1 << 52) - 32)) + 16 * (self._prod & size - 1)
            self.commands.append(tuple(bus.memory.table(at, 2).tolist()))
            self._prod = (self._prod + 1) & 2 * size - 1

    def opcodes(self):
        """The opcodes since the last call."""
        found, self.commands = [first & 0xFF for first, _ in self.commands], []
        return found


def parts(system, name="nic"):
    device = system.devices[name]
    return device, device.attached, system.platform.model(device)


def reaches(system, iova, write=False, name="nic"):
    device, _, model = parts(system, name)
    return model.translate(ARM.ops.requester(device=device), iova, write=write)


def running(system):
    return system.units[0].state.running
