"""The DMAR table: what a driver reads from it, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import pytest

from iommukit.machine.acpi import DeviceFunction
from iommukit_intel_vtd.firmware import DMAR, Andd, Atsr, Dmar, Drhd, Rhsa, Rmrr, Satc, ScopeKind, Sidp
from tests.firmware.samples import DMAR_FIELDS


def dmar(*structures: dict[str, Any], **fields: Any) -> Dmar:
    return DMAR.validate({"host_address_width": 38, **fields, "structures": list(structures)})


def unit(address: int = 0xFED90000, **fields: Any) -> dict[str, Any]:
    return {"kind": "drhd", "address": address, "flags": ["include_pci_all"], **fields}


def region(base: int, end: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "rmrr", "base": base, "end": end, "scopes": [{"kind": "endpoint", "path": ["02.0"]}], **fields}


def lint(*structures: dict[str, Any], **fields: Any) -> list[str]:
    return [f"{x.severity} {x.field}: {x.message}" for x in DMAR.lint(dmar(*structures, **fields))]


def test_what_a_driver_reads() -> None:
    table = DMAR.validate(DMAR_FIELDS)
    assert (table.address_bits, table.usable) == (39, True)
    assert (table.intr_remap, table.x2apic_opt_out, table.dma_ctrl_platform_opt_in) == (True, False, True)
    first, second = table.drhds
    assert (first.include_pci_all, second.include_pci_all) == (False, True)
    assert first.scopes[1].path == (DeviceFunction(0x1C, 4), DeviceFunction(0, 0))
    assert (first.scopes[1].kind, first.scopes[1].start_bus) == (ScopeKind.BRIDGE, 0x40)
    assert first.register_bytes == 4096
    assert [scope.kind.known for scope in second.scopes] == [True, True, False]
    assert [table.rmrrs[0].base, table.rmrrs[0].end] == [0x3D800000, 0x3FFFFFFF]
    assert table.of_kind(Atsr)[0].all_ports
    assert table.of_kind(Rhsa)[0].proximity_domain == 1
    assert len(table.of_kind(Satc)) == len(table.of_kind(Sidp)) == len(table.of_kind(Andd)) == 1
    assert table.namespace_device(1) == "\\_SB.PCI0.I2C0"
    assert table.namespace_device(2) is None


@pytest.mark.parametrize("index", range(len(DMAR_FIELDS["structures"])))
def test_each_structure_alone(index: int) -> None:
    structure = DMAR_FIELDS["structures"][index]
    table = dmar(structure)
    data = DMAR.build(table)
    assert DMAR.parse(data) == table
    assert int.from_bytes(data[50:52], "little") == len(data) - 48
    assert DMAR.fields(table)["structures"][0]["kind"] == structure["kind"]


def test_bytes_of_a_unit() -> None:
    table = dmar({"kind": "drhd", "segment": 1, "address": "0xfed90000", "scopes": [{"kind": "hpet", "path": ["1e.6"]}]})
    assert DMAR.build(table)[48:].hex() == "00001800" + "00000100" + "0000d9fe00000000" + "0408000000001e06"


def test_a_unit_at_address_zero() -> None:
    table = dmar(unit(), unit(0, flags=[], scopes=[{"kind": "endpoint", "path": ["02.0"]}]))
    assert not table.usable
    assert [drhd.broken for drhd in table.drhds] == [False, True]
    assert [(x.severity, x.offset) for x in DMAR.lint(table) if "address 0" in x.message] == [("error", 72)]


def test_units() -> None:
    assert lint() == ["error structures: there is no remapping unit; Linux does not use the table"]
    assert lint(unit(), host_address_width=0) == ["error host_address_width: is 0; Linux does not use the table"]
    assert lint(unit()) == []
    assert lint(unit(), unit(segment=1)) == ["error structures[1].address: 0xfed90000 is structures[0]'s too"]
    assert lint(unit(), unit(0xFED91000)) == [
        "warning structures[1].flags: the unit comes after structures[0], which includes all of segment 0"
    ]
    assert lint(unit(0xFED91008)) == ["warning structures[0].address: 0xfed91008 is no multiple of 4 KiB"]
    assert lint(unit(flags=[])) == ["warning structures[0].scopes: the unit translates for no device"]
    assert lint(unit(size=0x11)) == ["warning structures[0].size: reserved bits 0x10 are set"]


def test_regions() -> None:
    assert lint(unit(), region(0x1000, 0x1FFF), region(0x2000, 0x2FFF)) == []
    assert lint(unit(), region(0x1000, 0x2FFF), region(0x2000, 0x3FFF)) == [
        "warning structures[2].base: 0x2000..0x3fff overlaps structures[1], 0x1000..0x2fff"
    ]
    assert lint(unit(), region(0x1000, 0x2FFF), region(0x2000, 0x3FFF, segment=1)) == []
    assert lint(unit(), region(0x2000, 0xFFF)) == ["error structures[1].end: 0xfff lies before the base 0x2000"]
    assert lint(unit(), region(0x1000, 0x1FFE)) == ["warning structures[1].base: 0x1000..0x1ffe are no whole pages of 4 KiB"]
    assert lint(unit(), region(0x1000, 0x1FFF, scopes=[])) == ["warning structures[1].scopes: the region belongs to no device"]


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"kind": "endpoint", "path": ["02.0"], "flags": 1}, "flags: flags are reserved outside a SIDP"),
        ({"kind": "endpoint", "path": ["02.0"], "reserved": 1}, "reserved: reserved bits 0x1 are set"),
        ({"kind": "endpoint", "path": []}, "path: is empty"),
        ({"kind": "endpoint", "path": ["20.0"]}, "path[0]: 20.0 is no PCI device and function"),
        ({"kind": "namespace", "enumeration_id": 4, "path": ["02.0"]}, "enumeration_id: no ANDD has device number 4"),
        ({"kind": 6, "path": ["02.0"]}, "kind: 0x6 is no known value"),
    ],
)
def test_scopes(scope: dict[str, Any], message: str) -> None:
    assert lint(unit(scopes=[scope])) == [f"warning structures[0].scopes[0].{message}"]


def test_python_is_as_short_as_yaml() -> None:
    table = Dmar(host_address_width=38, structures=(Drhd(address=0xFED90000), Rmrr(base=0x1000, end=0x1FFF)))
    assert DMAR.parse(DMAR.build(table)) == table
