"""What the makers of QEMU's arguments share: a device's properties, what stands for it, and what cannot be said of any."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from iommukit.machine.model import DeviceSpec, Machine
from iommukit_oracle.guest.variants import OWN_NUMBERS
from iommukit_oracle.kernel.devices import RENUMBERED, STAND_INS, Model
from iommukit_oracle.kernel.realisation import Inexpressible, Placed, Region

UNTOLD = ("dma_aliases", "real_dma_device", "usb4_host_interface", "capabilities")
"""What a machine file can say of a device and QEMU's devices cannot be told."""


def check(spec: DeviceSpec) -> None:
    """Raise ``Inexpressible`` for what no device of QEMU's can be told."""
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
class Builder(ABC):
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


def place_of(address: str) -> tuple[int, int]:
    """Slot and function of an address."""
    slot, function = address[8:].split(".")
    return int(slot, 16), int(function)


def argument(properties: Mapping[str, str]) -> str:
    """A value of ``-device``."""
    return ",".join([properties["driver"], *(f"{name}={value}" for name, value in properties.items() if name != "driver")])
