"""The tables of the firmware test suite (fwts), and its verdicts: each is a finding or an error of ours.

Its tables are held against what the checksum asks for first: three of them carry a wrong one, which fwts does not look at.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from iommukit.errors import FirmwareError
from iommukit.machine.acpi import checksummed
from tests.firmware.conftest import FORMATS

Patch = tuple[int, int]
"""Where, and the 32-bit number to put there."""

ITS = 0x30
SMMUV3 = 0x184
REFERENCES: list[Patch] = [(0x80, ITS), (0x94, ITS), (0xD4, ITS), (0x17C, ITS), (0x1D4, ITS), (0x210, ITS), (0x254, SMMUV3)]
"""fwts does not follow references: all those of its IORTs lead nowhere, in the good one too."""

COUNTS: list[Patch] = [(0x40, 3), (0x58, 2), (0xA8, 1), (0x114, 4)]
"""The counts of the bad IORT: ITSs, mappings of the component and of the root complex, PMU interrupts."""


def read(folder: Path, table: str, number: int, *patches: Patch) -> bytes:
    (path,) = folder.glob(f"fwts/{table}/*-000{number}.log.aml")
    data = bytearray(path.read_bytes())
    for offset, value in patches:
        struct.pack_into("<I", data, offset, value)
    return checksummed(bytes(data))


def failures(folder: Path, table: str) -> list[str]:
    """The rules that fwts' log says are broken, in its order."""
    log = (folder / f"fwts/expected/{table.lower()}-0002.log").read_text(encoding="utf-8")
    return re.findall(r"FAILED \[\w+\] (\w+):", log)


def found(table: str, data: bytes) -> list[str]:
    format_ = FORMATS[table.encode()]
    return [finding.field for finding in format_.lint(format_.parse(data))]


@pytest.mark.parametrize(
    ("table", "patches"), [("DMAR", []), ("IVRS", []), ("IORT", REFERENCES), ("VIOT", [])], ids=lambda value: str(value)[:4]
)
def test_the_good_ones_are_good(tables_folder: Path, table: str, patches: list[Patch]) -> None:
    data = read(tables_folder, table, 1, *patches)
    assert found(table, data) == []
    assert FORMATS[table.encode()].build(FORMATS[table.encode()].parse(data)) == data


@pytest.mark.parametrize("table", ["IORT", "IVRS", "VIOT"])
def test_logs_of_the_good_ones_say_so(tables_folder: Path, table: str) -> None:
    log = (tables_folder / f"fwts/expected/{table.lower()}-0001.log").read_text(encoding="utf-8")
    assert "PASSED: Test 1" in log
    assert "FAILED" not in log


@pytest.mark.parametrize("path", ["IORT/*-0001.log.aml", "IORT/*-0002.log.aml", "IVRS/*-0002.log.aml", "VIOT/*-0002.log.aml"])
def test_wrong_checksums(tables_folder: Path, path: str) -> None:
    (file,) = tables_folder.glob(f"fwts/{path}")
    data = file.read_bytes()
    with pytest.raises(FirmwareError, match="Checksum") as caught:
        FORMATS[data[:4]].parse(data, file.name)
    assert (caught.value.offset, caught.value.source) == (9, file.name)


def test_ivrs(tables_folder: Path) -> None:
    expected = [
        ("IVRSReservedBitsNonZero", "info"),
        ("IVRSReservedBitsNonZero", "info"),
        ("IVRSReservedNonZero", "reserved"),
        ("IVRSReservedBitsNonZero", "blocks[0].info"),
        ("IVRSReservedBitsNonZero", "blocks[0].info"),
        ("IVRSBadType", "blocks[0].entries[11].type"),
        ("IVRSReservedBitsNonZero", "blocks[1].attributes"),
        ("IVRSBadSubTableType", "blocks[1].entries[4].type"),
        ("IVRSReservedBitsNonZero", "blocks[2].attributes"),
        ("IVRSReservedBitsNonZero", "blocks[2].attributes"),
        ("IVRSBadSubTableType", "blocks[2].entries[4].type"),
        ("IVRSReservedBitsNonZero", "blocks[3].flags"),
        ("IVRSReservedNonZero", "blocks[5].reserved"),
    ]
    assert [rule for rule, _ in expected] == failures(tables_folder, "IVRS")
    assert found("IVRS", read(tables_folder, "IVRS", 2)) == list(dict.fromkeys(field for _, field in expected))


def test_viot(tables_folder: Path) -> None:
    expected = [
        ("VIOTReservedNonZero", "reserved"),
        ("VIOTReservedNonZero", "nodes[0].reserved"),
        ("VIOTReservedNonZero", "nodes[0].reserved_2"),
        ("VIOTReservedNonZero", "nodes[1].reserved"),
        ("VIOTReservedNonZero", "nodes[1].reserved_2"),
        ("VIOTReservedNonZero", "nodes[2].reserved"),
        ("VIOTReservedNonZero", "nodes[2].reserved_2"),
        ("VIOTReservedNonZero", "nodes[3].reserved"),
        ("VIOTReservedNonZero", "nodes[3].reserved_2"),
        ("VIOTBadNodeType", "nodes[4].type"),
        ("VIOTBadNodeType", "nodes[5].type"),
        ("VIOTOutOfRangeOffset", "the last node is longer than the table"),
    ]
    assert [rule for rule, _ in expected] == failures(tables_folder, "VIOT")
    with pytest.raises(FirmwareError, match=r"VIOT at offset 0xa2, Length: VirtioMmioIommu is 32 bytes long, 16 more"):
        FORMATS[b"VIOT"].parse(read(tables_folder, "VIOT", 2))
    ours = found("VIOT", read(tables_folder, "VIOT", 2, (0xA0, 0x00100004)))
    assert {field for _, field in expected[:-1]} <= set(ours)
    beyond = set(ours) - {field for _, field in expected}
    assert beyond == {"nodes[4].reserved", "nodes[5].reserved", "nodes[6].reserved_2"}, "of nodes that fwts leaves out"


def test_iort(tables_folder: Path) -> None:
    """What fwts says of the bad IORT: a cut array is an error of ours, the rest are findings."""
    pmu = "nodes[3].pmu_interrupts"
    expected = [
        ("IORTItsIdArrayOutsideTable", 0x50),
        ("IORTNodeRevisionInvalid", "nodes[0].revision"),
        ("IORTNodeMappingsCountNonZero", "nodes[0].mapping_count"),
        ("IORTNodeRefToIdArrayNonZero", "nodes[0].mapping_offset"),
        ("IORTNodeRevisionInvalid", "nodes[1].revision"),
        ("IORTCacheCoherentAttrInvalid", "nodes[1].cache_coherency"),
        ("IORTReservedNonZero", "nodes[1].reserved"),
        ("IORTMemAttrInvalid", "nodes[1].memory_access"),
        ("IORTIdMappingOutsideTable", 0x9C),
        ("IORTNodeRevisionInvalid", "nodes[2].revision"),
        ("IORTCacheCoherentAttrInvalid", "nodes[2].cache_coherency"),
        ("IORTReservedBitsNonZero", "nodes[2].allocation_hints"),
        ("IORTReservedNonZero", "nodes[2].reserved"),
        ("IORTIdMappingOutsideTable", 0xDC),
        ("IORTNodeRevisionInvalid", "nodes[3].revision"),
        ("IORTReservedBitsNonZero", "nodes[3].global_interrupts[0].flags"),
        ("IORTReservedBitsNonZero", "nodes[3].global_interrupts[1].flags"),
        *[("IORTReservedBitsNonZero", f"nodes[3].context_interrupts[{i}].flags") for i in range(4)],
        *[("IORTReservedBitsNonZero", f"{pmu}[{i}].flags") for i in range(4)],
        ("IORTReservedBitsNonZero", 0xEC),  # the fifth PMU interrupt lies where the mappings do
        ("IORTSmmuInvalidModel", "nodes[3].model"),
        ("IORTReservedBitsNonZero", "nodes[3].flags"),
        ("IORTReservedBitsNonZero", "nodes[4].flags"),
        ("IORTReservedNonZero", "nodes[4].reserved"),
        ("IORTSmmuv3InvalidModel", "nodes[4].model"),
        ("IORTNodeRevisionInvalid", "nodes[5].revision"),
        ("IORTNodeRevisionInvalid", "nodes[6].revision"),
        ("IORTReservedBitsNonZero", "nodes[6].mappings[0].flags"),
        ("IORTReservedBitsNonZero", "nodes[6].flags"),
        ("IORTReservedNonZero", "nodes[6].ranges[0].reserved"),
    ]
    assert [rule for rule, _ in expected] == failures(tables_folder, "IORT")
    ours = found("IORT", read(tables_folder, "IORT", 2, *REFERENCES, *COUNTS))
    assert sorted(ours) == sorted(field for _, field in expected if isinstance(field, str))
    errors = []
    for index in range(len(COUNTS)):
        with pytest.raises(FirmwareError) as caught:
            FORMATS[b"IORT"].parse(read(tables_folder, "IORT", 2, *REFERENCES, *COUNTS[:index], *COUNTS[index + 1 :]))
        errors.append(caught.value.offset)
    assert errors == [0x50, 0x9C, 0xDC, 0xEC]


@pytest.mark.parametrize("index", range(len(REFERENCES)))
def test_references_that_fwts_does_not_follow(tables_folder: Path, index: int) -> None:
    others = [*REFERENCES[:index], *REFERENCES[index + 1 :]]
    with pytest.raises(FirmwareError, match=r"Output Reference: .* is not the start of a node") as caught:
        FORMATS[b"IORT"].parse(read(tables_folder, "IORT", 1, *others))
    assert caught.value.offset == REFERENCES[index][0]
