"""The IVRS table: which AMD IOMMUs there are, what they translate for, and which memory has to stay as it is.

Sections are those of AMD's I/O Virtualization Technology (IOMMU) specification, 48882.  Addresses are physical, in bytes; a
device id is bus, device and function in sixteen bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from iommukit.machine.acpi import (
    AcpiFormat,
    Address,
    As8,
    Block,
    Hex8,
    Hex16,
    Hex32,
    Hex64,
    Int,
    Length,
    Payload,
    Problem,
    Table,
    Tag,
    Zero64,
)
from iommukit_amd_vi.firmware_entries import (
    AcpiHid,
    AliasRangeStart,
    AliasSelect,
    All,
    DeviceEntry,
    DteFlags,
    ExtendedRangeStart,
    ExtendedSelect,
    Pad,
    RangeEnd,
    RangeStart,
    Select,
    Special,
    UidFormat,
    Variety,
)

__all__ = [
    "IVRS",
    "AcpiHid",
    "Covered",
    "DteFlags",
    "Ivhd",
    "Ivhd10",
    "Ivhd11",
    "Ivhd40",
    "Ivmd",
    "Ivrs",
    "MemoryFlags",
    "Special",
    "UidFormat",
    "UnitFlags",
    "Variety",
]

HIGHEST_TYPE = 0x40
"""The highest IVHD type that Linux knows; it looks at no block from the first one of a higher type on."""


class UnitFlags(IntFlag):
    """Flags of an IVHD (5.2.2); what the first four say goes into the unit's control register."""

    HT_TUN_EN = 0x01
    PASS_PW = 0x02
    RES_PASS_PW = 0x04
    ISOC = 0x08
    IOTLB_SUP = 0x10
    COHERENT = 0x20
    PREF_SUP = 0x40
    PPR_SUP = 0x80


class MemoryFlags(IntFlag):
    """Flags of an IVMD (5.2)."""

    UNITY = 0x01
    READ = 0x02
    WRITE = 0x04
    EXCLUSION = 0x08


@dataclass(frozen=True, slots=True)
class Covered:
    """Devices ``first``..``last`` (inclusive) of a segment, and how a unit treats them.

    ``alias``: the id that their requests carry, where it is not their own.  ``extended``: the extended data setting.
    """

    segment: int
    first: int
    last: int
    flags: DteFlags
    extended: int = 0
    alias: int | None = None

    def over(self, earlier: Covered | None, device: int) -> Covered:
        """Add what earlier entries said, for one device."""
        flags, extended, alias = self.flags, self.extended, self.alias
        if earlier is not None:
            flags, extended = flags | earlier.flags, extended | earlier.extended
            alias = earlier.alias if alias is None else alias
        return Covered(self.segment, device, device, flags, extended, alias)


class Ivhd(Block):
    """An I/O virtualization hardware definition (5.2.2): one unit; each unit may have one block of each type."""

    type: ClassVar[Tag]
    flags: As8[UnitFlags] = UnitFlags(0)
    length: ClassVar[Length] = Length(2)
    device: Hex16 = Field(title="DeviceID", description="the unit's own function")
    capability_offset: Hex16 = 0x40
    address: Address = Field(title="IOMMU Base Address")
    segment: Hex16 = Field(0, title="PCI Segment Group")
    info: Annotated[int, Int(2, hex=True, reserved_bits=0xE0E0)] = Field(0, title="IOMMU Info")
    if TYPE_CHECKING:  # each type declares it after its own fields
        entries: tuple[DeviceEntry, ...] = ()

    @property
    def number(self) -> int:
        """The block's type number: 0x10, 0x11 or 0x40."""
        return int.from_bytes(self.type.raw, "little")

    def ranges(self) -> Iterator[Covered]:
        """What the unit translates for, in the order of the entries; devices may come several times.

        The id that an alias stands for is covered too, with the entry's flags.
        """
        started: RangeStart | AliasRangeStart | ExtendedRangeStart | None = None
        for entry in self.entries:
            match entry:
                case All():
                    yield Covered(self.segment, 0, 0xFFFF, entry.data_setting)
                case Select():
                    yield Covered(self.segment, entry.device, entry.device, entry.data_setting)
                case AliasSelect():
                    yield Covered(self.segment, entry.device, entry.device, entry.data_setting, alias=entry.source)
                    yield Covered(self.segment, entry.source, entry.source, entry.data_setting)
                case ExtendedSelect():
                    yield Covered(self.segment, entry.device, entry.device, entry.data_setting, entry.extended)
                case RangeStart() | AliasRangeStart() | ExtendedRangeStart():
                    started = entry
                case RangeEnd() if started is not None and started.device <= entry.device:
                    extended = started.extended if isinstance(started, ExtendedRangeStart) else 0
                    alias = started.source if isinstance(started, AliasRangeStart) else None
                    yield Covered(self.segment, started.device, entry.device, started.data_setting, extended, alias)
                    if alias is not None:
                        yield Covered(self.segment, alias, alias, started.data_setting)
                case Special() if entry.variety.known:
                    yield Covered(self.segment, entry.source, entry.source, entry.data_setting)
                case AcpiHid():
                    yield Covered(self.segment, entry.device, entry.device, entry.data_setting)

    def covers(self, device: int) -> Covered | None:
        """How the unit treats one device id of its segment; ``None`` where it does not translate for it.

        Flags of several entries add up, and the last alias stays, as in Linux.
        """
        found = None
        for covered in self.ranges():
            if covered.first <= device <= covered.last:
                found = covered.over(found, device)
        return found

    def devices(self) -> Iterator[tuple[int, int, DteFlags, int | None]]:
        """Each covered device once, ascending: segment, device id, flags, alias."""
        ranges = list(self.ranges())
        bounds = sorted({covered.first for covered in ranges} | {covered.last + 1 for covered in ranges})
        for first, after in pairwise(bounds):
            if found := self.covers(first):
                for device in range(first, after):
                    yield self.segment, device, found.flags, found.alias

    @property
    def special_devices(self) -> tuple[Special, ...]:
        """The I/O APICs and HPETs below the unit (5.2.2.2)."""
        return tuple(entry for entry in self.entries if isinstance(entry, Special))

    @property
    def acpi_devices(self) -> tuple[AcpiHid, ...]:
        """The devices of the ACPI namespace below the unit (5.2.2.2)."""
        return tuple(entry for entry in self.entries if isinstance(entry, AcpiHid))

    def findings(self) -> Iterator[Problem]:
        """A unit must be somewhere, and ranges must start before they end."""
        if not self.address:
            yield Problem("address", "the unit's registers are at address 0", "error")
        started: int | None = None
        for i, entry in enumerate(self.entries):
            if isinstance(entry, Pad):
                yield Problem(f"entries[{i}].type", "type 0 is reserved; it is taken as padding")
            elif isinstance(entry, RangeStart | AliasRangeStart | ExtendedRangeStart):
                started = entry.device
            elif isinstance(entry, RangeEnd):
                if started is None:
                    yield Problem(f"entries[{i}].type", "the range that ends here was never started")
                elif entry.device < started:
                    yield Problem(f"entries[{i}].device", f"{entry.device:#x} lies before the start {started:#x}")
                started = None
            elif isinstance(entry, AcpiHid) and self.number != HIGHEST_TYPE:
                yield Problem(f"entries[{i}].type", "ACPI devices belong in blocks of type 40h")


class Ivhd10(Ivhd):
    """Type 10h: the legacy block, with a summary of the features (5.2.2)."""

    kind: Literal["ivhd10"] = "ivhd10"
    type: ClassVar[Tag] = Tag(1, 0x10)
    feature_reporting: Hex32 = Field(0, title="IOMMU Feature Reporting")
    entries: tuple[DeviceEntry, ...] = ()


class IvhdImage(Ivhd):
    """What types 11h and 40h share: an image of the extended feature registers in place of the summary."""

    attributes: Annotated[int, Int(4, hex=True, reserved_bits=0xF0001FFF)] = Field(0, title="IOMMU Attributes")
    efr_image: Hex64 = Field(0, title="EFR Register Image")
    efr_image_2: Hex64 = Field(0, title="EFR Register Image 2")


class Ivhd11(IvhdImage):
    """Type 11h (5.2.2)."""

    kind: Literal["ivhd11"] = "ivhd11"
    type: ClassVar[Tag] = Tag(1, 0x11)
    entries: tuple[DeviceEntry, ...] = ()


class Ivhd40(IvhdImage):
    """Type 40h: as 11h, and may name devices of the ACPI namespace (5.2.2)."""

    kind: Literal["ivhd40"] = "ivhd40"
    type: ClassVar[Tag] = Tag(1, 0x40)
    entries: tuple[DeviceEntry, ...] = ()


class Ivmd(Block):
    """An I/O virtualization memory definition (5.2): ``length_bytes`` of memory from ``start`` on.

    ``device`` and ``last_device`` delimit whom it is for: type 20h all devices, 21h the first, 22h the range.
    """

    type: ClassVar[Tag]
    flags: As8[MemoryFlags]
    length: ClassVar[Length] = Length(2)
    device: Hex16 = Field(0, title="DeviceID")
    last_device: Hex16 = Field(0, title="Auxiliary Data")
    reserved: Zero64 = 0
    start: Address = Field(title="IVMD Start Address")
    length_bytes: Hex64 = Field(title="IVMD Memory Block Length")

    @property
    @abstractmethod
    def devices(self) -> tuple[int, int]:
        """First and last device id that the memory is for."""

    @property
    def end(self) -> int:
        """The last byte."""
        return self.start + self.length_bytes - 1


class IvmdAll(Ivmd):
    """Type 20h: memory for all devices."""

    kind: Literal["ivmd_all"] = "ivmd_all"
    type: ClassVar[Tag] = Tag(1, 0x20)

    @property
    def devices(self) -> tuple[int, int]:
        """All of them."""
        return 0, 0xFFFF


class IvmdSingle(Ivmd):
    """Type 21h: memory for the device ``device``."""

    kind: Literal["ivmd_single"] = "ivmd_single"
    type: ClassVar[Tag] = Tag(1, 0x21)

    @property
    def devices(self) -> tuple[int, int]:
        """The one device."""
        return self.device, self.device


class IvmdRange(Ivmd):
    """Type 22h: memory for the devices ``device``..``last_device``."""

    kind: Literal["ivmd_range"] = "ivmd_range"
    type: ClassVar[Tag] = Tag(1, 0x22)

    @property
    def devices(self) -> tuple[int, int]:
        """The range."""
        return self.device, self.last_device


class RawBlock(Block):
    """A block of a type that is not known here, such as 51h of some laptops."""

    kind: Literal["raw"] = "raw"
    type: Hex8
    flags: Hex8 = 0
    length: ClassVar[Length] = Length(2)
    payload: Payload = b""


Definition = Annotated[Ivhd10 | Ivhd11 | Ivhd40 | IvmdAll | IvmdSingle | IvmdRange | RawBlock, Field(discriminator="kind")]


class Ivrs(Table):
    """The I/O Virtualization Reporting Structure (5.2.1)."""

    signature: ClassVar[Tag] = Tag(4, b"IVRS")
    revision: Annotated[int, Int(1)] = 2
    info: Annotated[int, Int(4, hex=True, reserved_bits=0xFF80001C)] = Field(0, title="IVinfo")
    reserved: Zero64 = 0
    blocks: tuple[Definition, ...] = ()

    @property
    def efr_supported(self) -> bool:
        """Whether the images of the feature registers in types 11h and 40h are valid (IVinfo bit 0)."""
        return bool(self.info & 1)

    @property
    def dma_remapped_before_boot(self) -> bool:
        """Whether firmware has confined DMA before system software starts (IVinfo bit 1)."""
        return bool(self.info & 2)

    @property
    def guest_address_code(self) -> int:
        """Guest virtual address size (IVinfo bits 7:5): 2 is 48 bits."""
        return self.info >> 5 & 0x7

    @property
    def physical_address_bits(self) -> int:
        """Physical address bits (IVinfo bits 14:8)."""
        return self.info >> 8 & 0x7F

    @property
    def virtual_address_bits(self) -> int:
        """I/O virtual address bits (IVinfo bits 21:15)."""
        return self.info >> 15 & 0x7F

    @property
    def ats_range_reserved(self) -> bool:
        """Whether the HyperTransport range is reserved for address translation requests too (IVinfo bit 22)."""
        return bool(self.info >> 22 & 1)

    @property
    def ivhds(self) -> tuple[Ivhd, ...]:
        """All hardware definitions, in the order of the table."""
        return tuple(block for block in self.blocks if isinstance(block, Ivhd))

    @property
    def ivmds(self) -> tuple[Ivmd, ...]:
        """All memory definitions, in the order of the table."""
        return tuple(block for block in self.blocks if isinstance(block, Ivmd))

    @property
    def unit_type(self) -> int | None:
        """The IVHD type that Linux uses for all units.

        It is the type of the last block that has the first block's device id, up to the first block of a type above 40h; the
        kind of the block is not looked at.
        """
        chosen, device = None, None
        for block in self.blocks:
            number = block.type if isinstance(block, RawBlock) else int.from_bytes(block.type.raw, "little")
            if number > HIGHEST_TYPE:
                break
            own = int.from_bytes(block.payload[:2], "little") if isinstance(block, RawBlock) else block.device
            device = own if device is None else device
            chosen = number if own == device else chosen
        return chosen

    @property
    def units(self) -> tuple[Ivhd, ...]:
        """The hardware definitions that Linux uses: those of ``unit_type``, one a unit."""
        return tuple(ivhd for ivhd in self.ivhds if ivhd.number == self.unit_type)

    def definition(self, segment: int, device: int) -> Ivhd | None:
        """The definition in use of the unit that translates for a device; the last one in the table, as in Linux."""
        found = [unit for unit in self.units if unit.segment == segment and unit.covers(device)]
        return found[-1] if found else None

    def findings(self) -> Iterator[Problem]:
        """What concerns several blocks."""
        if not self.units:
            yield Problem("blocks", "there is no unit that Linux would use", "error")
        seen: dict[tuple[int, int], int] = {}
        for i, block in enumerate(self.blocks):
            if isinstance(block, Ivhd):
                if (place := (block.number, block.address)) in seen:
                    where = f"blocks[{seen[place]}]"
                    yield Problem(f"blocks[{i}].address", f"{block.address:#x} is {where}'s too, of the same type", "error")
                seen.setdefault(place, i)


IVRS: AcpiFormat[Ivrs] = AcpiFormat(Ivrs)
