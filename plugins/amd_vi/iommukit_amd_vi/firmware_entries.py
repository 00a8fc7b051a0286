"""The device entries of an IVHD block: which requests a unit translates, and how.

The specification is AMD's I/O Virtualization Technology (IOMMU), 48882, section 5.2.2.2.  A device id is bus, device and
function in sixteen bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from iommukit.machine.acpi import (
    U8,
    As8,
    Code,
    Count,
    Hex8,
    Hex16,
    Hex32,
    Payload,
    Structure,
    Tag,
    Text,
    Wire,
    Zero8,
    Zero16,
)

ACPI_HID_FIXED = 22
"""Bytes of an ACPI HID entry before its unique id."""


class DteFlags(IntFlag):
    """Data setting of a device entry: what goes into the device's table entry; bits 5:4 are one field, SysMgt."""

    INIT_PASS = 0x01
    EINT_PASS = 0x02
    NMI_PASS = 0x04
    SYSMGT1 = 0x10
    SYSMGT2 = 0x20
    LINT0_PASS = 0x40
    LINT1_PASS = 0x80


class Variety(Code):
    """What a special device is."""

    IOAPIC = 1
    HPET = 2


class UidFormat(Code):
    """How an ACPI HID entry gives its unique id."""

    NONE = 0
    INTEGER = 1
    STRING = 2


class UniqueId(Wire):
    """Bytes that mostly are text: written as that text where it can be printed, else as ``hex:0100``."""

    def read(self, raw: bytes, labels: Mapping[int, str]) -> bytes:
        """The bytes themselves."""
        return raw

    def write(self, value: bytes, labels: Mapping[str, int]) -> bytes:
        """The bytes themselves."""
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(self._text, when_used="json")
        return core_schema.no_info_plain_validator_function(self._bytes, serialization=shown)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "description": "text, or hex: and pairs of hexadecimal digits"}

    def _text(self, value: bytes) -> str:
        text = value.decode("latin-1")
        return text if text.isascii() and (text + " ").isprintable() and text[:4] != "hex:" else f"hex:{value.hex()}"

    def _bytes(self, value: object) -> bytes:
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise ValueError(f"text was expected, not {value!r}")
        if value.startswith("hex:"):
            return bytes.fromhex(value[4:])
        return value.encode("latin-1")


class Entry(Structure):
    """What all device entries share: the type in the first byte, whose top bits give the entry's length."""

    @classmethod
    def extent(cls, data: bytes) -> int:
        """4, 8, 16 or 32 bytes; types from 0xf0 on say themselves."""
        kind = data[0]
        if kind < 0xF0:
            return 4 << (kind >> 6)
        if kind > 0xF0:
            raise ValueError(f"type {kind:#x} has no known length")
        return ACPI_HID_FIXED + (data[ACPI_HID_FIXED - 1] if len(data) >= ACPI_HID_FIXED else 0)


class Pad(Entry):
    """Four bytes that say nothing (type 0)."""

    kind: Literal["pad"] = "pad"
    type: ClassVar[Tag] = Tag(1, 0)
    device: Hex16 = Field(0, title="Device ID")
    data_setting: Hex8 = 0


class All(Entry):
    """All devices of the segment (type 1)."""

    kind: Literal["all"] = "all"
    type: ClassVar[Tag] = Tag(1, 1)
    device: Annotated[Hex16, Field(title="Device ID", description="ignored")] = 0
    data_setting: As8[DteFlags] = DteFlags(0)


class Select(Entry):
    """One device (type 2)."""

    kind: Literal["select"] = "select"
    type: ClassVar[Tag] = Tag(1, 2)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)


class RangeStart(Entry):
    """The first device of a range (type 3)."""

    kind: Literal["range_start"] = "range_start"
    type: ClassVar[Tag] = Tag(1, 3)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)


class RangeEnd(Entry):
    """The last device of the range that the entry before it has started (type 4)."""

    kind: Literal["range_end"] = "range_end"
    type: ClassVar[Tag] = Tag(1, 4)
    device: Hex16 = Field(title="Device ID")
    reserved: Zero8 = 0


class AliasSelect(Entry):
    """One device whose requests carry the id ``source`` (type 0x42)."""

    kind: Literal["alias_select"] = "alias_select"
    type: ClassVar[Tag] = Tag(1, 0x42)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)
    reserved: Zero8 = 0
    source: Hex16 = Field(title="Source Device ID")
    reserved_2: Zero8 = 0


class AliasRangeStart(Entry):
    """The first device of a range whose requests carry the id ``source`` (type 0x43)."""

    kind: Literal["alias_range_start"] = "alias_range_start"
    type: ClassVar[Tag] = Tag(1, 0x43)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)
    reserved: Zero8 = 0
    source: Hex16 = Field(title="Source Device ID")
    reserved_2: Zero8 = 0


class ExtendedSelect(Entry):
    """One device with an extended data setting: bit 31, ATS disabled (type 0x46)."""

    kind: Literal["extended_select"] = "extended_select"
    type: ClassVar[Tag] = Tag(1, 0x46)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)
    extended: Hex32 = Field(0, title="Extended DTE Setting")


class ExtendedRangeStart(Entry):
    """The first device of a range with an extended data setting (type 0x47)."""

    kind: Literal["extended_range_start"] = "extended_range_start"
    type: ClassVar[Tag] = Tag(1, 0x47)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)
    extended: Hex32 = Field(0, title="Extended DTE Setting")


class Special(Entry):
    """An I/O APIC or HPET, whose requests carry the id ``source`` (type 0x48); ``handle`` is its APIC or HPET number."""

    kind: Literal["special"] = "special"
    type: ClassVar[Tag] = Tag(1, 0x48)
    reserved: Zero16 = 0
    data_setting: As8[DteFlags] = DteFlags(0)
    handle: U8
    source: Hex16 = Field(title="Source Device ID")
    variety: As8[Variety]


class AcpiHid(Entry):
    """A device of the ACPI namespace, whose requests carry the id ``device`` (type 0xf0).

    ``uid`` holds the unique id's bytes, ``unique_id`` reads them by their format.
    """

    kind: Literal["acpi_hid"] = "acpi_hid"
    type: ClassVar[Tag] = Tag(1, 0xF0)
    device: Hex16 = Field(title="Device ID")
    data_setting: As8[DteFlags] = DteFlags(0)
    hid: Annotated[str, Text(8)] = Field(title="Hardware ID")
    cid: Annotated[str, Text(8)] = Field("", title="Compatible ID")
    uid_format: As8[UidFormat] = UidFormat.STRING
    uid_length: ClassVar[Count] = Count(1, "uid")
    uid: Annotated[bytes, UniqueId()] = Field(b"", title="Unique ID")

    @property
    def unique_id(self) -> int | str | None:
        r"""The unique id: a number (of any length), a path such as ``\_SB.FUR0``, or none."""
        if self.uid_format == UidFormat.INTEGER:
            return int.from_bytes(self.uid, "little")
        return self.uid.decode("latin-1").rstrip("\0") if self.uid_format == UidFormat.STRING else None


class RawEntry(Entry):
    """An entry of a type that is not known here; Linux skips it as far as its length is known."""

    kind: Literal["raw"] = "raw"
    type: Hex8
    payload: Payload

    @model_validator(mode="after")
    def _as_long_as_the_type_says(self) -> RawEntry:
        if (size := self.extent(bytes([self.type]))) != 1 + len(self.payload):
            raise ValueError(f"type {self.type:#x} has {size - 1} bytes of payload, not {len(self.payload)}")
        return self


DeviceEntry = Annotated[
    Pad
    | All
    | Select
    | RangeStart
    | RangeEnd
    | AliasSelect
    | AliasRangeStart
    | ExtendedSelect
    | ExtendedRangeStart
    | Special
    | AcpiHid
    | RawEntry,
    Field(discriminator="kind"),
]
