"""The reference driver's firmware table, ``TOYT``: one entry for each region that firmware goes on using."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from iommukit.machine.acpi import U16, AcpiFormat, Address, Block, Count, Hex8, Hex16, Length, Offset, Payload, Table, Tag, Zero8


class Entry(Block):
    """What all entries share."""


class SharedMemory(Entry):
    """Bytes ``start``..``end`` (inclusive) that a PCI function and firmware use together."""

    kind: Literal["shared_memory"] = "shared_memory"
    type: ClassVar[Tag] = Tag(1, 0)
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    segment: U16 = Field(0, title="Segment")
    bdf: Hex16 = Field(title="Requester ID")
    start: Address
    end: Address


class Unknown(Entry):
    """An entry of a type that is not known here."""

    kind: Literal["raw"] = "raw"
    type: Hex8
    reserved: Zero8 = 0
    length: ClassVar[Length] = Length(2)
    payload: Payload = b""


class Toyt(Table):
    """The table."""

    signature: ClassVar[Tag] = Tag(4, b"TOYT")
    count: ClassVar[Count] = Count(2, "entries")
    offset: ClassVar[Offset] = Offset(2, "entries")
    entries: tuple[Annotated[SharedMemory | Unknown, Field(discriminator="kind")], ...] = ()


TOYT: AcpiFormat[Toyt] = AcpiFormat(Toyt)
