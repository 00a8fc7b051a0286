"""QEMU's command line: which devices a machine has, and where QEMU and the firmware put them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from iommukit.device import DeviceKind
from iommukit.errors import InputError
from iommukit_oracle.recording import Recording


@dataclass(frozen=True, slots=True)
class QemuDevice:
    """One ``-device``: QEMU's name for the model and its properties."""

    model: str
    properties: dict[str, str]

    def on(self, name: str) -> bool:
        """Whether a boolean property is given as on."""
        return self.properties.get(name) in ("on", "true", "yes")


@dataclass(slots=True)
class QemuArguments:
    """The part of a QEMU command line that makes the machine."""

    machine: dict[str, str] = field(default_factory=dict)
    """Properties of ``-M``; the type itself is under the empty name."""
    devices: list[QemuDevice] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    """File names of further ACPI tables, and of a device tree."""
    memory: int = 128 << 20
    """Bytes."""

    def device(self, model: str) -> QemuDevice | None:
        """The first device of a model."""
        return next((device for device in self.devices if device.model == model), None)


def parse_qemu_arguments(recording: Recording) -> QemuArguments:
    """Read ``qemu_args``.  Raises ``InputError`` where they are no command line."""
    try:
        words = shlex.split(recording.qemu_args)
    except ValueError as error:
        raise InputError(f"is no command line: {error}", source=recording.id, place="qemu_args") from error
    found = QemuArguments()
    for option, value in pairwise(words):
        reader = _OPTIONS.get(option)
        if reader is not None:
            try:
                reader(found, value)
            except ValueError as error:
                raise InputError(f"{option} {value}: {error}", source=recording.id, place="qemu_args") from error
    return found


def _properties(text: str, first: str) -> dict[str, str]:
    parts = text.split(",")
    named = [part if "=" in part else f"{first}={part}" if index == 0 else f"{part}=on" for index, part in enumerate(parts)]
    return dict(part.partition("=")[::2] for part in named)


def _machine(found: QemuArguments, value: str) -> None:
    found.machine = _properties(value, "")


def _device(found: QemuArguments, value: str) -> None:
    properties = _properties(value, "driver")
    address = properties.get("addr")
    if address and not re.fullmatch(r"(0x)?[01]?[0-9a-f](\.[0-7])?", address):
        raise ValueError(f"addr={address} is no slot, with or without a function")
    found.devices.append(QemuDevice(properties.pop("driver", ""), properties))


def _table(found: QemuArguments, value: str) -> None:
    found.tables.append(_properties(value, "file").get("file", ""))


def _memory(found: QemuArguments, value: str) -> None:
    size = _properties(value, "size").get("size", "")
    unit = {"K": 10, "M": 20, "G": 30}.get(size[-1:].upper(), 20)
    found.memory = int(size.rstrip("KMGkmg")) << unit


_OPTIONS: dict[str, Callable[[QemuArguments, str], None]] = {
    "-M": _machine,
    "-machine": _machine,
    "-device": _device,
    "-acpitable": _table,
    "-dtb": _table,
    "-m": _memory,
}

# ---- where devices sit -----------------------------------------------------------------------------------------------

BRIDGES = {
    "pcie-root-port": DeviceKind.ROOT_PORT,
    "ioh3420": DeviceKind.ROOT_PORT,
    "x3130-upstream": DeviceKind.UPSTREAM_PORT,
    "xio3130-downstream": DeviceKind.DOWNSTREAM_PORT,
    "pcie-pci-bridge": DeviceKind.PCIE_TO_PCI_BRIDGE,
    "pci-bridge": DeviceKind.PCI_BRIDGE,
    "i82801b11-bridge": DeviceKind.PCI_BRIDGE,
}
EXPRESS = frozenset(
    {"e1000e", "nvme", "igb", "bochs-display", "qemu-xhci", "nec-usb-xhci", "megasas-gen2", "mptsas1068", "pvscsi", "vmxnet3"}
)
"""Models with the PCI Express capability wherever their bus has it; on the root bus they are integrated endpoints."""
HAS_ACS = frozenset({"pcie-root-port"})
"""Models with the access control capability, unless ``disable-acs=on``."""
NO_FUNCTION = frozenset({"intel-iommu", "zpci", "virtio-iommu-device"})
"""Models that are no PCI functions, or are described by others."""
ROOT_BUS = "pcie.0"


@dataclass(frozen=True, slots=True)
class Slot:
    """A QEMU device with its address; ``parent`` is the bridge's address."""

    device: QemuDevice
    address: str
    parent: str | None


def place_devices(arguments: QemuArguments) -> dict[str, Slot]:
    """Give each PCI device its address, as QEMU and the firmware do.

    QEMU gives a device without ``addr`` the first free slot; buses are numbered depth first in the order of the bridges' slots.
    """
    slots = _slots(arguments.devices)
    children: dict[str, list[tuple[tuple[int, int], QemuDevice]]] = {}
    for device, bus, place in slots:
        children.setdefault(bus, []).append((place, device))
    placed: dict[str, Slot] = {}
    numbers = iter(range(1, 256))

    def walk(bus: str, number: int, parent: str | None) -> None:
        for (slot, function), device in sorted(children.get(bus, ()), key=lambda child: child[0]):
            address = f"0000:{number:02x}:{slot:02x}.{function}"
            placed[address] = Slot(device, address, parent)
            if device.model in BRIDGES:
                walk(device.properties.get("id", address), next(numbers), address)

    walk(ROOT_BUS, 0, None)
    return placed


def _slots(devices: list[QemuDevice]) -> list[tuple[QemuDevice, str, tuple[int, int]]]:
    """Each PCI device with its bus and its slot and function there."""
    found = []
    used: dict[str, set[int]] = {ROOT_BUS: {0}}
    for device in devices:
        if device.model in NO_FUNCTION:
            continue
        bus = device.properties.get("bus", ROOT_BUS)
        taken = used.setdefault(bus, set())
        written = device.properties.get("addr")
        if written:
            slot, _, function = written.partition(".")
            place = int(slot, 16), int(function or "0", 16)
        else:
            place = next((slot for slot in range(32) if slot not in taken), 31), 0
        taken.add(place[0])
        found.append((device, bus, place))
    return found


def kind_of(slot: Slot, placed: dict[str, Slot]) -> DeviceKind:
    """What a device is on its bus."""
    model = slot.device.model
    if model in BRIDGES:
        return BRIDGES[model]
    above = BRIDGES.get(placed[slot.parent].device.model) if slot.parent else None
    express = model in EXPRESS or (model.startswith("virtio-") and above is not None)
    if not express or above in (DeviceKind.PCIE_TO_PCI_BRIDGE, DeviceKind.PCI_BRIDGE):
        return DeviceKind.CONVENTIONAL
    return DeviceKind.INTEGRATED_ENDPOINT if above is None else DeviceKind.ENDPOINT


def bus_below(placed: dict[str, Slot], bridge: str) -> str:
    """The number of the bus below a bridge, two hexadecimal digits: ``placed`` has the bridges in the order of their buses."""
    bridges = [address for address, slot in placed.items() if slot.device.model in BRIDGES]
    return f"{bridges.index(bridge) + 1:02x}"
