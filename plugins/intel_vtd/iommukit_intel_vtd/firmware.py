"""The DMAR table: which VT-d units there are, what they translate for, and which memory firmware keeps using.

Sections are those of the Intel Virtualization Technology for Directed I/O specification, chapter 8.  Addresses are physical,
in bytes; segments are PCI segment groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from itertools import combinations
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from iommukit.machine.acpi import (
    U8,
    U16,
    U32,
    AcpiFormat,
    Address,
    As8,
    Block,
    Code,
    Hex8,
    Length,
    Name,
    Payload,
    Problem,
    Raw,
    Step,
    Structure,
    Table,
    Tag,
    Zero8,
    Zero16,
    Zero32,
)

S = TypeVar("S", bound=Structure)


class DmarFlags(IntFlag):
    """Flags of the table (8.1)."""

    INTR_REMAP = 1
    X2APIC_OPT_OUT = 2
    DMA_CTRL_PLATFORM_OPT_IN = 4


class DrhdFlags(IntFlag):
    """Flags of a DRHD (8.3)."""

    INCLUDE_PCI_ALL = 1


class AtsrFlags(IntFlag):
    """Flags of an ATSR (8.5)."""

    ALL_PORTS = 1


class SatcFlags(IntFlag):
    """Flags of a SATC (8.8)."""

    ATC_REQUIRED = 1


class ScopeFlags(IntFlag):
    """Flags of a device scope below a SIDP (8.3.1, 8.9); reserved elsewhere."""

    REQ_WO_PASID_NESTED_NOTALLOWED = 1
    REQ_WO_PASID_PWSNP_NOTALLOWED = 2
    REQ_WO_PASID_PGSNP_NOTALLOWED = 4
    ATC_HARDENED = 8
    ATC_REQUIRED = 16


class ScopeKind(Code):
    """What a device scope names (8.3.1)."""

    ENDPOINT = 1
    BRIDGE = 2
    IOAPIC = 3
    HPET = 4
    NAMESPACE = 5


class DeviceScope(Block):
    """One device or bridge that a remapping structure is about (8.3.1).

    ``path`` leads from ``start_bus`` through bridges to the device.  ``enumeration_id`` is the I/O APIC's or HPET's number, or
    the device number of an ANDD; 0 for PCI devices.
    """

    kind: As8[ScopeKind] = Field(title="Type")
    length: ClassVar[Length] = Length(1)
    flags: As8[ScopeFlags] = ScopeFlags(0)
    reserved: Zero8 = 0
    enumeration_id: U8 = 0
    start_bus: Hex8 = Field(0, title="Start Bus Number")
    path: tuple[Step, ...] = ()

    def findings(self) -> Iterator[Problem]:
        """A scope without a path names nothing."""
        if not self.path:
            yield Problem("path", "is empty")


class Drhd(Block):
    """A remapping unit (8.3)."""

    kind: Literal["drhd"] = "drhd"
    type: ClassVar[Tag] = Tag(2, 0)
    length: ClassVar[Length] = Length(2)
    flags: As8[DrhdFlags] = DrhdFlags(0)
    size: Annotated[U8, Field(description="2^N pages of 4 KiB of registers; bits 7:4 are reserved")] = 0
    segment: U16 = Field(0, title="Segment Number")
    address: Address = Field(title="Register Base Address")
    scopes: tuple[DeviceScope, ...] = ()

    @property
    def include_pci_all(self) -> bool:
        """Whether the unit translates for all devices of its segment that no other unit names."""
        return DrhdFlags.INCLUDE_PCI_ALL in self.flags

    @property
    def broken(self) -> bool:
        """Whether the registers are at address 0: Linux prints a firmware bug and uses none of the table."""
        return self.address == 0

    @property
    def register_bytes(self) -> int:
        """Size of the register set in bytes."""
        return 4096 << (self.size & 0xF)

    def findings(self) -> Iterator[Problem]:
        """A unit must be somewhere, page-aligned, and be there for something."""
        if self.broken:
            yield Problem("address", "the unit's registers are at address 0; Linux uses none of the table", "error")
        elif self.address % 4096:
            yield Problem("address", f"{self.address:#x} is no multiple of 4 KiB")
        if self.size > 0xF:
            yield Problem("size", f"reserved bits {self.size & 0xF0:#x} are set")
        if not self.include_pci_all and not self.scopes:
            yield Problem("scopes", "the unit translates for no device")


class Rmrr(Block):
    """Memory that firmware wants mapped one to one for its devices (8.4): bytes ``base``..``end``, inclusive."""

    kind: Literal["rmrr"] = "rmrr"
    type: ClassVar[Tag] = Tag(2, 1)
    length: ClassVar[Length] = Length(2)
    reserved: Zero16 = 0
    segment: U16 = Field(0, title="Segment Number")
    base: Address = Field(title="Reserved Memory Region Base Address")
    end: Address = Field(title="Reserved Memory Region Limit Address")
    scopes: tuple[DeviceScope, ...] = ()

    def overlaps(self, other: Rmrr) -> bool:
        """Whether the two share a byte."""
        return self.base <= other.end and other.base <= self.end

    def findings(self) -> Iterator[Problem]:
        """A region ends where whole pages end, not before it starts, and belongs to devices."""
        if self.end < self.base:
            yield Problem("end", f"{self.end:#x} lies before the base {self.base:#x}", "error")
        elif self.base % 4096 or (self.end + 1) % 4096:
            yield Problem("base", f"{self.base:#x}..{self.end:#x} are no whole pages of 4 KiB")
        if not self.scopes:
            yield Problem("scopes", "the region belongs to no device")


class Atsr(Block):
    """Root ports below which devices may use address translation services (8.5)."""

    kind: Literal["atsr"] = "atsr"
    type: ClassVar[Tag] = Tag(2, 2)
    length: ClassVar[Length] = Length(2)
    flags: As8[AtsrFlags] = AtsrFlags(0)
    reserved: Zero8 = 0
    segment: U16 = Field(0, title="Segment Number")
    scopes: tuple[DeviceScope, ...] = ()

    @property
    def all_ports(self) -> bool:
        """Whether all root ports of the segment support it."""
        return AtsrFlags.ALL_PORTS in self.flags


class Rhsa(Block):
    """The proximity domain of the unit at ``address`` (8.6)."""

    kind: Literal["rhsa"] = "rhsa"
    type: ClassVar[Tag] = Tag(2, 3)
    length: ClassVar[Length] = Length(2)
    reserved: Zero32 = 0
    address: Address = Field(title="Register Base Address")
    proximity_domain: U32 = 0


class Andd(Block):
    """The name of a device of the ACPI namespace, for scopes of kind ``namespace`` (8.7)."""

    kind: Literal["andd"] = "andd"
    type: ClassVar[Tag] = Tag(2, 4)
    length: ClassVar[Length] = Length(2)
    reserved: Annotated[bytes, Raw(3, zero=True)] = bytes(3)
    device_number: U8 = Field(title="ACPI Device Number")
    name: Name = Field(title="ACPI Object Name")


class Satc(Block):
    """Devices within the chip that have a translation cache (8.8)."""

    kind: Literal["satc"] = "satc"
    type: ClassVar[Tag] = Tag(2, 5)
    length: ClassVar[Length] = Length(2)
    flags: As8[SatcFlags] = SatcFlags(0)
    reserved: Zero8 = 0
    segment: U16 = Field(0, title="Segment Number")
    scopes: tuple[DeviceScope, ...] = ()


class Sidp(Block):
    """Properties of devices within the chip, as flags of the scopes (8.9)."""

    kind: Literal["sidp"] = "sidp"
    type: ClassVar[Tag] = Tag(2, 6)
    length: ClassVar[Length] = Length(2)
    reserved: Zero16 = 0
    segment: U16 = Field(0, title="Segment Number")
    scopes: tuple[DeviceScope, ...] = ()


class RawRemapping(Block):
    """A remapping structure of a type that is not known here; Linux skips it."""

    kind: Literal["raw"] = "raw"
    type: U16
    length: ClassVar[Length] = Length(2)
    payload: Payload = b""


Remapping = Annotated[Drhd | Rmrr | Atsr | Rhsa | Andd | Satc | Sidp | RawRemapping, Field(discriminator="kind")]


class Dmar(Table):
    """The DMA Remapping Reporting table (8.1).

    ``host_address_width`` is one less than the number of physical address bits that DMA can reach, as in the table.
    """

    signature: ClassVar[Tag] = Tag(4, b"DMAR")
    host_address_width: U8
    flags: As8[DmarFlags] = DmarFlags(0)
    reserved: Annotated[bytes, Raw(10, zero=True)] = bytes(10)
    structures: tuple[Remapping, ...] = Field((), title="Remapping Structures")

    @property
    def address_bits(self) -> int:
        """Physical address bits that DMA can reach."""
        return self.host_address_width + 1

    @property
    def intr_remap(self) -> bool:
        """Whether the platform supports interrupt remapping."""
        return DmarFlags.INTR_REMAP in self.flags

    @property
    def x2apic_opt_out(self) -> bool:
        """Whether firmware asks system software not to enable x2APIC."""
        return DmarFlags.X2APIC_OPT_OUT in self.flags

    @property
    def dma_ctrl_platform_opt_in(self) -> bool:
        """Whether firmware kept DMA off until now and asks system software to keep it confined."""
        return DmarFlags.DMA_CTRL_PLATFORM_OPT_IN in self.flags

    @property
    def usable(self) -> bool:
        """Whether Linux uses the table: an address width, at least one unit, and none at address 0."""
        drhds = self.drhds
        return self.host_address_width != 0 and bool(drhds) and not any(drhd.broken for drhd in drhds)

    def of_kind(self, kind: type[S]) -> tuple[S, ...]:
        """The structures of one class, in the order of the table."""
        return tuple(structure for structure in self.structures if isinstance(structure, kind))

    @property
    def drhds(self) -> tuple[Drhd, ...]:
        """The remapping units, in the order of the table."""
        return self.of_kind(Drhd)

    @property
    def rmrrs(self) -> tuple[Rmrr, ...]:
        """The reserved memory regions, in the order of the table."""
        return self.of_kind(Rmrr)

    def namespace_device(self, number: int) -> str | None:
        """The ACPI path of the device with that number (8.7)."""
        return next((andd.name for andd in self.of_kind(Andd) if andd.device_number == number), None)

    def findings(self) -> Iterator[Problem]:
        """What concerns several structures."""
        if self.host_address_width == 0:
            yield Problem("host_address_width", "is 0; Linux does not use the table", "error")
        if not self.drhds:
            yield Problem("structures", "there is no remapping unit; Linux does not use the table", "error")
        units = [(i, unit) for i, unit in enumerate(self.structures) if isinstance(unit, Drhd)]
        for (i, one), (j, two) in combinations(units, 2):
            if one.address == two.address != 0:
                yield Problem(f"structures[{j}].address", f"{two.address:#x} is structures[{i}]'s too", "error")
        include_all: dict[int, int] = {}
        for i, unit in units:
            if unit.segment in include_all:
                where = f"structures[{include_all[unit.segment]}], which includes all of segment {unit.segment}"
                yield Problem(f"structures[{i}].flags", f"the unit comes after {where}")
            elif unit.include_pci_all:
                include_all[unit.segment] = i
        regions = [(i, region) for i, region in enumerate(self.structures) if isinstance(region, Rmrr)]
        for (i, first), (j, second) in combinations(regions, 2):
            if first.segment == second.segment and first.overlaps(second):
                where = f"{second.base:#x}..{second.end:#x} overlaps structures[{i}]"
                yield Problem(f"structures[{j}].base", f"{where}, {first.base:#x}..{first.end:#x}")
        named = {andd.device_number for andd in self.of_kind(Andd)}
        for i, structure in enumerate(self.structures):
            for j, scope in enumerate(getattr(structure, "scopes", ())):
                path = f"structures[{i}].scopes[{j}]"
                if scope.flags and not isinstance(structure, Sidp):
                    yield Problem(f"{path}.flags", "flags are reserved outside a SIDP")
                if scope.kind == ScopeKind.NAMESPACE and scope.enumeration_id not in named:
                    yield Problem(f"{path}.enumeration_id", f"no ANDD has device number {scope.enumeration_id}")


DMAR: AcpiFormat[Dmar] = AcpiFormat(Dmar)
