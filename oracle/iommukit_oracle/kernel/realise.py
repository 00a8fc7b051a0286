"""From a machine file to a machine of QEMU that a kernel of Debian's boots on.

Everything here is known without running anything: what QEMU's devices are, what the kernels were built with, where firmware puts
buses.  What cannot be made is ``Inexpressible``, with the reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iommukit.device import DeviceKind
from iommukit.machine.model import BootSpec, DeviceSpec, Machine
from iommukit_oracle.guest.boot import BY_VENDOR, MACHINES
from iommukit_oracle.guest.variants import OWN_NUMBERS
from iommukit_oracle.kernel.builds import words_for_build
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
    ZPCI,
    Model,
)
from iommukit_oracle.kernel.realisation import MEMORY, NO_NP_CACHE, UEFI, Inexpressible, Placed, Plugging, Realisation, Region
from iommukit_oracle.qemu_arguments import QemuArguments, QemuDevice, place_devices
from iommukit_oracle.qemu_machine import ACS

# ---- places ----------------------------------------------------------------------------------------------------------

CHIPSET: Mapping[tuple[str, str], str] = {("intel_vtd", "8086:2918"): "0000:00:1f.0", ("amd_vi", "8086:2918"): "0000:00:1f.0"}
"""By vendor and numbers: functions of the q35 chipset, which are there without being asked for (ICH9's ISA bridge)."""
OWN_PORT = "plugs"
"""The port that stands for a slot of the root bus, where QEMU does not plug."""
FIRST_FREE_SLOT = 0x10


# ---- hardware options ------------------------------------------------------------------------------------------------

Options = Mapping[tuple[str, Any], str]
"""By hardware option and value: the property of QEMU's IOMMU, empty where that is what QEMU has."""
HARDWARE: Mapping[str, Options] = {
    "intel_vtd": {
        ("caching_mode", True): "caching-mode=on",
        ("caching_mode", False): "",
        ("pass_through", False): "pt=off",
        ("pass_through", True): "",
        ("scalable_mode", True): "x-scalable-mode=on",
        ("scalable_mode", False): "",
        ("address_width", 39): "aw-bits=39",
        ("address_width", 48): "aw-bits=48",
        ("platform_opt_in", True): "",
        ("platform_opt_in", False): "",
    },
    # What the kernel shows of its feature register has both (0x29d3: PreF PPR GT IA GA HE).
    "amd_vi": {("np_cache", True): "", ("np_cache", False): "", ("guest_translation", True): "", ("ppr", True): ""},
    "arm_smmu": {("version", 3): "", ("described_by", "dt"): "", ("described_by", "acpi"): ""},
    "s390": {},
}


def realise(machine: Machine, boot: BootSpec, vendor: str, kernel: str) -> Realisation:
    """The machine of QEMU for a machine that is as the vendor would have it, and the command line for how it is booted.

    Raises ``Inexpressible``.
    """
    name = BY_VENDOR.get(vendor)
    if name is None:
        raise Inexpressible(f"QEMU has no IOMMU of {vendor}")
    opt_in = bool(machine.hardware.get("platform_opt_in"))
    words, notes = words_for_build(boot, vendor, kernel, MACHINES[name].debian, opt_in=opt_in)
    if machine.firmware:
        raise Inexpressible(f"QEMU makes its own {' and '.join(machine.firmware)}, from its own hardware")
    options = _hardware(machine, vendor)
    builder = _Zpci(machine) if name == "s390" else _Express(machine, vendor)
    builder.build()
    reserved = _reserved(builder.regions)
    if reserved:
        words = (*words, *reserved)
        notes.append(f"{' '.join(reserved)} stands for firmware's map of memory")
    variant = ""
    if vendor == "amd_vi" and not machine.hardware.get("np_cache"):
        variant = NO_NP_CACHE
    if machine.hardware.get("described_by") == "acpi":
        variant = UEFI
        words = (*words, "acpi=force")
    return Realisation(
        machine=name,
        vendor=vendor,
        cmdline=" ".join((*words, boot.cmdline)).strip(),
        memory=int(machine.hardware.get("memory_size", MEMORY)),
        options=",".join(option for option in options if option),
        devices=tuple(builder.devices),
        extra=tuple(builder.extra),
        external=tuple(builder.external),
        regions=tuple(builder.regions),
        opt_in=opt_in,
        acs=tuple(builder.acs),
        placed=builder.placed,
        qemu=variant,
        numbers=tuple(sorted(builder.renumbered)),
        notes=(*notes, *builder.notes),
    )


def _reserved(regions: Sequence[Region]) -> tuple[str, ...]:
    """The words that take regions from the guest's memory.

    Firmware's map does not know of them, and a region of VT-d in memory that is free is a bug of firmware to Linux.
    """
    return tuple(f"memmap={region.end + 1 - region.start:#x}${region.start:#x}" for region in dict.fromkeys(regions))


def _hardware(machine: Machine, vendor: str) -> list[str]:
    known = HARDWARE[vendor]
    found = []
    for name, value in machine.hardware.items():
        if vendor == "s390" and name == "memory_size":
            continue
        option = known.get((name, value))
        if option is None:
            raise Inexpressible(f"QEMU's IOMMU cannot be made with {name}: {value}")
        found.append(option)
    return found


UNTOLD = ("dma_aliases", "real_dma_device", "usb4_host_interface", "capabilities")
"""What a machine file can say of a device and QEMU's devices cannot be told."""


def _check(spec: DeviceSpec) -> None:
    for name in UNTOLD:
        if getattr(spec, name):
            raise Inexpressible(f"QEMU's devices cannot be given {name.replace('_', ' ')}")
    for name, value in spec.attributes.items():
        if name == "registers" and (spec.id or "").lower() in RENUMBERED and not any(value.values()):
            continue  # what an empty configuration space answers
        if name != "acs_capability":
            raise Inexpressible(f"QEMU's devices cannot be given {name}")
    if spec.dma_mask != (1 << 64) - 1:
        raise Inexpressible("QEMU's devices cannot be given a DMA mask")


@dataclass(slots=True)
class _Builder(ABC):
    """The arguments as they come about."""

    machine: Machine
    devices: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    external: list[int] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    acs: list[str] = field(default_factory=list)
    placed: dict[str, Placed] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    """Vendor and device of the models that QEMU makes with any."""

    @property
    def renumbered(self) -> Iterator[tuple[str, str]]:
        """The models whose numbers are not their own."""
        return ((model, numbers) for model, numbers in self.numbers.items() if numbers != OWN_NUMBERS[model])

    @abstractmethod
    def build(self) -> None:
        """Make the arguments for all devices.  Raises ``Inexpressible``."""

    def backed(self, model: Model, id: str) -> dict[str, str]:
        """The properties of a device, once what is behind it has been made."""
        properties = {"driver": model.name, "id": id, **model.properties}
        if model.backend == "netdev":
            self.extra += ["-netdev", f"user,id=net-{id},restrict=on"]
            properties["netdev"] = f"net-{id}"
        elif model.backend == "drive":
            self.extra += ["-blockdev", f"driver=null-co,node-name=disk-{id},size={1 << 24},read-zeroes=on"]
            properties["drive"] = f"disk-{id}"
        if "serial" in properties:
            properties["serial"] += f"-{id}"  # Linux refuses a second controller with the same
        return properties

    def model(self, spec: DeviceSpec, known: Mapping[str, Model]) -> Model:
        """What QEMU has for an endpoint."""
        id = (spec.id or "1234:11e8").lower()
        model = known.get(id)
        if model is None:
            raise Inexpressible(f"QEMU has no device {id}" + (f" for the role {spec.role}" if spec.role else ""))
        if known is STAND_INS:
            self.notes.append(f"{model.name} stands for {spec.name} ({id})")
        return model


def _place(address: str) -> tuple[int, int]:
    """Slot and function of an address."""
    slot, function = address[8:].split(".")
    return int(slot, 16), int(function)


def _argument(properties: Mapping[str, str]) -> str:
    return ",".join([properties["driver"], *(f"{name}={value}" for name, value in properties.items() if name != "driver")])


class _Zpci(_Builder):
    """s390: every function in a segment of its own, whose number is QEMU's ``uid``."""

    def build(self) -> None:
        for number, spec in enumerate(self.machine.devices, start=1):
            _check(spec)
            if spec.reserved:
                raise Inexpressible("firmware of s390 reserves no memory for a function")
            if spec.kind in BRIDGES or spec.kind is DeviceKind.PLATFORM:
                raise Inexpressible(f"QEMU's s390 has no {spec.kind.value.replace('_', ' ')}")
            model = self.model(spec, ZPCI)
            id = f"f{number}"
            if spec.id is not None:
                self.notes.append(f"{model.name} stands for {spec.name} ({spec.id})")
            properties = self.backed(model, id)
            if spec.present:
                self.devices += [f"zpci,uid={number},fid={number},target={id}", _argument(properties)]
            self.placed[spec.name] = Placed(
                name=spec.name,
                address=f"{number:04x}:00:00.0",
                id=id,
                properties=properties,
                present=spec.present,
                plugging=Plugging.QMP,
                driver=model.driver,
                work=model.work,
            )


class _Express(_Builder):
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
        self.devices += [_argument(each) for each in own]
        mine = [spec for spec in self.machine.devices if spec.name in self.properties]
        self.devices += [_argument(self.properties[spec.name]) for spec in mine if spec.present]

    def _in_chipset(self, spec: DeviceSpec) -> bool:
        """Whether QEMU's chipset has the device, where the machine file has it."""
        address = CHIPSET.get((self.vendor, (spec.id or "").lower()))
        return address is not None and address == spec.address and spec.present

    def _place_chipset(self, spec: DeviceSpec) -> None:
        assert spec.address is not None
        _check(spec)
        self.placed[spec.name] = Placed(name=spec.name, address=spec.address, id="", properties={})
        self.regions += [self._region(spec, region, spec.address, {}) for region in spec.reserved]
        self.notes.append(f"{spec.name} is QEMU's chipset's own, with its further functions")

    def _device(self, spec: DeviceSpec) -> dict[str, str]:
        """A device without its place."""
        _check(spec)
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
        slot, function = _place(address)
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
            path.insert(0, _place(at))
            at = placed[at].parent if at in placed else None
        requester = int(address[5:7], 16) << 8 | path[-1][0] << 3 | path[-1][1]
        return Region(region.start, region.end, requester, tuple(path), kind)


def reasons(cases: Sequence[tuple[Machine, BootSpec, str, str]]) -> dict[str, int]:
    """Why cases cannot be realised, and how often; empty for those that can."""
    found: dict[str, int] = {}
    for case in cases:
        try:
            realise(*case)
            reason = ""
        except Inexpressible as error:
            reason = str(error)
        found[reason] = found.get(reason, 0) + 1
    return found
