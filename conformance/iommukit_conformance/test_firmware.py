"""Firmware tables of vendors that read any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iommukit.errors import InputError, NotApplicable
from iommukit.machine.acpi import HEADER_SIZE, TableFormat, checksummed
from iommukit_conformance.case import Findings, Scope, Undecided, case, hold
from iommukit_conformance.lab import Lab
from iommukit_conformance.scenarios import shipped_tables

CUTS = 48
FLIPS = 96


def _samples(lab: Lab) -> Iterator[tuple[TableFormat[Any], str, bytes]]:
    """Tables of the vendor's formats: one without any entry, and those of the machines that come with the project."""
    formats = list(lab.ops.firmware_formats())
    if not formats:
        raise NotApplicable(f"{lab.vendor.name} reads no firmware tables")
    for reader in formats:
        try:
            yield reader, "an empty table", _written(reader, {}, "an empty table")
        except InputError:
            pass
        for name, raw in shipped_tables(reader.signature):
            if isinstance(raw, bytes):
                yield reader, name, raw
            else:
                yield reader, name, _written(reader, raw, name)


def _written(reader: TableFormat[Any], fields: object, name: str) -> bytes:
    """Written fields as bytes, which must be read as what was written."""
    table = reader.validate(fields, name)
    data = reader.build(table)
    if reader.parse(data, name) != table:
        raise Altered(f"{reader.signature} of {name}: what is read is not what was written")
    return data


class Altered(Exception):
    """A format that does not write what it was given."""


@case("DRV-80", scope=Scope.VENDOR)
def test_tables_survive_a_round_trip(lab: Lab) -> Findings:
    """Bytes to model to bytes, and bytes to written fields to bytes."""
    tried = 0
    for reader, name, data in _samples(lab):
        tried += 1
        table = reader.parse(data, name)
        yield hold(reader.build(table) == data, f"{reader.signature} of {name}: written again it differs")
        yield hold(reader.parse(reader.build(table), name) == table, f"{reader.signature} of {name}: read again it differs")
        again = reader.validate(reader.fields(table), name)
        yield hold(reader.build(again) == data, f"{reader.signature} of {name}: written from its fields it differs")
    if not tried:
        raise Undecided("there is no table to try")


def _damaged(reader: TableFormat[Any], data: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """Damaged tables: what was done, the bytes, and whether they may be accepted."""
    step = max(1, len(data) // CUTS)
    for length in range(0, len(data), step):
        yield f"cut to {length} bytes", data[:length], False
        if data[:4] == reader.signature.encode() and length >= HEADER_SIZE:
            honest = data[:4] + length.to_bytes(4, "little") + data[8:length]
            yield f"shortened to {length} bytes", checksummed(honest), True
    step = max(1, len(data) // FLIPS)
    for place in range(0, len(data), step):
        flipped = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        yield f"with byte {place} inverted", flipped, True
        if data[:4] == reader.signature.encode() and place >= HEADER_SIZE:
            yield f"with byte {place} inverted and the checksum right", checksummed(flipped), True


@case("DRV-81", scope=Scope.VENDOR)
def test_damaged_tables_are_refused(lab: Lab) -> Findings:
    """With one line that names the place, whatever is broken."""
    tried = 0
    for reader, name, data in _samples(lab):
        for what, bytes_, acceptable in _damaged(reader, data):
            tried += 1
            subject = f"{reader.signature} of {name}, {what}"
            try:
                reader.parse(bytes_, name)
            except InputError as error:
                text = str(error)
                yield hold(reader.signature in text and "\n" not in text, f"{subject}: refused without the table's name: {text}")
            except Exception as error:
                yield f"{subject}: {type(error).__name__}: {error}"
            else:
                yield hold(acceptable, f"{subject}: accepted")
    if not tried:
        raise Undecided("there is no table to try")
