"""Devices on PCI Express as QEMU makes them: ports, bridges, slots and functions where the machine file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iommukit.device import DeviceKind
from iommukit.machine.model import DeviceSpec, Machine
from iommukit_oracle.guest.variants import OWN_NUMBERS
from iommukit_oracle.kernel.builder import Builder, argument, check, place_of
from iommukit_oracle.kernel.devices import (
    BRIDGES,
    CARD,
    ENDPOINTS,
    NETWORK,
    NUMBERED,
    NUMBERS,
    PLUGGABLE,
    RENUMBERED,
    RENUMBERED_PORTS,
    SHARING,
    STAND_INS,
    USB,
    VIRTIO_NETWORK,
    Model,
)
from iommukit_oracle.kernel.realisation import Inexpressible, Placed, Plugging, Region
from iommukit_oracle.qemu_arguments import QemuArguments, QemuDevice, place_devices
from iommukit_oracle.qemu_machine import ACS

CHIPSET: Mapping[tuple[str, str], str] = {("intel_vtd", "8086:2918"): "0000:00:1f.0", ("amd_vi", "8086:2918"): "0000:00:1f.0"}
"""By vendor and numbers: functions of the q35 chipset, which are there without being asked for (ICH9's ISA bridge)."""
OWN_PORT = "plugs"
"""The port that stands for a slot of the root bus, where QEMU does not plug."""
FIRST_FREE_SLOT = 0x10


class Express(Builder):
    """PCI Express below the root bus ``pcie.0``."""

    def __init__(self, machine: Machine, vendor: str) -> None:
        super().__init__(machine)
        self.vendor = vendor
        self.specs = {spec.name: spec for spec in machine.devices}
        self.ids = {spec.name: f"d{number}" for number, spec in enumerate(machine.devices, start=1)}
        self.properties: dict[str, dict[str, str]] = {}
        self.models: dict[str, Model] = {}
        self.ports = 0

    def build(self) -> None:
        """Make the arguments for all devices where they belong.  Raises ``Inexpressible``."""
        for spec in self.machine.devices:
            if self._in_chipset(spec):
                self._place_chipset(spec)
            else:
                self.properties[spec.name] = self._device(spec)
        self._slots()
        own = self._own_port()
        devices = [*own, *self.properties.values()]
        placed = place_devices(
            QemuArguments(
                devices=[QemuDevice(each["driver"], {k: v for k, v in each.items() if k != "driver"}) for each in devices]
            )
        )
        addresses = {slot.device.properties["id"]: address for address, slot in placed.items()}
        for name, properties in self.properties.items():
            spec = self.specs[name]
            address = addresses[properties["id"]]
            model = self.models.get(name)
            self.placed[name] = Placed(
                name=name,
                address=address,
                id=properties["id"],
                properties=properties,
                present=spec.present,
                plugging=self._plugging(spec),
                driver=model.driver if model else None,
                work=model.work if model else "",
            )
            if spec.acs:
                self.acs.append(address)
            if spec.external_facing:
                self._external(spec, address)
            self.regions += [self._region(spec, region, address, placed) for region in spec.reserved]
        self.acs += [addresses[each["id"]] for each in own]
        self.devices += [argument(each) for each in own]
        mine = [spec for spec in self.machine.devices if spec.name in self.properties]
        self.devices += [argument(self.properties[spec.name]) for spec in mine if spec.present]

    def _in_chipset(self, spec: DeviceSpec) -> bool:
        """Whether QEMU's chipset has the device, where the machine file has it."""
        address = CHIPSET.get((self.vendor, (spec.id or "").lower()))
        return address is not None and address == spec.address and spec.present

    def _place_chipset(self, spec: DeviceSpec) -> None:
        assert spec.address is not None
        check(spec)
        self.placed[spec.name] = Placed(name=spec.name, address=spec.address, id="", properties={})
        self.regions += [self._region(spec, region, spec.address, {}) for region in spec.reserved]
        self.notes.append(f"{spec.name} is QEMU's chipset's own, with its further functions")

    def _device(self, spec: DeviceSpec) -> dict[str, str]:
        """A device without its place."""
        check(spec)
        id = self.ids[spec.name]
        if spec.kind in BRIDGES:
            if not spec.present:
                raise Inexpressible("a port or bridge that is plugged in brings buses that nobody has numbered")
            return self._bridge(spec, id)
        if not spec.kind.is_pci or spec.kind is DeviceKind.PCI_TO_PCIE_BRIDGE:
            raise Inexpressible(f"QEMU's machine has no {spec.kind.value.replace('_', ' ')}")
        if spec.acs:
            raise Inexpressible("QEMU's endpoints have no access control capability")
        given = (spec.id or "1234:11e8").lower()
        if given in RENUMBERED:
            return self._renumbered(spec, RENUMBERED[given], given, id)
        model = self.model(spec, STAND_INS if given in STAND_INS else ENDPOINTS)
        if spec.kind is not DeviceKind.CONVENTIONAL and model in (CARD, NETWORK):
            # A card that a driver takes shows more; functions of Intel's on the root bus Linux keeps apart by their maker.
            shares = spec.multifunction and spec.kind is not DeviceKind.INTEGRATED_ENDPOINT
            taken = SHARING.get(self.vendor, VIRTIO_NETWORK) if shares else NETWORK
            if taken is not model:
                self.notes.append(f"{taken.name} stands for {spec.name} ({given})")
            model = taken
        if spec.kind is DeviceKind.CONVENTIONAL and model is not CARD:
            raise Inexpressible(f"QEMU's {model.name} is no conventional device")
        if model.name in OWN_NUMBERS:
            self._number(model.name, OWN_NUMBERS[model.name])
        self.models[spec.name] = model
        return self.backed(model, id)

    def _renumbered(self, spec: DeviceSpec, model: Model, given: str, id: str) -> dict[str, str]:
        if spec.kind is DeviceKind.CONVENTIONAL:
            raise Inexpressible(f"QEMU's {model.name} is no conventional device")
        self._number(model.name, given)
        self.notes.append(f"{model.name} with other numbers stands for {spec.name} ({given})")
        self.models[spec.name] = model
        return self.backed(model, id)

    def _number(self, model: str, numbers: str) -> None:
        """All of QEMU's devices of a model have the same numbers."""
        if self.numbers.setdefault(model, numbers) != numbers:
            raise Inexpressible(f"QEMU's {model} cannot be {self.numbers[model]} and {numbers} at once")

    def _bridge(self, spec: DeviceSpec, id: str) -> dict[str, str]:
        model = BRIDGES[spec.kind]
        given = (spec.id or NUMBERS[model]).lower()
        if model in OWN_NUMBERS:
            self._number(model, given)
        if given != NUMBERS[model] and (model, given) not in RENUMBERED_PORTS:
            raise Inexpressible(f"QEMU's {model} is {NUMBERS[model]}, not {spec.id}")
        properties = {"driver": model, "id": id}
        wanted = set(spec.acs or ()) | set(spec.attributes.get("acs_capability", ()))
        if wanted and (spec.acs == "unknown" or model != "pcie-root-port" or wanted != set(ACS)):
            raise Inexpressible(f"QEMU's {model} cannot be given ACS {', '.join(sorted(wanted))}")
        if model in NUMBERED:
            self.ports += 1
            properties |= {"chassis": str(self.ports), "slot": str(self.ports)}
        if model == "pci-bridge":
            self.ports += 1
            properties["chassis_nr"] = str(self.ports)
        if model == "pcie-root-port" and not wanted:
            properties["disable-acs"] = "on"
        return properties

    def _slots(self) -> None:
        """Slots and functions: those of the machine file, the next free one where it has none."""
        places: dict[str, tuple[str, int, int]] = {}
        taken: set[tuple[str, int]] = set()
        waiting = []
        for spec in self.machine.devices:
            if spec.name not in self.properties:
                continue
            bus = self.ids[spec.parent] if spec.parent else "pcie.0"
            numbers = spec.pci_numbers()
            if numbers is None:
                waiting.append((spec.name, bus))
                continue
            segment, _, slot, function = numbers
            if segment:
                raise Inexpressible("QEMU's machine has one segment")
            places[spec.name] = bus, slot, function
            taken.add((bus, slot))
        for name, bus in waiting:
            first = FIRST_FREE_SLOT if bus == "pcie.0" else 0
            slot = next(number for number in range(first, 32) if (bus, number) not in taken)
            places[name] = bus, slot, 0
            taken.add((bus, slot))
        functions: dict[tuple[str, int], int] = {}
        for bus, slot, _ in places.values():
            functions[bus, slot] = functions.get((bus, slot), 0) + 1
        for name, (bus, slot, function) in places.items():
            if bus == "pcie.0" and slot in self._chipset():
                raise Inexpressible(f"slot {slot:02x} of QEMU's root bus is taken")
            self.properties[name] |= {"bus": bus, "addr": f"{slot:x}.{function}"}
            if self.specs[name].multifunction or functions[bus, slot] > 1:
                self.properties[name]["multifunction"] = "on"

    def _chipset(self) -> frozenset[int]:
        """Slots of the root bus that QEMU takes for itself."""
        return frozenset({"arm_smmu": {0}, "amd_vi": {0, 1, 31}}.get(self.vendor, {0, 31}))

    def _own_port(self) -> list[dict[str, str]]:
        """A port for what is plugged into the root bus, where QEMU does not plug."""
        absent = [spec for spec in self.machine.devices if not spec.present and spec.parent is None]
        if not absent:
            return []
        (spec, *more) = absent
        if more or self.properties[spec.name].get("multifunction"):
            raise Inexpressible("QEMU plugs whole slots, and not into its root bus")
        slot = self.properties[spec.name]["addr"].partition(".")[0]
        self.properties[spec.name] |= {"bus": OWN_PORT, "addr": "0.0"}
        self.notes.append(f"{spec.name} is plugged in below a port of its own, as QEMU's root bus takes no plugging")
        self.ports += 1
        number = str(self.ports)
        return [
            {"driver": "pcie-root-port", "id": OWN_PORT, "bus": "pcie.0", "addr": f"{slot}.0", "chassis": number, "slot": number}
        ]

    def _plugging(self, spec: DeviceSpec) -> Plugging:
        """QEMU plugs a whole slot below a port; everything else is removed and found again."""
        bus = self.properties[spec.name]["bus"]
        parent = self.specs.get(spec.parent or "")
        below = bus == OWN_PORT or (parent is not None and parent.kind in PLUGGABLE)
        alone = "multifunction" not in self.properties[spec.name]
        return Plugging.QMP if below and alone and spec.kind not in BRIDGES else Plugging.SYSFS

    def _external(self, spec: DeviceSpec, address: str) -> None:
        if self.vendor == "arm_smmu":
            raise Inexpressible("QEMU's device tree calls no port external-facing")
        if not address.startswith("0000:00:"):
            raise Inexpressible("only ports of the root bus have a name in QEMU's ACPI tables")
        slot, function = place_of(address)
        self.external.append(slot << 3 | function)

    def _region(self, spec: DeviceSpec, region: Any, address: str, placed: Mapping[str, Any]) -> Region:
        """Memory that firmware reserves: VT-d's kind follows from what the device is, AMD-Vi knows one."""
        usb = self.models.get(spec.name) is USB
        kinds = {"intel_vtd": "direct-relaxable" if usb else "direct", "amd_vi": "direct"}
        kind = kinds.get(self.vendor)
        if kind is None:
            raise Inexpressible("QEMU's firmware tells an Arm kernel of no reserved memory")
        if region.type != kind:
            raise Inexpressible(f"firmware reserves memory for QEMU's stand-in for {spec.id} as {kind}, not as {region.type}")
        path: list[tuple[int, int]] = []
        at: str | None = address
        while at is not None:
            path.insert(0, place_of(at))
            at = placed[at].parent if at in placed else None
        requester = int(address[5:7], 16) << 8 | path[-1][0] << 3 | path[-1][1]
        return Region(region.start, region.end, requester, tuple(path), kind)
