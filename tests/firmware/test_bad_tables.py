"""Bad tables: whatever the bytes, either ``FirmwareError`` with one line and a place, or a table that is built again exactly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iommukit.errors import FirmwareError, InputError
from iommukit.machine.acpi import HEADER_SIZE, AcpiFormat, checksummed
from tests.firmware.samples import SAMPLES

Sample = tuple[AcpiFormat[Any], bytes]
TABLES: list[Sample] = [(format_, format_.build(format_.validate(fields))) for format_, fields in SAMPLES]
each = pytest.mark.parametrize(("format_", "data"), TABLES, ids=lambda value: getattr(value, "signature", ""))
tables = st.sampled_from(TABLES)
relaxed = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def resized(data: bytes, length: int | None = None) -> bytes:
    """The bytes as a table of their own length, with a right checksum."""
    size = len(data) if length is None else length
    return checksummed(data[:4] + size.to_bytes(4, "little") + data[8:])


def one_line(error: InputError, source: str) -> None:
    """An error is fit to be printed as it is."""
    assert str(error).startswith(f"{source}: ")
    assert "\n" not in str(error)


def placed(error: FirmwareError, format_: AcpiFormat[Any], data: bytes) -> None:
    """An error names the table, a place in it and a field."""
    assert error.table == format_.signature
    assert 0 <= error.offset <= len(data)
    assert error.field
    one_line(error, f"bad.aml: {format_.signature} at offset {error.offset:#x}, {error.field}")


def accept(format_: AcpiFormat[Any], data: bytes) -> FirmwareError | None:
    """Parse; what is accepted must be built again, linted, laid out and written down."""
    try:
        table = format_.parse(data, "bad.aml")
    except FirmwareError as error:
        placed(error, format_, data)
        return error
    assert format_.build(table) == data
    assert format_.validate(table.model_dump(mode="json")) == table
    for finding in format_.lint(table):
        assert 0 <= finding.offset < len(data)
    assert sum(place.length for place in format_.layout(data)) == len(data)
    return None


@each
def test_cut_at_every_length(format_: AcpiFormat[Any], data: bytes) -> None:
    for length in range(len(data)):
        assert accept(format_, data[:length]) is not None


@each
def test_cut_at_every_length_with_a_header_that_agrees(format_: AcpiFormat[Any], data: bytes) -> None:
    for length in range(HEADER_SIZE, len(data)):
        accept(format_, resized(data[:length]))


@each
def test_every_byte_changed(format_: AcpiFormat[Any], data: bytes) -> None:
    for at in range(len(data)):
        for byte in {0, 1, 0xFF, data[at] ^ 0x10} - {data[at]}:
            changed = data[:at] + bytes([byte]) + data[at + 1 :]
            assert accept(format_, changed) is not None, "the checksum is wrong"
    for at in range(len(data)):
        byte = 0 if at % 2 and data[at] else 0xFF if at % 3 else data[at] ^ 1
        accept(format_, checksummed(data[:at] + bytes([byte]) + data[at + 1 :]))


@relaxed
@given(table=tables, changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=2, max_size=12))
def test_bytes_changed(table: Sample, changes: list[tuple[int, int]]) -> None:
    format_, data = table
    changed = bytearray(data)
    for at, byte in changes:
        changed[HEADER_SIZE + at % (len(data) - HEADER_SIZE)] = byte
    accept(format_, checksummed(bytes(changed)))


@relaxed
@given(table=tables, body=st.binary(max_size=120))
def test_anything_after_the_header(table: Sample, body: bytes) -> None:
    format_, data = table
    accept(format_, resized(data[:HEADER_SIZE] + body))
    accept(format_, resized(data[:48] + body))


@relaxed
@given(table=tables, start=st.integers(0, 2000), length=st.integers(1, 40), extra=st.binary(max_size=40))
def test_bytes_cut_out_and_put_in(table: Sample, start: int, length: int, extra: bytes) -> None:
    format_, data = table
    start = HEADER_SIZE + start % (len(data) - HEADER_SIZE)
    accept(format_, resized(data[:start] + extra + data[start + length :]))


@given(data=st.binary(max_size=200))
def test_anything(data: bytes) -> None:
    for format_, _ in TABLES:
        assert accept(format_, data) is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "DMAR at offset 0x0, Header: 0 bytes are too few for the header of 36"),
        (b"DMAR" + bytes(20), "DMAR at offset 0x18, Header: 24 bytes are too few for the header of 36"),
        (b"APIC" + bytes(44), "DMAR at offset 0x0, Signature: is b'APIC', not b'DMAR'"),
        (resized(b"DMAR" + bytes(44), 20), "DMAR at offset 0x4, Length: says 20 bytes, less than the header of 36"),
        (
            resized(b"DMAR" + bytes(44), 64),
            "DMAR at offset 0x4, Length: says 64 bytes, but there are 48: the table is cut",
        ),
        (
            resized(b"DMAR" + bytes(44), 40),
            "DMAR at offset 0x4, Length: says 40 bytes, but there are 48: the table is followed by other bytes",
        ),
        (
            resized(b"DMAR" + bytes(44))[:47] + b"\1",
            "DMAR at offset 0x9, Checksum: is 0xac, but the table's bytes ask for 0xab",
        ),
        (
            resized(b"DMAR" + bytes(38)),
            "DMAR at offset 0x26, Reserved: Dmar ends at 0x2a, before this field of 10 bytes does",
        ),
        (
            resized(b"DMAR" + bytes(44) + bytes(3)),
            "DMAR at offset 0x30, Remapping Structures: 3 bytes are left here, a structure needs at least 4",
        ),
        (
            resized(b"DMAR" + bytes(44) + bytes(16)),
            "DMAR at offset 0x32, Length: Drhd is 0 bytes long, 16 are the least it needs",
        ),
        (
            resized(b"DMAR" + bytes(44) + b"\0\0\x0c\0" + bytes(12)),
            "DMAR at offset 0x32, Length: Drhd is 12 bytes long, 16 are the least it needs",
        ),
        (
            resized(b"DMAR" + bytes(44) + b"\0\0\x18\0" + bytes(12)),
            "DMAR at offset 0x32, Length: Drhd is 24 bytes long, 8 more than its parent has left",
        ),
        (
            resized(b"DMAR" + bytes(44) + b"\0\0\x18\0" + bytes(12) + b"\1\0" + bytes(6)),
            "DMAR at offset 0x41, Length: DeviceScope is 0 bytes long, 6 are the least it needs",
        ),
        (
            resized(b"DMAR" + bytes(44) + b"\0\0\x18\0" + bytes(12) + b"\1\x0a" + bytes(6)),
            "DMAR at offset 0x41, Length: DeviceScope is 10 bytes long, 2 more than its parent has left",
        ),
        (
            resized(b"DMAR" + bytes(44) + b"\0\0\x17\0" + bytes(12) + b"\1\7" + bytes(5)),
            "DMAR at offset 0x46, Path: element 0, of 2 bytes, is cut off at 0x47",
        ),
        (
            resized(b"DMAR" + bytes(44) + b"\4\0\x0a\0\0\0\0\1ab"),
            "DMAR at offset 0x38, ACPI Object Name: has no terminating NUL",
        ),
    ],
    ids=lambda value: value.split(", ")[1].split(":")[0] if isinstance(value, str) else "",
)
def test_messages(data: bytes, message: str) -> None:
    with pytest.raises(FirmwareError) as caught:
        SAMPLES[0][0].parse(data)
    assert str(caught.value) == message


@each
def test_fields_of_another_table(format_: AcpiFormat[Any], data: bytes) -> None:
    for other, fields in SAMPLES:
        if other is not format_:
            with pytest.raises(InputError) as caught:
                format_.validate(fields, "machine.yaml")
            assert str(caught.value).startswith("machine.yaml: ")


@relaxed
@given(
    table=st.sampled_from(SAMPLES),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    pick=st.randoms(use_true_random=False),
)
def test_any_value_anywhere(table: tuple[AcpiFormat[Any], dict[str, Any]], value: object, pick: Any) -> None:
    """One value of a good structured table replaced: a table that can be built, or one line."""
    format_, fields = table

    def changed(node: Any) -> Any:
        if isinstance(node, dict) and node and pick.random() < 0.9:
            key = pick.choice(sorted(node))
            return {**node, key: changed(node[key])}
        if isinstance(node, list) and node and pick.random() < 0.9:
            index = pick.randrange(len(node))
            return [*node[:index], changed(node[index]), *node[index + 1 :]]
        return value

    try:
        good = format_.validate(changed(fields), "machine.yaml")
    except InputError as error:
        one_line(error, "machine.yaml")
        return
    data = format_.build(good)
    assert format_.build(format_.parse(data)) == data
