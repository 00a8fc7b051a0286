"""Machine files: what a machine is, as far as DMA protection is concerned (a contract).

A machine is vendor-neutral where it can be.  One captured from real hardware carries its firmware tables and is bound to
the vendor that reads them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from iommukit.device import DeviceKind

ACS_BITS = ("SV", "TB", "RR", "CR", "UF", "EC", "DT")
"""Access control services: source validation, translation blocking, request and completion redirect, upstream forwarding,
egress control, direct translated (PCIe 6.12)."""

_ADDRESS = re.compile(r"^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$")


def _hex_or_int(value: object) -> object:
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            shown = value if len(value) <= 40 else value[:39] + "…"
            raise ValueError(f"a number or a 0x… text was expected, got {shown!r}") from None
    return value


Number = Annotated[int, BeforeValidator(_hex_or_int), Field(ge=0, le=(1 << 64) - 1)]
"""A 64-bit number, written decimal or as 0x… ."""


class Strict(BaseModel):
    """No unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReservedSpec(Strict):
    """A region that firmware reserves for a device: bytes ``start``..``end``, inclusive."""

    start: Number
    end: Number
    type: Literal["direct", "direct-relaxable", "reserved", "msi"] = "direct"

    @model_validator(mode="after")
    def _ordered(self) -> ReservedSpec:
        if self.end < self.start:
            raise ValueError(f"end {self.end:#x} lies before start {self.start:#x}")
        return self


class Attributes(BaseModel):
    """The further facts that the core and the shipped vendors know; others are their vendor's to check."""

    model_config = ConfigDict(extra="allow")

    registers: dict[Number, Number] = Field(default_factory=dict, description="configuration space: value by offset")
    acs_capability: list[Literal["SV", "TB", "RR", "CR", "UF", "EC", "DT"]] | None = None
    translation_root: bool = Field(False, description="the bridge translates below itself: aliases end here")
    pcie_bridge_alias: bool = Field(False, description="the bridge takes over requests as PCI Express bridges do")
    hid: str | None = Field(None, description="ACPI hardware id")
    uid: str | int | None = Field(None, description="ACPI unique id")
    acpi_path: str | None = None
    compatible: str | list[str] | None = Field(None, description="device tree")
    bus: str | None = None
    container: str | None = None
    dma_coherent: bool = False


class DeviceSpec(Strict):
    """One device of a machine."""

    name: str = Field(min_length=1, max_length=64, description="how scenarios call it")
    address: str | None = Field(None, description="segment:bus:slot.function, or a platform device's name")
    id: str | None = Field(None, description="vendor:device, hexadecimal")
    class_code: str | None = Field(None, alias="class", description="class code, six hexadecimal digits")
    kind: DeviceKind = DeviceKind.ENDPOINT
    parent: str | None = Field(None, description="the port or bridge above; else found by bus number")
    buses: str | None = Field(None, description="bridges: the buses below, 01 or 01-49, hexadecimal")
    acs: tuple[str, ...] | Literal["unknown"] | None = Field(None, description="the enabled ACS bits; absent: no capability")
    multifunction: bool = Field(False, description="the multifunction bit of the function's own header")
    external_facing: bool = Field(False, description="ExternalFacingPort (ACPI) or external-facing (device tree)")
    usb4_host_interface: bool = Field(False, description="firmware's usb4-host-interface property on a port")
    dma_aliases: tuple[str, ...] = Field((), description="slot.function numbers whose requester id its DMA may carry")
    real_dma_device: str | None = Field(None, description="the device that really masters the bus (VMD)")
    role: str | None = Field(None, description="let the vendor choose: identity-required, untrusted, …")
    reserved: tuple[ReservedSpec, ...] = ()
    dma_mask: Number = (1 << 64) - 1
    driver: str | None = Field(None, description="the driver bound when the kernel has booted")
    present: bool = Field(True, description="false: not there before an add step")
    capabilities: tuple[Literal["ats", "pri", "pasid"], ...] = Field((), description="PCIe capabilities the device has")
    attributes: dict[str, Any] = Field(default_factory=dict, description="further facts, by the vendors' READMEs")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("id")
    @classmethod
    def _id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{4}", value):
            raise ValueError(f"vendor:device in hexadecimal was expected, such as 8086:10d3, got {value!r}")
        return value

    @field_validator("class_code")
    @classmethod
    def _class(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{6}", value):
            raise ValueError(f"six hexadecimal digits were expected, such as 020000, got {value!r}")
        return value

    @field_validator("buses")
    @classmethod
    def _buses(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{2}(-[0-9a-fA-F]{2})?", value):
            raise ValueError(f"01 or 01-49 in hexadecimal was expected, got {value!r}")
        return value

    @field_validator("acs")
    @classmethod
    def _acs(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            for bit in value:
                if bit not in ACS_BITS:
                    raise ValueError(f"no ACS bit {bit!r}; there are {', '.join(ACS_BITS)}")
        return value

    @field_validator("attributes")
    @classmethod
    def _attributes(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            Attributes.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ValueError(f"{first['loc'][0]}: {message[:1].lower()}{message[1:]}") from None
        return value

    @field_validator("dma_aliases")
    @classmethod
    def _aliases(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for alias in value:
            if not re.fullmatch(r"[01]?[0-9a-f]\.[0-7]", alias):
                raise ValueError(f"slot.function was expected, such as 00.1, got {alias!r}")
        return value

    @model_validator(mode="after")
    def _addressed(self) -> DeviceSpec:
        if self.address is not None and self.kind.is_pci and not _ADDRESS.match(self.address):
            raise ValueError(f"a PCI address was expected, such as 0000:01:00.0, got {self.address!r}")
        return self

    def pci_numbers(self) -> tuple[int, int, int, int] | None:
        """Segment, bus, slot and function of ``address``, for PCI kinds."""
        match = _ADDRESS.match(self.address) if self.address and self.kind.is_pci else None
        if not match:
            return None
        segment, bus, slot, function = match.groups()
        return int(segment or "0", 16), int(bus, 16), int(slot, 16), int(function, 16)


class BootSpec(Strict):
    """How a kernel is built and started."""

    kconfig: Literal["strict", "lazy", "passthrough"] | None = Field(
        None, description="IOMMU_DEFAULT_…; absent: the kernel's own default for the architecture"
    )
    cmdline: str = Field("", max_length=4096)
    memory_encryption: bool = Field(False, description="CC_ATTR_MEM_ENCRYPT: SME, SEV or TDX")
    drivers: Literal["loaded", "none"] = Field(
        "loaded",
        description="none: no driver has been loaded yet, so that devices which meet their IOMMU at bind have no group",
    )
    config: dict[str, bool] = Field(default_factory=dict, description="further build options: INTEL_IOMMU_DEFAULT_ON, …")


class Source(Strict):
    """Where a captured machine's facts come from."""

    name: str
    url: str | None = None
    licence: str
    note: str | None = None


class Observed(Strict):
    """What the machine's kernel did, to be predicted."""

    enabled: bool
    units: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = Field((), description="members by group number")
    differs: dict[str, str] = Field(
        default_factory=dict, description="where the prediction differs and why the data cannot tell: part -> reason"
    )


class CapturedBoot(Strict):
    """The boot that a captured machine's facts were taken from."""

    kernel: str = Field(description="the release, such as 6.1.12-1-MANJARO")
    boot: BootSpec = BootSpec()
    observed: Observed | None = None


class Machine(Strict):
    """A machine."""

    machine: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")
    summary: str = ""
    arch: str | None = Field(None, description="x86_64, aarch64, s390x; absent: any")
    hardware: dict[str, Any] = Field(default_factory=dict, description="what the IOMMU can do, by the spec's names")
    firmware: dict[str, Any] = Field(
        default_factory=dict, description="tables by signature: a file beside this one, base64:…, or structured fields"
    )
    devices: tuple[DeviceSpec, ...] = ()
    captured: tuple[CapturedBoot, ...] = ()
    sources: tuple[Source, ...] = ()
    _source: str | None = PrivateAttr(None)

    @property
    def source(self) -> str:
        """Where the machine was read from, for messages: its file, else its name."""
        return self._source or self.machine

    def read_from(self, source: str) -> Machine:
        """Note where the machine was read from; returns the machine."""
        self._source = source
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Machine:
        names: dict[str, int] = {}
        addresses: dict[str, str] = {}
        for index, device in enumerate(self.devices):
            if device.name in names:
                raise ValueError(f"device name {device.name!r} appears twice")
            names[device.name] = index
            if device.address is not None:
                numbers = device.pci_numbers()
                key = "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers) if numbers else device.address
                if key in addresses:
                    raise ValueError(f"{addresses[key]} and {device.name} have the same address {key}")
                addresses[key] = device.name
        for device in self.devices:
            for key, other in (("parent", device.parent), ("real_dma_device", device.real_dma_device)):
                if other is not None and other not in names:
                    raise ValueError(f"{device.name}: {key} {other!r} is no device of this machine")
        self._no_loops(names)
        return self

    def _no_loops(self, names: dict[str, int]) -> None:
        for key in ("parent", "real_dma_device"):
            settled: set[str] = set()
            for device in self.devices:
                path: dict[str, None] = {}
                name: str | None = device.name
                while name is not None and name not in settled:
                    if name in path:
                        raise ValueError(f"{key} runs in a loop: {' -> '.join([*path, name][:8])}")
                    path[name] = None
                    name = getattr(self.devices[names[name]], key)
                settled.update(path)

    def device(self, name: str) -> DeviceSpec | None:
        """The device of that name."""
        return next((device for device in self.devices if device.name == name), None)
