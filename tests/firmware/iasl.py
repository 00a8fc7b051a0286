"""Reading iasl's decodings, and comparing them with a parsed table field by field."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from iommukit.machine.acpi import DeviceFunction, FieldAt

LINE = re.compile(r"^\[([0-9A-F]+)h (\d+) +([0-9A-F]+)(h?)\] +(.+?) : (.*)$")
BIT = re.compile(r"^ {20,}(\S.*?) : ([0-9A-F]+)$")

BITS = {
    "INITPass": 0x01,
    "EIntPass": 0x02,
    "NMIPass": 0x04,
    "Reserved": 0x08,
    "System MGMT": 0x30,
    "LINT0 Pass": 0x40,
    "LINT1 Pass": 0x80,
    "HtTunEn": 0x01,
    "PassPW": 0x02,
    "ResPassPW": 0x04,
    "Isoc Control": 0x08,
    "Iotlb Support": 0x10,
    "Coherent": 0x20,
    "Prefetch Support": 0x40,
    "PPR Support": 0x80,
    "Unity": 0x01,
    "Readable": 0x02,
    "Writeable": 0x04,
    "Exclusion Range": 0x08,
}
"""iasl's names for the bits of a field "(decoded below)"."""

NAMES = {
    "Signature": "signature",
    "Table Length": "length",
    "Revision": "revision",
    "Checksum": "checksum",
    "Oem ID": "oem_id",
    "Oem Table ID": "oem_table_id",
    "Oem Revision": "oem_revision",
    "Asl Compiler ID": "creator_id",
    "Asl Compiler Revision": "creator_revision",
    "Host Address Width": "host_address_width",
    "Flags": "flags",
    "Subtable Type": "type",
    "Entry Type": "type",
    "Length": "length",
    "Entry Length": "length",
    "PCI Segment Number": "segment",
    "PCI Segment Group": "segment",
    "Register Base Address": "address",
    "Device Scope Type": "kind",
    "Enumeration ID": "enumeration_id",
    "PCI Bus Number": "start_bus",
    "PCI Path": "path",
    "End Address (limit)": "end",
    "Proximity Domain": "proximity_domain",
    "Device Number": "device_number",
    "Device Name": "name",
    "Virtualization Info": "info",
    "Capability Offset": "capability_offset",
    "Feature Reporting": "feature_reporting",
    "Attributes": "attributes",
    "EFR Image": "efr_image",
    "DeviceId": "device|payload",
    "Device ID": "device|reserved",
    "Data Setting": "data_setting|reserved",
    "Source Used Device ID": "source",
    "Handle": "handle",
    "Variety": "variety",
    "ACPI HID": "hid",
    "ACPI CID": "cid",
    "UID Format": "uid_format",
    "UID Length": "uid_length",
    "UID": "uid",
    "Base Address": "base|address",
    "Start Address": "start",
    "Memory Length": "length_bytes",
    "Auxiliary Data": "last_device",
    "Reserved": "reserved|reserved_2|size|flags|efr_image_2|feature_reporting",
}
"""iasl's names and the names of our fields, by the last part of the path; one name of iasl's may have several of ours.

Older releases of iasl call fields reserved that have a meaning by now.
"""

NO_FIELD = re.compile(
    r"^$|^ \*|^/\*|^(DMAR|IVRS)$|^-+$|^\*\*\*\* Unknown (DMAR|IVRS) subtable type 0x(6|11|40|51)$"
    r"|^/\*\*\*\* ACPI subtable terminates early - may be older version"
)
"""What is no field: headings, and where an older iasl stopped reading."""


@dataclass
class Report:
    """What was compared, and what differed or had no counterpart."""

    compared: Counter[str] = field(default_factory=Counter)
    bits: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


def compare(text: str, layout: list[FieldAt], report: Report) -> None:
    """Hold every field and every bit that iasl shows against the layout of the parsed table."""
    starts = {place.offset: place for place in layout}
    last = 0
    for line in text.splitlines():
        if line.startswith("Raw Table Data"):
            break
        if match := LINE.match(line):
            offset, length = int(match[1], 16), int(match[3], 16 if match[4] else 10)
            name = match[5].removesuffix(" (decoded below)")
            ours = list(_tiles(starts, layout, offset, length))
            if sum(len(raw) for _, raw in ours) != length:
                report.wrong.append(f"not covered: {line}")
                continue
            for place, _ in ours:
                if not re.search(rf"(^|\.)({NAMES[name]})(\[\d+\])?$", place.name):
                    report.wrong.append(f"{place.name} is not iasl's: {line}")
            raw = b"".join(piece for _, piece in ours)
            last = int.from_bytes(raw, "little")
            if _shown(match[6], length) != (_printable(raw) if match[6].startswith('"') else raw):
                report.wrong.append(f"{[place.value for place, _ in ours]} is not iasl's: {line}")
            report.compared[name] += 1
        elif match := BIT.match(line):
            mask = BITS[match[1]]
            if (last & mask) // (mask & -mask) != int(match[2], 16):
                report.wrong.append(f"{last:#x} is not iasl's: {line}")
            report.bits[match[1]] += 1
        elif not NO_FIELD.match(line):
            report.left[line] += 1


def _tiles(starts: dict[int, FieldAt], layout: list[FieldAt], offset: int, length: int) -> Iterator[tuple[FieldAt, bytes]]:
    """The fields within ``offset``..``offset + length``, each with the bytes that its parsed value stands for."""
    at = offset
    while at < offset + length:
        place = starts.get(at)
        if place is None:  # a part of raw bytes
            around = [other for other in layout if other.offset < at < other.offset + other.length]
            if not around or not isinstance(around[0].value, bytes):
                return
            yield around[0], around[0].value[at - around[0].offset :][: offset + length - at]
            return
        if place.offset + place.length > offset + length:
            yield place, _bytes(place)[: offset + length - at]
            return
        yield place, _bytes(place)
        at += place.length


def _bytes(place: FieldAt) -> bytes:
    """The bytes that a parsed value stands for (not those of the table)."""
    value = place.value
    if isinstance(value, DeviceFunction):
        return bytes([value.device, value.function])
    if isinstance(value, int):
        return value.to_bytes(place.length, "little")
    if isinstance(value, str):
        return value.encode("latin-1").ljust(place.length, b"\0")
    assert isinstance(value, bytes)
    return value


def _printable(raw: bytes) -> bytes:
    """Text as iasl shows it: up to the first NUL, and a blank for what cannot be printed."""
    text = raw.split(b"\0")[0]
    return bytes(byte if 32 <= byte < 127 else 32 for byte in text).ljust(len(raw), b"\0")


def _shown(shown: str, length: int) -> bytes:
    """The bytes that iasl's text stands for."""
    if text := re.match(r'"(.*)"', shown):
        return text[1].encode("latin-1").ljust(length, b"\0")
    plain = re.sub(r"\s*(\[.*\]|/\*.*)$", "", shown).strip()
    if re.fullmatch(r"[0-9A-F]{2}(?:[ ,][0-9A-F]{2})+", plain):
        return bytes.fromhex(plain.replace(",", " "))
    return int(plain, 16).to_bytes(length, "little")
