"""The declarative structures themselves, on a table made for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import IntFlag
from typing import Annotated, Any, ClassVar, Literal

import jsonschema
import pytest
import yaml
from pydantic import Field

from iommukit.errors import FirmwareError, InputError
from iommukit.machine.acpi import (
    U8,
    U16,
    U32,
    AcpiFormat,
    Address,
    As8,
    Block,
    Code,
    Count,
    Length,
    Name,
    Offset,
    Payload,
    Problem,
    Ref16,
    Step,
    Structure,
    Table,
    Tag,
    Text,
    Zero8,
    checksummed,
)
from tests.firmware.samples import SAMPLES


class Colours(IntFlag):
    RED = 1
    GREEN = 2


class Shape(Code):
    ROUND = 1
    SQUARE = 2


class Point(Structure):
    x: U16
    y: U16 = 0


class Thing(Block):
    kind: Literal["thing"] = "thing"
    label: str | None = None
    type: ClassVar[Tag] = Tag(1, 1)
    length: ClassVar[Length] = Length(1)
    colours: As8[Colours] = Colours(0)
    shape: As8[Shape] = Shape.ROUND
    point_count: ClassVar[Count] = Count(1, "points")
    point_offset: ClassVar[Offset] = Offset(1, "points")
    word_count: ClassVar[Count] = Count(1, "words")
    word_offset: ClassVar[Offset] = Offset(1, "words")
    late: U16 | None = 7
    later: U8 | None = 0
    points: tuple[Point, ...] = ()
    words: tuple[U16, ...] = ()


class Link(Block):
    kind: Literal["link"] = "link"
    label: str | None = None
    type: ClassVar[Tag] = Tag(1, 2)
    length: ClassVar[Length] = Length(1)
    to: Ref16
    name: Name = ""
    path: tuple[Step, ...] = ()


class Other(Block):
    kind: Literal["raw"] = "raw"
    label: str | None = None
    type: U8
    length: ClassVar[Length] = Length(1)
    payload: Payload = b""


class Toy(Table):
    signature: ClassVar[Tag] = Tag(4, b"TOY!")
    address: Address = 0
    mark: Annotated[str, Text(4)] = ""
    reserved: Zero8 = 0
    width: U32 = Field(0, title="The Width")
    things: tuple[Annotated[Thing | Link | Other, Field(discriminator="kind")], ...] = ()

    def findings(self) -> Iterator[Problem]:
        if self.width == 13:
            yield Problem("width", "is unlucky", "error")


TOY = AcpiFormat(Toy)
HEAD = 36 + 17


def toy(*things: dict[str, Any], **fields: Any) -> Toy:
    return TOY.validate({**fields, "things": list(things)}, "toy.yaml")


def body(*things: dict[str, Any]) -> bytes:
    return TOY.build(toy(*things))[HEAD:]


def parse(*pieces: str) -> Toy:
    """Parse things given as hexadecimal digits."""
    data = TOY.build(toy())[:HEAD] + bytes.fromhex("".join(pieces))
    return TOY.parse(checksummed(data[:4] + len(data).to_bytes(4, "little") + data[8:]), "toy.aml")


def test_declaration_is_the_layout() -> None:
    data = TOY.build(toy(address="0x123456789a", mark="AB", width=0x01020304))
    assert data[:4] == b"TOY!"
    assert int.from_bytes(data[4:8], "little") == len(data) == HEAD
    assert sum(data) % 256 == 0
    assert data[36:].hex() == "9a785634120000004142000000" + "04030201"
    places = {place.name: (place.offset, place.length, place.title, place.value) for place in TOY.layout(data)}
    assert places["address"] == (36, 8, "Address", 0x123456789A)
    assert places["width"] == (49, 4, "The Width", 0x01020304)
    assert places["signature"] == (0, 4, "Signature", "TOY!")
    assert places["checksum"] == (9, 1, "Checksum", data[9])


def test_arrays_are_placed_and_counted() -> None:
    assert body({"kind": "thing"}).hex() == "010b0001" + "00000000" + "0700" + "00"
    assert body({"kind": "thing", "points": [{"x": 1, "y": 2}, {"x": 3}], "words": [9]}).hex() == (
        "01160001" + "020c0114" + "0700" + "00" + "00" + "0100020003000000" + "0900"
    )


def test_every_way_to_write_values() -> None:
    one = toy({"kind": "thing", "colours": ["red", "0x80"], "shape": "square", "late": "0x10"}, address="255").things[0]
    assert isinstance(one, Thing)
    assert one.colours == 0x81
    assert Colours.RED in one.colours
    assert one.shape is Shape.SQUARE
    assert one.late == 16
    assert (
        toy({"kind": "thing", "colours": "green", "shape": 2}).things[0]
        == toy({"kind": "thing", "colours": 2, "shape": "0x2"}).things[0]
    )
    written = TOY.fields(toy({"kind": "thing", "colours": 0x81, "shape": 99}, address=255))
    assert written == {"address": "0xff", "things": [{"kind": "thing", "colours": ["red", "0x80"], "shape": "0x63"}]}
    assert TOY.validate(yaml.safe_load(yaml.safe_dump(written))) == toy(
        {"kind": "thing", "colours": 0x81, "shape": 99}, address=255
    )


def test_fields_that_older_structures_lack() -> None:
    old = parse("01080001", "00000000").things[0]
    assert isinstance(old, Thing)
    assert (old.late, old.later, old.placement) == (None, None, None)
    middle = parse("010a0001", "00000000", "0500").things[0]
    assert isinstance(middle, Thing)
    assert (middle.late, middle.later) == (5, None)
    assert toy({"kind": "thing", "label": "thing-0", "late": None, "later": None}).things[0] == old
    half = parse("01090001", "00000000", "05").things[0]
    assert half.placement is not None
    assert half.placement.model_dump(mode="json") == {"length": 9, "offsets": {}, "filler": [{"at": "0x8", "data": "05"}]}
    with pytest.raises(InputError, match=r"things\[0\].later: later cannot be there where late is not"):
        toy({"kind": "thing", "late": None})


@pytest.mark.parametrize(
    ("thing", "placement"),
    [
        ("010d0001 00000000 070000 0000", {"length": 13, "offsets": {}, "filler": []}),
        ("010d0001 00000000 070000 00ff", {"length": 13, "offsets": {}, "filler": [{"at": "0xb", "data": "00ff"}]}),
        ("010b0001 00040009 070000", {"length": None, "offsets": {"points": 4, "words": 9}, "filler": []}),
        ("01120001 010e010c 070000 00 0900 01000200", {"length": None, "offsets": {"points": 14, "words": 12}, "filler": []}),
        ("010f0001 010b0000 070000 01000200", {"length": None, "offsets": {"points": 11}, "filler": []}),
    ],
)
def test_placement_keeps_what_firmware_did(thing: str, placement: object) -> None:
    table = parse(thing)
    assert table.things[0].placement is not None
    assert table.things[0].placement.model_dump(mode="json") == placement
    assert TOY.build(table)[HEAD:] == bytes.fromhex(thing)
    assert TOY.validate(json.loads(json.dumps(TOY.fields(table)))) == table


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("010f0001 01080000 070000 01000200", "0x3b, Late: ..."),
        ("01120001 010c010e 070000 00 010002000900", "0x3c, Word Offset: words overlaps points"),
        ("010b0001 010c0000 070000", "0x3a, Point Offset: 0xc is beyond the end of this Thing"),
        ("010f0001 02 0b0000 070000 01000200", "0x44, Points: 0 bytes are left here, a structure needs at least 4"),
        ("010f0001 01070000 070000 01000200", "0x3c, Word Offset: an array of this Thing starts within this field"),
        ("01060001 0000", "0x36, Length: Thing is 6 bytes long, 8 are the least it needs"),
        ("01", "0x35, Things: 1 bytes are left here, a structure needs at least 2"),
        ("02050000 00", "0x37, To: 0x0 is not the start of a node"),
        ("02053600 00", "0x37, To: 0x36 is not the start of a node"),
        ("02053500 41", "0x39, Name: has no terminating NUL"),
        ("02063500 0001", "0x3a, Path: element 0, of 2 bytes, is cut off at 0x3b"),
    ],
)
def test_errors_name_the_place(thing: str, message: str) -> None:
    if message.endswith("..."):  # the array takes the room of the optional fields
        assert parse(thing).things[0].late is None  # type: ignore[union-attr]
        return
    with pytest.raises(FirmwareError) as caught:
        parse(thing)
    assert str(caught.value) == f"toy.aml: TOY! at offset {message}"


def test_references_go_by_label() -> None:
    table = toy({"kind": "link", "label": "a", "to": "b", "name": "N"}, {"kind": "raw", "label": "b", "type": 9})
    data = TOY.build(table)
    assert data[HEAD + 2 : HEAD + 4] == (HEAD + 6).to_bytes(2, "little")
    again = TOY.parse(data)
    assert [thing.label for thing in again.things] == ["link-0", "raw-0"]
    assert again.things[0].to == "raw-0"  # type: ignore[union-attr]
    assert TOY.build(again) == data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "TOY!: input should be a valid dictionary or instance of Toy, got []"),
        ({"adress": 1}, "adress: no such field"),
        ({"address": "high"}, "address: a number was expected, such as 10 or 0xa, not 'high'"),
        ({"address": True}, "address: input should be a valid integer, got True"),
        ({"address": -1}, "address: input should be greater than or equal to 0, got -1"),
        ({"width": 1 << 32}, "width: input should be less than or equal to 4294967295, got 4294967296"),
        ({"mark": "ABCDE"}, "mark: string should have at most 4 characters, got 'ABCDE'"),
        ({"things": [{"colours": 1}]}, "things[0]: kind is missing"),
        ({"things": [{"kind": "ding"}]}, "things[0]: no such kind 'ding'; there are 'thing', 'link', 'raw'"),
        ({"things": [{"kind": "raw", "type": 1, "label": "a"}] * 2}, "things[1].label: the label 'a' appears twice"),
    ],
)
def test_bad_fields_are_one_line(fields: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        TOY.validate(fields, "toy.yaml")
    assert str(caught.value) == f"toy.yaml: {message}"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("thing", {"colours": ["blue"]}, ".colours: no such name 'blue'; there are red, green"),
        ("thing", {"colours": 256}, ".colours: 0x100 does not fit in 1 bytes"),
        ("thing", {"shape": None}, ".shape: a name or a number was expected, not None"),
        ("thing", {"points": [{}]}, ".points[0].x: this field is missing"),
        ("thing", {"placement": {"length": 5}}, ".placement.length: 5 is shorter than the content, 11"),
        ("thing", {"placement": {"offsets": {"dots": 5}}}, ".placement.offsets: no such array: dots"),
        ("thing", {"placement": {"filler": [{"at": 1, "data": "00"}]}}, ".placement: fields and filler overlap"),
        ("thing", {"words": [1], "placement": {"offsets": {"words": 4}}}, ".placement: fields and words overlap"),
        ("raw", {"type": 1, "payload": "abc"}, ".payload: pairs of hexadecimal digits were expected"),
        ("raw", {"type": 1, "payload": 12}, ".payload: hexadecimal digits were expected, not 12; write them in quotes"),
        ("raw", {"type": 1, "payload": "00" * 300}, ".length: 0x12e does not fit in 1 bytes"),
        ("link", {"to": "x"}, ".to: there is no node 'x'"),
        ("link", {"to": "x", "path": [2.0]}, ".path[0]: 2.0 was read as a number; write device.function in quotes"),
        ("link", {"to": "x", "path": ["2"]}, ".path[0]: device.function in hexadecimal was expected, such as 1e.6, not '2'"),
        ("link", {"to": "x", "path": ["100.0"]}, ".path[0]: '100.0': device and function are one byte each"),
        ("link", {"to": "x", "name": "a\0b"}, ".name: NUL cannot be part of the text"),
    ],
)
def test_bad_structures_are_one_line(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        toy({"kind": kind, **fields})
    assert str(caught.value) == f"toy.yaml: things[0]{message}"


def test_lint_reports_with_places() -> None:
    table = toy({"kind": "thing", "colours": 4, "shape": 9}, {"kind": "raw", "type": 9}, reserved=3, width=13)
    assert [str(finding) for finding in TOY.lint(table)] == [
        "TOY! at offset 0x30, reserved: warning: reserved bits 0x3 are set",
        "TOY! at offset 0x31, width: error: is unlucky",
        "TOY! at offset 0x37, things[0].colours: warning: reserved bits 0x4 are set",
        "TOY! at offset 0x38, things[0].shape: warning: 0x9 is no known value",
        "TOY! at offset 0x40, things[1].type: warning: unknown type; the structure is kept as it is and skipped",
    ]


@pytest.mark.parametrize(("format_", "fields"), SAMPLES, ids=lambda value: getattr(value, "signature", ""))
def test_samples_and_schema(format_: AcpiFormat[Any], fields: dict[str, Any]) -> None:
    schema = format_.json_schema()
    table = format_.validate(fields)
    for form in (fields, format_.fields(table), table.model_dump(mode="json")):
        jsonschema.validate(form, schema)
        assert format_.validate(yaml.safe_load(yaml.safe_dump(form))) == table
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**fields, "nonsense": 1}, schema)
    data = format_.build(table)
    assert format_.build(format_.parse(data)) == data


@pytest.mark.parametrize(
    "fields",
    [
        {"a": tuple[U8, ...], "b": U8},
        {"a": int},
        {"a": U8 | None, "b": U8},
        {"a": tuple[Point | Thing, ...], "b": tuple[Point | Other, ...]},
    ],
)
def test_declarations_that_make_no_layout(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        type("Bad", (Structure,), {"__annotations__": fields, "__module__": __name__})


def test_a_length_needs_a_block() -> None:
    with pytest.raises(TypeError, match="it is a Block"):
        type("Bad", (Structure,), {"__annotations__": {"n": ClassVar[Length]}, "n": Length(1), "__module__": __name__})
