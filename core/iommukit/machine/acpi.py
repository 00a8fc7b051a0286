"""Firmware tables: the ACPI header, and what can be done with every table format.

A format parses bytes, builds bytes, reads and writes structured fields (YAML, JSON), and lints::

    table = DMAR.parse(data, source="dmar.aml")      # FirmwareError: one line with table, offset and field
    assert DMAR.build(table) == data                 # byte for byte
    table = DMAR.validate({"host_address_width": 38, "structures": [{"kind": "drhd", "address": "0xfed90000"}]})
    for finding in DMAR.lint(table): print(finding)

Table formats are declared with the parts of ``acpi_structure`` and ``acpi_fields``, which this module re-exports.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from iommukit.errors import FirmwareError, InputError
from iommukit.machine.acpi_codec import FieldAt, Reader, Trace, Writer
from iommukit.machine.acpi_fields import (
    U8,
    U16,
    U32,
    U64,
    Address,
    As8,
    As32,
    Code,
    DeviceFunction,
    Hex8,
    Hex16,
    Hex32,
    Hex64,
    Int,
    Name,
    Payload,
    Raw,
    Ref16,
    Ref32,
    Reference,
    Step,
    Text,
    Wire,
    Zero8,
    Zero16,
    Zero32,
    Zero64,
)
from iommukit.machine.acpi_structure import (
    Block,
    Checksum,
    Count,
    Filler,
    Length,
    Offset,
    Placement,
    Problem,
    Structure,
    Tag,
    reference_faults,
    reserved,
    walk,
)

__all__ = [
    "U8",
    "U16",
    "U32",
    "U64",
    "AcpiFormat",
    "Address",
    "As8",
    "As32",
    "Block",
    "Code",
    "Count",
    "DeviceFunction",
    "FieldAt",
    "Filler",
    "Finding",
    "Hex8",
    "Hex16",
    "Hex32",
    "Hex64",
    "Int",
    "Length",
    "Name",
    "Offset",
    "Payload",
    "Placement",
    "Problem",
    "Raw",
    "Ref16",
    "Ref32",
    "Reference",
    "Step",
    "Structure",
    "Table",
    "TableFormat",
    "Tag",
    "Text",
    "Wire",
    "Zero8",
    "Zero16",
    "Zero32",
    "Zero64",
    "checksummed",
    "load_json",
    "walk",
]

HEADER_SIZE = 36
"""Bytes of the header that all ACPI tables share (ACPI 5.2.6)."""

M = TypeVar("M", bound=BaseModel)


class Table(Block):
    """The header that all ACPI tables share (ACPI 5.2.6, System Description Table Header).

    The defaults are this project's own marks; signature, length and checksum are derived.
    """

    signature: ClassVar[Tag]
    length: ClassVar[Length] = Length(4)
    revision: U8 = 1
    checksum: ClassVar[Checksum] = Checksum()
    oem_id: Annotated[str, Text(6)] = "IOMKIT"
    oem_table_id: Annotated[str, Text(8)] = "IOMMUKIT"
    oem_revision: Hex32 = 1
    creator_id: Annotated[str, Text(4)] = "IOMK"
    creator_revision: Hex32 = 1


T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Finding:
    """Something doubtful in a usable table.

    ``error``: Linux refuses the table or the structure for it; ``warning``: the specification is broken without effect.
    ``offset`` counts bytes from the start of the table, ``field`` is the path of the field.
    """

    severity: Literal["error", "warning"]
    table: str
    offset: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.table} at offset {self.offset:#x}, {self.field}: {self.severity}: {self.message}"


class TableFormat(ABC, Generic[M]):
    """A firmware table, or what a platform has in place of one: bytes, structured fields and a model of both."""

    def __init__(self, signature: str, model: type[M]) -> None:
        self.signature = signature
        self.model = model

    @abstractmethod
    def parse(self, data: bytes, source: str | None = None) -> M:
        """Parse the table's bytes; ``FirmwareError`` where they cannot be what they say."""

    @abstractmethod
    def build(self, table: M) -> bytes:
        """The table's bytes; lengths, counts, offsets and the checksum are computed."""

    def lint(self, table: M) -> list[Finding]:
        """What is doubtful in a usable table, in the order of the table."""
        return []

    def validate(self, fields: object, source: str | None = None) -> M:
        """Make a table from structured fields, as YAML or JSON gives them; ``InputError`` names the place."""
        try:
            table = self.model.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = _place(first["loc"], fields)
            raise InputError(_message(first), source=source, place=place or self.signature) from None
        except RecursionError:
            raise InputError("is nested too deeply", source=source, place=self.signature) from None
        for problem in self.faults(table):
            raise InputError(problem.message, source=source, place=problem.path)
        try:
            self.build(table)
        except InputError as error:
            raise InputError(error.message, source=source or error.source, place=error.place) from None
        return table

    def faults(self, table: M) -> Iterator[Problem]:
        """What makes a table unusable although each of its fields is fine; ``parse`` and ``validate`` raise the first."""
        yield from ()

    def fields(self, table: M) -> dict[str, Any]:
        """The structured form that people write: ``validate`` takes it; what has its default value is left out."""
        return _pruned(table, table.model_dump(mode="json"))

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the structured form."""
        return self.model.model_json_schema()


class AcpiFormat(TableFormat[T]):
    """A table with the ACPI header, declared as a ``Table``."""

    def __init__(self, model: type[T]) -> None:
        super().__init__(str(bytes(model.signature.raw), "ascii"), model)

    def parse(self, data: bytes, source: str | None = None) -> T:
        """Parse the table's bytes: header, length, checksum, every structure, every reference."""
        data = bytes(data)
        table = self._read(data, source)
        for problem in self.faults(table):
            offset, title = self._trace(data).locate(problem.path)
            raise FirmwareError(problem.message, table=self.signature, offset=offset, field=title, source=source)
        return table

    def build(self, table: T) -> bytes:
        """The table's bytes; ``InputError`` where they cannot be built (a count too large for its field)."""
        writer = Writer(self.signature)
        writer.structure(table, 0)
        if writer.labels:  # once more, now that each label's place is known
            writer = Writer(self.signature, writer.labels)
            writer.structure(table, 0)
        return checksummed(bytes(writer.out))

    def layout(self, data: bytes) -> list[FieldAt]:
        """Every field of the table with its place, in the order of reading; together they cover every byte once."""
        return self._trace(bytes(data)).fields

    def lint(self, table: T) -> list[Finding]:
        """Reserved bits, unknown values and types, and what each structure reports about itself."""
        trace = self._trace(self.build(table))
        found = []
        for path, structure in walk(table):
            for problem in (*reserved(structure), *structure.findings()):
                name = path + problem.path
                found.append(Finding(problem.severity, self.signature, trace.locate(name)[0], name, problem.message))
        return sorted(found, key=lambda finding: finding.offset)

    def faults(self, table: T) -> Iterator[Problem]:
        """Labels and references that do not fit, and what the table reports itself."""
        yield from reference_faults(table)
        yield from table.faults()

    def _trace(self, data: bytes) -> Trace:
        trace = Trace()
        self._read(data, None, trace)
        return trace

    def _read(self, data: bytes, source: str | None, trace: Trace | None = None) -> T:
        reader = Reader(data, self.signature, source, trace)
        if len(data) < HEADER_SIZE:
            raise reader.fail(f"{len(data)} bytes are too few for the header of {HEADER_SIZE}", len(data), "Header")
        if (found := data[:4]) != self.model.signature.raw:
            raise reader.fail(f"is {found!r}, not {self.model.signature.raw!r}"[:80], 0, "Signature")
        length = int.from_bytes(data[4:8], "little")
        if length < HEADER_SIZE:
            raise reader.fail(f"says {length} bytes, less than the header of {HEADER_SIZE}", 4, "Length")
        if length != len(data):
            what = "cut" if length > len(data) else "followed by other bytes"
            raise reader.fail(f"says {length} bytes, but there are {len(data)}: the table is {what}", 4, "Length")
        if total := sum(data) & 0xFF:
            right = (data[9] - total) & 0xFF
            raise reader.fail(f"is {data[9]:#04x}, but the table's bytes ask for {right:#04x}", 9, "Checksum")
        table = reader.structure(self.model, 0, len(data))
        assert isinstance(table, self.model)
        return table


def checksummed(data: bytes) -> bytes:
    """The table's bytes with the checksum that they ask for (byte 9; ACPI 5.2.6)."""
    total = sum(data) - data[9]
    return data[:9] + bytes([-total & 0xFF]) + data[10:]


def _place(location: Sequence[str | int], fields: object) -> str:
    """A pydantic location as a path, without the tags that pydantic inserts for structures of several kinds."""
    path, here = "", fields
    for part in location:
        if isinstance(here, dict) and part not in here and part == here.get("kind"):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        try:
            here = here[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            here = None
    return path


def _message(error: Any) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return "no such field"
    if kind == "missing":
        return "this field is missing"
    if kind == "union_tag_not_found":
        return "kind is missing"
    if kind == "union_tag_invalid":
        return f"no such kind {error['ctx']['tag']!r}; there are {error['ctx']['expected_tags']}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind in ("value_error", "assertion_error"):
        return message
    shown = repr(error.get("input"))
    return f"{message[:1].lower()}{message[1:]}, got {shown if len(shown) <= 60 else shown[:57] + '…'}"


def _pruned(model: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    """``dumped`` without what has its default value; ``kind`` stays."""
    kept: dict[str, Any] = {}
    fields = type(model).model_fields
    for name in sorted(fields, key=lambda name: (name != "kind", name != "label")):
        info, value = fields[name], getattr(model, name)
        if name != "kind" and not info.is_required() and value == info.get_default(call_default_factory=True):
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            kept[name] = [_pruned(one, two) for one, two in zip(value, dumped[name], strict=True)]
        elif isinstance(value, BaseModel):
            kept[name] = _pruned(value, dumped[name])
        else:
            kept[name] = dumped[name]
    return kept


def load_json(text: str | bytes, source: str | None = None) -> Any:
    """Parse a JSON document; ``InputError`` names the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"is not JSON: {error.msg}", source=source, place=place) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}", source=source) from None
