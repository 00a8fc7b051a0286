"""Every real table: parsed, built again byte for byte, and through its structured form."""

from __future__ import annotations

import json
import time
from collections import Counter

from iommukit_amd_vi.firmware import Ivrs, RawBlock
from iommukit_intel_vtd.firmware import Dmar
from tests.firmware.conftest import RealTable


def test_all_are_there(good_tables: list[RealTable]) -> None:
    counts = Counter(path.parent.name if path.suffix == ".aml" else "machines" for path, _, _ in good_tables)
    assert counts == {"linuxhw": 220, "qemu": 5, "machines": 21}


def test_built_byte_for_byte(good_tables: list[RealTable]) -> None:
    for path, format_, data in good_tables:
        table = format_.parse(data, path.name)
        assert format_.build(table) == data, path
        assert format_.parse(format_.build(table)) == table, path


def test_through_json(good_tables: list[RealTable]) -> None:
    for path, format_, data in good_tables:
        table = format_.parse(data, path.name)
        assert format_.validate(json.loads(json.dumps(table.model_dump(mode="json"))), path.name) == table
        assert format_.validate(json.loads(json.dumps(format_.fields(table))), path.name) == table


def test_layout_covers_every_byte_once(good_tables: list[RealTable]) -> None:
    for path, format_, data in good_tables:
        at = 0
        for place in sorted(format_.layout(data), key=lambda place: place.offset):
            assert place.offset == at, (path, place)
            at += place.length
        assert at == len(data), path


def test_the_plain_layout_suits_nearly_all(good_tables: list[RealTable]) -> None:
    """Only the names of namespace devices are followed by unused bytes."""
    for path, format_, data in good_tables:
        table = format_.parse(data, path.name)
        for structure in getattr(table, "structures", ()):
            assert structure.placement is None or structure.kind == "andd", path


def test_errors_that_linux_would_find(good_tables: list[RealTable]) -> None:
    errors = [
        (path.parent.name if path.suffix != ".aml" else path.stem, finding.field)
        for path, format_, data in good_tables
        for finding in format_.lint(format_.parse(data, path.name))
        if finding.severity == "error"
    ]
    assert [field for _, field in errors] == ["structures[0].address"], errors


def test_a_unit_at_address_zero_is_visible(good_tables: list[RealTable]) -> None:
    broken = [
        table
        for _, format_, data in good_tables
        if isinstance(table := format_.parse(data), Dmar) and any(drhd.broken for drhd in table.drhds)
    ]
    assert len(broken) == 1
    assert not broken[0].usable


def test_unknown_blocks_survive(good_tables: list[RealTable]) -> None:
    raw = [
        block
        for _, format_, data in good_tables
        if isinstance(table := format_.parse(data), Ivrs)
        for block in table.blocks
        if isinstance(block, RawBlock)
    ]
    assert raw
    assert {block.type for block in raw} == {0x51}


def test_the_unit_type_of_each_machine(good_tables: list[RealTable]) -> None:
    for path, format_, data in good_tables:
        table = format_.parse(data)
        if isinstance(table, Ivrs):
            first = table.ivhds[0].device
            assert table.unit_type == max(unit.number for unit in table.ivhds if unit.device == first), path
            assert table.units, path
            for unit in table.units:
                assert unit.covers(0xA0) is not None or len(table.units) > 1, path


def test_parsing_is_quick(good_tables: list[RealTable]) -> None:
    for _, format_, data in good_tables:
        format_.parse(data)
    start = time.process_time()
    for _, format_, data in good_tables:
        format_.parse(data)
    assert (time.process_time() - start) / len(good_tables) < 0.005, "a table takes well below a millisecond"
