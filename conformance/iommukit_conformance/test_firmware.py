"""Firmware tables of vendors that read any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from iommukit.errors import InputError, NotApplicable
from iommukit.machine.acpi import HEADER_SIZE, TableFormat, checksummed
from iommukit_conformance.case import Findings, Scope, Undecided, case, hold
from iommukit_conformance.lab import Lab
from iommukit_conformance.scenarios import shipped_tables

CUTS = 48
FLIPS = 96


@dataclass(frozen=True)
class Sample:
    """A table: its bytes, and what was written, where it was made from fields."""

    reader: TableFormat[Any]
    name: str
    data: bytes
    written: Any = None

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.reader.signature} of {self.name}"


def _samples(lab: Lab) -> Iterator[Sample]:
    """Tables of the vendor's formats: one without any entry, and those of the machines that come with the project."""
    formats = list(lab.ops.firmware_formats())
    if not formats:
        raise NotApplicable(f"{lab.vendor.name} reads no firmware tables")
    tried = 0
    for reader in formats:
        for name, raw in (("an empty table", {}), *shipped_tables(reader.signature)):
            if isinstance(raw, bytes):
                yield Sample(reader, name, raw)
            else:
                try:
                    table = reader.validate(raw, name)
                except InputError:
                    if raw:
                        raise
                    continue  # Some tables cannot be empty.
                yield Sample(reader, name, reader.build(table), table)
            tried += 1
    if not tried:
        raise Undecided("there is no table to try")


@case("DRV-80", scope=Scope.VENDOR)
def test_tables_survive_a_round_trip(lab: Lab) -> Findings:
    """Fields to bytes to fields, and bytes to model or fields to bytes."""
    for sample in _samples(lab):
        reader = sample.reader
        table = reader.parse(sample.data, sample.name)
        if sample.written is not None:
            yield hold(table == sample.written, f"{sample.title}: what is read is not what was written")
        yield hold(reader.build(table) == sample.data, f"{sample.title}: written again it differs")
        again = reader.validate(reader.fields(table), sample.name)
        yield hold(reader.build(again) == sample.data, f"{sample.title}: written from its fields it differs")


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
    for sample in _samples(lab):
        for what, damaged, acceptable in _damaged(sample.reader, sample.data):
            subject = f"{sample.title}, {what}"
            try:
                sample.reader.parse(damaged, sample.name)
            except InputError as error:
                text = str(error)
                named = sample.reader.signature in text and "\n" not in text
                yield hold(named, f"{subject}: refused, but not in one line with the table's name: {text}")
            except Exception as error:
                yield f"{subject}: {type(error).__name__}: {error}"
            else:
                yield hold(acceptable, f"{subject}: accepted")
