"""The VIOT table: which virtio-iommu translates for which device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iommukit.errors import FirmwareError, InputError
from iommukit.machine.acpi import checksummed
from iommukit.machine.viot import VIOT, Viot
from tests.firmware.samples import VIOT_FIELDS

PCI = {"kind": "virtio_pci_iommu", "label": "pci", "bdf": "0x8"}


def viot(*nodes: dict[str, Any]) -> Viot:
    return VIOT.validate({"nodes": list(nodes)})


def test_lookups() -> None:
    table = VIOT.validate(VIOT_FIELDS)
    got = [table.iommu(*place) for place in ((0, 0x10), (0, 0xFF), (1, 0x100), (2, 0x1FF), (0, 0x100), (3, 0x100))]
    assert [found and (found[0].label, found[1]) for found in got] == [
        ("pci", 0x1000),
        ("pci", 0x10EF),
        ("mmio", 0),
        ("mmio", 0x100FF),
        None,
        None,
    ]
    found = table.iommu_at(0x1C000000)
    assert found is not None
    assert (found[0].label, found[1]) == ("mmio", 0x10000)
    assert table.iommu_at(0x1C000001) is None


def test_qemu(tables_folder: Path) -> None:
    table = VIOT.parse((tables_folder / "qemu" / "x86_q35_VIOT.viot.aml").read_bytes())
    found = table.iommu(0, 0x3001)
    assert found is not None
    assert (found[0].kind, found[1]) == ("virtio_pci_iommu", 0x3001)
    assert VIOT.lint(table) == []


@pytest.mark.parametrize("index", range(len(VIOT_FIELDS["nodes"])))
def test_each_node(index: int) -> None:
    node = VIOT_FIELDS["nodes"][index]
    table = viot(*[other for other in VIOT_FIELDS["nodes"][:2] if other != node], node)
    data = VIOT.build(table)
    again = VIOT.parse(data)
    assert again.nodes[-1].kind == node["kind"]
    assert VIOT.build(again) == data
    assert data[36:40] == len(table.nodes).to_bytes(2, "little") + (48).to_bytes(2, "little")


def test_output_is_an_iommu() -> None:
    below = {"kind": "pci_range", "label": "range", "bdf_start": 0, "bdf_end": 1, "output_node": "pci"}
    with pytest.raises(InputError, match=r"nodes\[2\].output_node: 'range' is no IOMMU but a pci_range"):
        viot(PCI, below, {**below, "label": "other", "output_node": "range"})
    with pytest.raises(InputError, match=r"nodes\[0\].output_node: there is no node 'pci'"):
        viot(below)
    data = bytearray(VIOT.build(viot(PCI, below)))
    data[80:82] = (64).to_bytes(2, "little")
    with pytest.raises(FirmwareError, match="Output Node: 'pci_range-0' is no IOMMU") as caught:
        VIOT.parse(checksummed(bytes(data)))
    assert caught.value.offset == 80


def test_a_range_that_ends_before_it_starts() -> None:
    table = viot(PCI, {"kind": "pci_range", "bdf_start": 2, "bdf_end": 1, "output_node": "pci"})
    assert [(x.severity, x.field, x.offset) for x in VIOT.lint(table)] == [("error", "nodes[1].bdf_end", 78)]
