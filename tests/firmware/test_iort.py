"""The IORT table: how ids are mapped, and what is wrong with some tables."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from iommukit.errors import FirmwareError, InputError
from iommukit.machine.acpi import checksummed
from iommukit_arm_smmu.firmware import (
    IORT,
    IdMapping,
    Iort,
    ItsGroup,
    NamedComponent,
    Pmcg,
    Rmr,
    RootComplex,
    Smmu,
    SmmuModel,
    SmmuV3,
)
from tests.firmware.samples import IORT_FIELDS

ITS = {"kind": "its_group", "label": "its", "identifiers": [0]}
SMMU = {"kind": "smmuv3", "label": "smmu", "base_address": "0x9050000"}


def sample() -> Iort:
    return IORT.validate(IORT_FIELDS)


def iort(*nodes: dict[str, Any]) -> Iort:
    return IORT.validate({"nodes": list(nodes)})


def ranged(first: int, count: int, output: int, target: str = "smmu", **fields: Any) -> dict[str, Any]:
    return {"input_base": first, "id_count": count - 1, "output_base": output, "target": target, **fields}


def root(*mappings: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"kind": "root_complex", "cache_coherency": 1, "mappings": list(mappings), **fields}


def lint(*nodes: dict[str, Any]) -> list[str]:
    return [f"{x.severity} {x.field}: {x.message}" for x in IORT.lint(iort(*nodes))]


def streams(table: Iort, *rids: int, segment: int = 0) -> list[int | None]:
    return [mapped.id if (mapped := table.map_rid(segment, rid)) else None for rid in rids]


def test_requester_ids_become_stream_ids() -> None:
    table = sample()
    mapped = table.map_rid(0, 8)
    assert mapped is not None
    assert (mapped.node, mapped.id) == (table.node("smmu"), 0x108)
    assert streams(table, 0, 0xFF, 0x100) == [0x100, 0x1FF, None]
    old = table.map_rid(1, 3)
    assert old is not None
    assert isinstance(old.node, Smmu)
    assert (old.node.model, old.id) == (SmmuModel.MMU500, 3)
    assert table.map_rid(2, 0) is None


def test_requester_ids_become_device_ids() -> None:
    table = sample()
    got = [mapped and (mapped.node.label, mapped.id) for mapped in (table.device_id(0, rid) for rid in (8, 0x100, 0xFFFF))]
    assert got == [("its", 0x108), ("its", 0x100), ("its", 0xFFFF)]
    assert table.device_id(1, 0xF) is not None
    assert table.device_id(1, 0x10) is None


def test_named_components() -> None:
    table = sample()
    component = table.named_component("\\_SB.DMA0")
    assert component is not None
    assert [(mapped.node.label, mapped.id) for mapped in table.streams(component)] == [("smmu", 7), ("smmu", 8)]
    assert table.named_component("\\_SB.DMA1") is None


def test_own_interrupts() -> None:
    table = sample()
    smmu, pmcg = table.of_kind(SmmuV3)[0], table.of_kind(Pmcg)[0]
    assert [(m.node.label, m.id) for m in (table.own_device_id(smmu), table.own_device_id(pmcg)) if m] == [
        ("its", 0x10000),
        ("its", 3),
    ]
    assert table.own_device_id(table.of_kind(Pmcg)[1]) is None


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"revision": 0}, None),
        ({"revision": 2}, 1),
        ({"revision": 4, "event_gsiv": 1}, 1),
        ({"revision": 4, "event_gsiv": 1, "pri_gsiv": 2, "gerr_gsiv": 3, "sync_gsiv": 4}, None),
        ({"revision": 5}, None),
        ({"revision": 5, "flags": ["device_id_valid"]}, 1),
        ({"revision": 5, "flags": ["device_id_valid"], "device_id_mapping_index": 2}, None),
        ({"revision": 2, "proximity_domain": None, "device_id_mapping_index": None}, None),
    ],
)
def test_which_mapping_is_for_own_interrupts(fields: dict[str, Any], own: int | None) -> None:
    mappings = [ranged(0, 8, 0, "its"), ranged(0, 1, 9, "its", flags=["single"])]
    table = iort(ITS, {**SMMU, "device_id_mapping_index": 1, "mappings": mappings, **fields})
    assert table.of_kind(SmmuV3)[0].own_mapping == own


def test_the_own_mapping_does_not_map_what_passes_through() -> None:
    own = ranged(0, 0x100, 0x500, "its")
    smmu = {**SMMU, "flags": ["device_id_valid"], "mappings": [own, ranged(0, 0x100, 0, "its")]}
    mapped = iort(ITS, smmu, root(ranged(0, 0x100, 0))).device_id(0, 5)
    assert mapped is not None
    assert mapped.id == 5


def test_reserved_memory() -> None:
    table = sample()
    smmu = table.of_kind(SmmuV3)[0]
    (rmr,) = table.reserved_memory(smmu, 0x108)
    assert (rmr.remapping_permitted, rmr.privileged, rmr.attributes) == (True, False, 0)
    assert [(one.base, one.size) for one in rmr.ranges] == [(0x80000000, 0x10000), (0x90000000, 0x20000)]
    assert table.reserved_memory(smmu, 0x107) == table.reserved_memory(smmu, 0x109) == ()
    assert table.reserved_memory(table.of_kind(Smmu)[0], 0x108) == ()


def test_counts_that_forgot_to_subtract_one() -> None:
    """The last id of one mapping is the first of the next: the next one has it."""
    wrong = [{**ranged(0x100 * i, 0x101, 0x1000 * i), "target": "smmu"} for i in range(3)]
    table = iort(SMMU, root(*wrong))
    assert streams(table, 0xFF, 0x100, 0x1FF, 0x200, 0x300, 0x301) == [0xFF, 0x1000, 0x10FF, 0x2000, 0x2100, None]
    assert lint(SMMU, root(*wrong)) == [
        "warning nodes[1].mappings[1].input_base: the range shares its first or last input id with mappings[0]",
        "warning nodes[1].mappings[2].input_base: the range shares its first or last input id with mappings[1]",
    ]


def test_overlapping_mappings() -> None:
    overlapping = root(ranged(0, 0x100, 0), ranged(0x80, 0x100, 0x1000))
    assert streams(iort(SMMU, overlapping), 0x7F, 0x80, 0xFF, 0x100) == [0x7F, 0x80, 0xFF, 0x1080]
    assert lint(SMMU, overlapping) == ["error nodes[1].mappings[1].input_base: the range overlaps mappings[0]"]


def test_single_mappings_are_for_devices_only() -> None:
    single = ranged(5, 1, 0x42, flags=["single"])
    assert streams(iort(SMMU, root(single)), 0, 5, 0xFFFF) == [0x42, 0x42, 0x42]
    smmu = {**SMMU, "mappings": [ranged(0, 1, 9, "its", flags=["single"])]}
    assert iort(ITS, smmu, root(ranged(0, 8, 0))).device_id(0, 0) is None


def test_findings() -> None:
    assert lint(ITS, SMMU, root(ranged(0, 8, 0))) == []
    assert lint(ITS, SMMU, root(ranged(0, 8, 0)), root(ranged(0, 8, 0))) == [
        "warning nodes[3].segment: nodes[2] is a root complex of segment 0 too"
    ]
    assert lint(SMMU, root(ranged(0, 8, 0), label="r"), {**SMMU, "label": "s", "mappings": [ranged(0, 1, 0, "r")]}) == [
        "error nodes[2].mappings[0].target: a smmuv3 cannot map to a root_complex"
    ]
    assert lint(SMMU, root(ranged(0xFFFFFFFF, 2, 0))) == ["error nodes[1].mappings[0].id_count: the ids go beyond 32 bits"]
    assert lint({**SMMU, "revision": 6}) == ["warning nodes[0].revision: revision 6 is newer than 5, the newest known"]
    assert lint({**SMMU, "model": 7}) == ["warning nodes[0].model: 0x7 is no known value"]
    assert lint(root(cache_coherency=0, memory_access=["cpm", "dacs"])) == [
        "warning nodes[0].memory_access: a device with coherent path and attributes is coherent, but coherency is 0"
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 30])
def test_loops(length: int) -> None:
    nodes = [{**SMMU, "label": f"s{i}", "mappings": [ranged(0, 8, 0, f"s{(i + 1) % length}")]} for i in range(length)]
    chain = " -> ".join(f"nodes[{i + 1}]" for i in [*range(length), 0])
    with pytest.raises(InputError) as caught:
        IORT.validate({"nodes": [ITS, *nodes]}, "m.yaml")
    assert str(caught.value) == f"m.yaml: nodes[{length}].mappings[0].target: the mappings run in a loop: {chain}"
    straight = [ITS, *nodes[:-1], {**nodes[-1], "mappings": [ranged(0, 8, 0, "its")]}]
    data = bytearray(IORT.build(IORT.validate({"nodes": straight})))
    places = {place.name: place.offset for place in IORT.layout(bytes(data))}
    first, last = places["nodes[1].type"], places[f"nodes[{length}].mappings[0].target"]
    data[last : last + 4] = first.to_bytes(4, "little")
    with pytest.raises(FirmwareError, match="Output Reference: the mappings run in a loop") as error:
        IORT.parse(checksummed(bytes(data)))
    assert error.value.offset == last


def test_a_diamond_is_no_loop() -> None:
    upper = [{**SMMU, "label": f"u{i}", "mappings": [ranged(0, 8, 0, "its")]} for i in range(2)]
    assert iort(ITS, *upper, root(ranged(0, 8, 0, "u0"), ranged(8, 8, 0, "u1"))).map_rid(0, 9) is not None


def test_references() -> None:
    with pytest.raises(InputError, match=r"nodes\[0\].mappings\[0\].target: there is no node 'nowhere'"):
        iort(root(ranged(0, 1, 0, "nowhere")))
    with pytest.raises(InputError, match=r"nodes\[1\].label: the label 'its' appears twice"):
        iort(ITS, ITS)
    data = bytearray(IORT.build(iort(ITS, root(ranged(0, 1, 0, "its")))))
    target = next(place.offset for place in IORT.layout(bytes(data)) if place.name.endswith("target"))
    for wrong in (0, 1, 0x2F, 0x31, len(data), 0xFFFFFFFF):
        data[target : target + 4] = wrong.to_bytes(4, "little")
        with pytest.raises(FirmwareError, match=f"Output Reference: {wrong:#x} is not the start of a node") as caught:
            IORT.parse(checksummed(bytes(data)))
        assert caught.value.offset == target


@pytest.mark.parametrize("index", range(len(IORT_FIELDS["nodes"])))
def test_each_node_with_those_it_refers_to(index: int) -> None:
    node = IORT_FIELDS["nodes"][index]
    targets = [other for other in IORT_FIELDS["nodes"][:3] if other["label"] != node.get("label")]
    table = iort(*targets, node)
    data = IORT.build(table)
    again = IORT.parse(data)
    assert again.nodes[-1].kind == node["kind"]
    assert IORT.build(again) == data
    assert IORT.build(IORT.validate(IORT.fields(again))) == data


def test_bytes_of_nodes() -> None:
    """Against the specification's tables, written out."""
    table = sample()
    data = IORT.build(table)
    starts = [place.offset for place in IORT.layout(data) if re.fullmatch(r"nodes\[\d+\].type", place.name)]
    its, smmu, old = starts[:3]
    expected = [
        struct.pack("<BHBIII3I", 0, 28, 0, 0, 0, 0, 2, 0, 1),
        struct.pack("<BHBIII QIIQ 7I 5I5I", 4, 108, 5, 0, 2, 68, 0x9050000, 0x11, 0, 0, 0, 106, 0, 0, 0, 0, 1,
                    0, 0xFFFF, 0, its, 0, 0, 0, 0x10000, its, 1),
        struct.pack("<BHBIII QQII 5I 4I4I2I 5I", 3, 120, 3, 0, 1, 100, 0x2B400000, 0x10000, 3, 2, 60, 2, 76, 1, 92,
                    105, 1, 106, 0, 107, 0, 108, 0, 109, 0, 0, 0xFF, 0x20000, its, 0),
        struct.pack("<BHBIII IBHB IIBHBI 5I5I", 2, 80, 4, 0, 2, 40, 1, 0, 0, 3, 1, 0, 64, 0, 0, 0,
                    0, 0xFF, 0x100, smmu, 0, 0x100, 0xFEFF, 0x100, its, 0),
        struct.pack("<BHBIII IBHB II 5I", 2, 52, 0, 0, 1, 32, 0, 0, 0, 0, 0, 1, 0, 0xF, 0, old, 0),
        struct.pack("<BHBIII IIBHBB 10s1x 5I5I5I", 1, 100, 4, 0, 3, 40, 0, 0, 0, 0, 0, 40, b"\\_SB.DMA0",
                    0, 0, 7, smmu, 1, 0, 0, 9, its, 1, 0, 0, 8, smmu, 1),
        struct.pack("<BHBIII QIIQ 5I", 5, 60, 2, 0, 1, 40, 0x9060000, 0, smmu, 0, 0, 0, 3, its, 1),
        struct.pack("<BHBIII QII", 5, 32, 0, 0, 0, 0, 0x9070000, 5, 0),
        struct.pack("<BHBIII III QQI QQI 5I", 6, 88, 3, 0, 1, 68, 1, 2, 28, 0x80000000, 0x10000, 0, 0x90000000, 0x20000, 0,
                    0, 0, 0x108, smmu, 1),
        struct.pack("<BHBI5s", 0x42, 13, 0, 0, bytes(range(0, 0x55, 0x11))),
    ]  # fmt: skip
    ends = [*starts[1:], len(data)]
    for node, start, end, wanted in zip(table.nodes, starts, ends, expected, strict=True):
        assert data[start:end] == wanted, node.kind


def test_qemu(tables_folder: Path) -> None:
    table = iort(
        {"kind": "its_group", "label": "its", "revision": 1, "identifiers": [0]},
        root(ranged(0, 0x10000, 0, "its"), revision=3, identifier=1, memory_access=["cpm", "dacs"], flags=None),
    )
    golden = (tables_folder / "qemu" / "aarch64_virt_IORT.aml").read_bytes()
    assert IORT.build(table)[48:] == golden[48:]
    mapped = IORT.parse(golden).device_id(0, 0x18)
    assert mapped is not None
    assert mapped.id == 0x18
    assert IORT.parse(golden).map_rid(0, 0x18) is None


def test_kinds() -> None:
    table = sample()
    kinds = (ItsGroup, SmmuV3, Smmu, RootComplex, NamedComponent, Pmcg, Rmr)
    assert [len(table.of_kind(kind)) for kind in kinds] == [1, 1, 1, 2, 1, 2, 1]
    assert [smmu.label for smmu in table.smmus] == ["smmu", "old"]
    assert IdMapping(target="x", input_base=4, id_count=2).input_last == 6
