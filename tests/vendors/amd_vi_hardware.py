"""What the tests of AMD-Vi's hardware share: an IOMMU whose tables are written by hand, and the driver on the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from iommukit.hw.bus import ModelBus
from iommukit.hw.platform import ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit_amd_vi.model.unit import AmdModel
from iommukit_amd_vi.units import Iommu

from .amd_vi import AMD, REGISTRY

BASE = 0xFED80000
DEVTAB, CMDBASE, EVTBASE, CONTROL, EXBASE, EXLIMIT, EFR = 0, 8, 0x10, 0x18, 0x20, 0x28, 0x30
CMDHEAD, CMDTAIL, EVTHEAD, EVTTAIL, STATUS = 0x2000, 0x2008, 0x2010, 0x2018, 0x2020
IOMMU_EN, EVENT_LOG_EN, CMD_BUF_EN, GT_EN = 1 << 0, 1 << 2, 1 << 12, 1 << 16
ON = IOMMU_EN | EVENT_LOG_EN | CMD_BUF_EN
V, TV, GIOV, GV = 1 << 0, 1 << 1, 1 << 54, 1 << 55
PR, FC, IR, IW = 1 << 0, 1 << 60, 1 << 61, 1 << 62
RW = IR | IW
TABLE, COMMANDS, EVENTS, WORD, TABLES = 0x100000, 0x400000, 0x410000, 0x420000, 0x1000000
SID, DOMAIN = 0x18, 7
GUEST_FEATURES = 0x29D3 | 1 << 48


@dataclass
class Hand:
    """An IOMMU that a test drives register by register, bit by bit."""

    iommu: Iommu = field(default_factory=lambda: Iommu(0, 0, 2))
    bus: ModelBus = field(default_factory=ModelBus)
    control: int = ON
    tail: int = 0
    next: int = TABLES
    sequence: int = 0

    def __post_init__(self):
        self.model = AmdModel(self.bus, self.iommu)
        self.memory = self.bus.memory
        self.put(DEVTAB, TABLE | 511)
        self.put(CMDBASE, COMMANDS | 8 << 56)
        self.put(EVTBASE, EVENTS | 8 << 56)
        self.put(CONTROL, self.control)

    def put(self, register, value, size=8):
        self.bus.write(BASE + register, size, value)

    def get(self, register, size=8):
        return self.bus.read(BASE + register, size)

    def page(self):
        self.next += 0x1000
        return self.next - 0x1000

    def entry(self, *words, device=SID):
        for number, word in enumerate(words):
            self.memory.set_word(TABLE + device * 32 + number * 8, word)

    def host(self, root, mode, *, device=SID, domain=DOMAIN, allow=RW):
        self.entry(root | mode << 9 | allow | V | TV, domain, 0, 0, device=device)

    def command(self, first, second=0, *, ring=True):
        self.memory.set_word(COMMANDS + self.tail, first)
        self.memory.set_word(COMMANDS + self.tail + 8, second)
        self.tail = (self.tail + 16) % 0x1000
        if ring:
            self.put(CMDTAIL, self.tail)

    def wait(self):
        """COMPLETION_WAIT with a store: whether the data arrives."""
        self.sequence += 1
        self.command(1 << 60 | WORD | 1, self.sequence)
        return self.memory.word(WORD) == self.sequence

    def events(self):
        """Code, device, flags (59:48), domain or PASID, address."""
        head, tail = self.get(EVTHEAD), self.get(EVTTAIL)
        found = []
        while head != tail:
            low, high = self.memory.word(EVENTS + head), self.memory.word(EVENTS + head + 8)
            found.append((low >> 60, low & 0xFFFF, low >> 48 & 0xFFF, low >> 32 & 0xFFFF, high))
            head = (head + 16) % 0x1000
        self.put(EVTHEAD, head)
        return found

    def read(self, iova, *, device=SID, **more):
        return self.model.translate(device, iova, write=False, **more)

    def write(self, iova, *, device=SID, **more):
        return self.model.translate(device, iova, write=True, **more)


def tables(hand, top, levels, iova, value, *, level=1, directory=PR | RW):
    """Put an entry at ``level`` on an address's way; missing directories are made.  Returns the entry's address."""
    table = top
    for at in range(levels, level, -1):
        address = table + 8 * (iova >> 3 + 9 * at & 511)
        if not hand.memory.word(address) & 1:
            hand.memory.set_word(address, hand.page() | at - 1 << 9 | directory)
        table = hand.memory.word(address) & 0x000F_FFFF_FFFF_F000
    address = table + 8 * (iova >> 3 + 9 * level & 511)
    hand.memory.set_word(address, value)
    return address


NIC = {"name": "nic", "address": "0000:00:03.0", "id": "8086:10d3", "class": "020000", "kind": "integrated_endpoint"}
SECOND = {**NIC, "name": "second", "address": "0000:00:04.0"}
GUEST_TABLES = {"guest_translation": True, "gio_sup": True}


class OnModel:
    """A kernel with the driver on the model, and two network cards."""

    def __init__(self, kernel, *devices, hardware=None, cmdline="", firmware=None, registry=REGISTRY, kconfig="strict"):
        machine = {"machine": "m", "arch": "x86_64", "hardware": hardware or {}, "devices": devices or (NIC, SECOND)}
        if firmware:
            machine["firmware"] = {"IVRS": firmware}
        self.platform = ModelPlatform()
        vendor = registry.get("amd_vi")
        spec = BootSpec(kconfig=kconfig, cmdline=cmdline)
        self.system = start_system(
            get_kernel(kernel), vendor, registry, Machine.model_validate(machine), spec, platform=self.platform
        )
        self.ops = vendor.ops
        self.memory = self.platform.bus.memory

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.platform.close()

    def __getattr__(self, name):
        if name in self.system.devices:
            return self.system.devices[name]
        raise AttributeError(name)

    def reaches(self, device, iova, *, write=False):
        """The physical address that a device's request reaches."""
        model = self.platform.model(device)
        return model.translate(self.ops.requester(device=device), iova, write=write)

    def entry(self, device):
        """The device table entry of a device, by its requester id or itself."""
        id = device if isinstance(device, int) else self.ops.requester(device=device)
        unit = self.system.units[0]
        address = unit.state.hardware.table.address + 32 * id
        return tuple(self.memory.word(address + 8 * word) for word in range(4))


__all__ = ["AMD", "REGISTRY", "Hand", "OnModel", "tables"]
