"""The platform ``qemu``: an emulated machine with a vendor's IOMMU, as that vendor's plugin describes it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from iommukit.device import Device
from iommukit.errors import InputError, NotApplicable
from iommukit.hookspecs import Emulation
from iommukit.hw.platform import LOW, Initiator, Window
from iommukit_oracle.hardware.initiators import EDU, LSI, EduInitiator, LsiInitiator, PciModel
from iommukit_oracle.hardware.instructions import AgentInstructions
from iommukit_oracle.hardware.pci import place
from iommukit_oracle.hardware.qemu import Qemu, find
from iommukit_oracle.hardware.qtest import QemuBus
from iommukit_oracle.hardware.virtio_blk import DISK, VirtioBlkInitiator

if TYPE_CHECKING:
    from iommukit.device import Unit
    from iommukit.vendors import Vendor

ENGINES: Mapping[str, tuple[PciModel, type[EduInitiator] | type[LsiInitiator]]] = {
    "nic": (EDU, EduInitiator),
    "second": (EDU, EduInitiator),
    "bulk": (LSI, LsiInitiator),
}
"""The device of QEMU for each device of the machine that can be told to do DMA."""

OWN = 1 << 20
"""Bytes at the end of memory for the devices' windows."""
WINDOW = 1 << 16
"""Windows are a multiple of this (bytes): whole pages of whatever size tables have."""
BAR_SPACE = 1 << 22
"""Bytes of address space for each function's base address registers."""


def emulation_of(vendor: Vendor) -> Emulation:
    """The emulated machine that has a vendor's IOMMU, with its variants.

    Raises ``InputError`` where QEMU is not installed, ``NotApplicable`` where it has no such IOMMU.
    """
    if "emulation" not in vendor.ops.implemented:
        raise NotApplicable(f"{vendor.name} names no machine of QEMU")
    programs = [find(arch) for arch in vendor.declaration.arch]
    machines = (vendor.ops.emulation(version=program.version) for program in programs)
    found: Emulation | None = next((machine for machine in machines if machine is not None), None)
    if found is None:
        releases = ", ".join(program.release for program in programs)
        raise NotApplicable(f"QEMU {releases} has no IOMMU of {vendor.name}")
    return found


def start(vendor: Vendor, variant: str) -> QemuPlatform:
    """The platform for a vendor, the empty variant being its plain machine.  Raises what ``emulation_of`` raises."""
    return QemuPlatform(emulation_of(vendor).machine_of(variant))


class QemuPlatform:
    """An emulated machine with an IOMMU, in its state after reset.

    ``trace`` are patterns of QEMU's trace events, which end up in ``qemu.process.said()``.  Raises ``InputError`` where QEMU is
    missing or does not start; from then on anything may raise ``HardwareLost``.
    """

    def __init__(self, emulation: Emulation, *, trace: Sequence[str] = ()) -> None:
        program = find(emulation.binary)
        self.name = f"QEMU {program.release}"
        self.emulation: Emulation | None = emulation
        self._host = program.host
        self._devices = {device["name"]: device for device in emulation.machine["devices"] if device["name"] in ENGINES}
        self._disks: dict[str, int] = {}
        plug = self._plug_pci if self._host.pci else self._plug_zpci
        try:
            self.qemu = Qemu(
                program,
                [*emulation.arguments, *(word for name in self._devices for word in plug(name))],
                memory_size=emulation.memory_size,
                memory_base=emulation.memory_base,
                files=self._disks,
                trace=trace,
            )
        except BaseException:
            self._close_disks()
            raise
        memory = self.qemu.memory
        memory.pages.end -= OWN
        self._free = memory.pages.end
        self.buffers = range(memory.base + LOW, memory.pages.start)
        self._instructions = None if self._host.pci else AgentInstructions(self.qemu)
        self.bus: QemuBus = QemuBus(self.qemu.qtest, memory, self._instructions)
        self._initiators: dict[str, Initiator] = {}

    # ---- devices -----------------------------------------------------------------------------------------------------

    def _plug_pci(self, name: str) -> Sequence[str]:
        function = self._function(name)
        return ("-device", f"{ENGINES[name][0].option},addr={function >> 3:x}.{function & 7}")

    def _plug_zpci(self, name: str) -> Sequence[str]:
        disk = self._disks[name] = os.memfd_create(f"disk-{name}")
        os.ftruncate(disk, DISK)
        return (
            *("-blockdev", f"driver=file,node-name={name}-disk,filename={{{name}}},locking=off"),
            *("-device", f"zpci,uid={self._attribute(name, 'uid')},fid={self._attribute(name, 'fid')},target={name}"),
            *("-device", f"virtio-blk-pci,id={name},drive={name}-disk,iommu_platform=on,disable-legacy=on"),
        )

    def _function(self, name: str) -> int:
        """A device's number on the root bus: slot and function."""
        address = str(self._devices[name]["address"])
        found = re.fullmatch(r"0000:00:([01][0-9a-f])\.([0-7])", address)
        if found is None:
            raise InputError(f"{name} is at {address}, which is not on the root bus", source="emulation")
        return int(found[1], 16) << 3 | int(found[2])

    def _attribute(self, name: str, key: str) -> int:
        value = self._devices[name].get("attributes", {}).get(key)
        if not isinstance(value, int):
            raise InputError(f"{name} has no attribute {key}", source="emulation")
        return value

    def _window(self, size: int) -> Window:
        size = -(-size // WINDOW) * WINDOW
        at, self._free = self._free, self._free + size
        iova = at if self._host.windows is None else self._host.windows + at - self.bus.memory.pages.end
        return Window(iova, at, size)

    def _pci_initiator(self, name: str) -> Initiator:
        assert self._host.pci is not None
        function = self._function(name)
        model, kind = ENGINES[name]
        at = self._host.pci.window + (function >> 3) * BAR_SPACE
        bars = {}
        for number, size in model.bars.items():
            bars[number] = -(-at // size) * size
            at = bars[number] + size
        place(self._host.pci.config(self.qemu.qtest), function, model.ids, bars)
        return kind(self.qemu.qtest, self.qemu.memory, bars, self._window(kind.WINDOW))

    def _zpci_initiator(self, name: str) -> Initiator:
        assert self._instructions is not None
        window = self._window(VirtioBlkInitiator.WINDOW)
        fid, disk = self._attribute(name, "fid"), self._disks[name]
        return VirtioBlkInitiator(self.qemu, self._instructions, name, fid, disk, window)

    # ---- the platform ------------------------------------------------------------------------------------------------

    def install(self, units: Sequence[Unit], ops: Any) -> bool:
        """The hardware is there already."""
        return bool(units)

    def initiator(self, device: Device) -> Initiator:
        """The device's DMA.  Raises ``NotApplicable`` for a device that is none of the emulated machine's."""
        return self.engine(device.name)

    def engine(self, name: str) -> Initiator:
        """The DMA of the device of that name in the machine document."""
        if name not in self._devices:
            raise NotApplicable(f"{name} cannot be told to do DMA in {self.name}: {', '.join(self._devices) or 'nobody'} can")
        if name not in self._initiators:
            make: Callable[[str], Initiator] = self._pci_initiator if self._host.pci else self._zpci_initiator
            self._initiators[name] = make(name)
        return self._initiators[name]

    def close(self) -> None:
        """End QEMU."""
        self.qemu.close()
        self._close_disks()

    def _close_disks(self) -> None:
        while self._disks:
            os.close(self._disks.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
