"""The IVRS table: what a driver reads from it, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import pytest

from iommukit_amd_vi.firmware import IVRS, AcpiHid, Covered, DteFlags, Ivhd, Ivrs, MemoryFlags, Variety
from tests.firmware.samples import IVRS_FIELDS

NONE = DteFlags(0)


def block(*entries: dict[str, Any], kind: str = "ivhd10", device: int = 2, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "device": device, "address": "0xfd200000", "entries": list(entries), **fields}


def ivrs(*blocks: dict[str, Any]) -> Ivrs:
    return IVRS.validate({"blocks": list(blocks)})


def unit(*entries: dict[str, Any], **fields: Any) -> Ivhd:
    return ivrs(block(*entries, **fields)).ivhds[0]


def lint(*blocks: dict[str, Any]) -> list[str]:
    return [f"{x.severity} {x.field}: {x.message}" for x in IVRS.lint(ivrs(*blocks))]


def test_what_a_driver_reads() -> None:
    table = IVRS.validate(IVRS_FIELDS)
    assert (table.efr_supported, table.dma_remapped_before_boot, table.ats_range_reserved) == (True, True, False)
    assert (table.guest_address_code, table.physical_address_bits, table.virtual_address_bits) == (2, 48, 64)
    assert [ivhd.number for ivhd in table.ivhds] == [0x10, 0x11, 0x40]
    assert (table.unit_type, table.units) == (0x40, (table.ivhds[2],))
    every, single, several = table.ivmds
    assert [every.devices, single.devices, several.devices] == [(0, 0xFFFF), (0x60, 0x60), (0x100, 0x1FF)]
    assert (single.flags, single.start, single.end) == (MemoryFlags.EXCLUSION, 0x2000, 0x2FFF)


def test_special_and_acpi_devices() -> None:
    (used,) = IVRS.validate(IVRS_FIELDS).units
    assert [(x.variety, x.handle, x.source) for x in used.special_devices] == [
        (Variety.IOAPIC, 33, 0xA0),
        (Variety.HPET, 0, 0xA0),
    ]
    assert [(x.hid, x.cid, x.device, x.unique_id) for x in used.acpi_devices] == [
        ("AMDI0020", "", 0xA5, "\\_SB.FUR0"),
        ("MSFT0201", "", 0x60, 1),
        ("PNP0D40", "", 0x61, None),
    ]


def test_ranges() -> None:
    init = DteFlags.INIT_PASS | DteFlags.SYSMGT1
    assert list(IVRS.validate(IVRS_FIELDS).ivhds[0].ranges()) == [
        Covered(0, 0, 0xFFFF, DteFlags.LINT0_PASS),
        Covered(0, 8, 8, NONE),
        Covered(0, 0x10, 0x1F, init),
        Covered(0, 0x100, 0x100, NONE, alias=0xA0),
        Covered(0, 0xA0, 0xA0, NONE),
        Covered(0, 0xFF00, 0xFFFF, NONE, alias=0xA5),
        Covered(0, 0xA5, 0xA5, NONE),
        Covered(0, 0x200, 0x200, NONE, 0x80000000),
        Covered(0, 0x300, 0x30F, NONE, 0x80000000),
        Covered(0, 0xA0, 0xA0, DteFlags.LINT1_PASS),
        Covered(0, 0xA0, 0xA0, NONE),
    ]


def test_flags_add_up_and_aliases_stay() -> None:
    one = unit(
        {"kind": "alias_select", "device": 5, "source": 3, "data_setting": ["nmi_pass"]},
        {"kind": "range_start", "device": 4, "data_setting": ["init_pass"]},
        {"kind": "range_end", "device": 6},
        segment=1,
    )
    both = DteFlags.NMI_PASS | DteFlags.INIT_PASS
    assert one.covers(5) == Covered(1, 5, 5, both, alias=3)
    assert one.covers(7) is None
    assert list(one.devices()) == [
        (1, 3, DteFlags.NMI_PASS, None),
        (1, 4, DteFlags.INIT_PASS, None),
        (1, 5, both, 3),
        (1, 6, DteFlags.INIT_PASS, None),
    ]


def test_devices_agree_with_covers() -> None:
    for one in IVRS.validate(IVRS_FIELDS).ivhds:
        devices = list(one.devices())
        assert [device for _, device, _, _ in devices] == list(range(0x10000))
        for segment, device, flags, alias in devices[::97]:
            covered = one.covers(device)
            assert covered is not None
            assert (covered.segment, covered.flags, covered.alias) == (segment, flags, alias)


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ({"kind": "pad"}, "00000000"),
        ({"kind": "all"}, "01000000"),
        ({"kind": "select", "device": "0x102", "data_setting": ["lint1_pass"]}, "02020180"),
        ({"kind": "range_start", "device": 3}, "03030000"),
        ({"kind": "range_end", "device": "0xfffe"}, "04feff00"),
        ({"kind": "alias_select", "device": "0xff00", "source": "0xa5"}, "4200ff0000a50000"),
        ({"kind": "alias_range_start", "device": "0xff00", "source": "0xa5"}, "4300ff0000a50000"),
        ({"kind": "extended_select", "device": "0xff00", "extended": "0x11223344"}, "4600ff0044332211"),
        ({"kind": "extended_range_start", "device": "0xff00", "extended": "0x11223344"}, "4700ff0044332211"),
        ({"kind": "special", "handle": 33, "source": "0xa0", "variety": "ioapic", "data_setting": "0xd7"}, "480000d721a00001"),
        ({"kind": "acpi_hid", "device": "0xa5", "hid": "AMDI0020", "uid_format": "none"}, "f0a50000414d444930303230" + "00" * 10),
        (
            {"kind": "acpi_hid", "device": "0x60", "hid": "MSFT0201", "uid_format": "integer", "uid": "hex:0100"},
            "f06000004d53465430323031" + "00" * 8 + "01020100",
        ),
        ({"kind": "raw", "type": "0x05", "payload": "112233"}, "05112233"),
        ({"kind": "raw", "type": "0xc1", "payload": "00" * 31}, "c1" + "00" * 31),
    ],
)
def test_bytes_of_entries(entry: dict[str, Any], data: str) -> None:
    table = ivrs(block(entry, kind="ivhd40"))
    built = IVRS.build(table)
    assert built[48 + 40 :].hex() == data
    assert built[50:52] == (40 + len(data) // 2).to_bytes(2, "little")
    assert IVRS.parse(built) == table


@pytest.mark.parametrize("index", range(len(IVRS_FIELDS["blocks"])))
def test_each_block_alone(index: int) -> None:
    table = ivrs(IVRS_FIELDS["blocks"][index])
    data = IVRS.build(table)
    assert IVRS.parse(data) == table
    assert int.from_bytes(data[50:52], "little") == len(data) - 48


def test_the_type_that_linux_uses() -> None:
    ten, eleven, forty = (block(kind=kind) for kind in ("ivhd10", "ivhd11", "ivhd40"))
    memory = {"kind": "ivmd_single", "device": 9, "flags": 8, "start": 0, "length_bytes": 4096}
    raw = {"kind": "raw", "type": "0x51", "payload": "00" * 28}
    second = block(kind="ivhd10", device=3, address="0xfd300000"), block(kind="ivhd11", device=3, address="0xfd300000")
    assert ivrs().unit_type is None
    assert ivrs(ten).unit_type == 0x10
    assert ivrs(ten, eleven, memory, forty, raw).unit_type == 0x40
    assert ivrs(ten, raw, eleven).unit_type == 0x10, "nothing is read after a type above 40h"
    assert ivrs(ten, eleven, {**memory, "device": 2}).units == (), "a memory block of the unit's own id misleads it"
    assert [x.address for x in ivrs(ten, eleven, *second).units] == [0xFD200000, 0xFD300000]


def test_which_unit_translates() -> None:
    everything = {"kind": "all"}
    table = ivrs(
        block(everything),
        block({"kind": "select", "device": 8}, device=3, address="0x1000"),
        block(everything, device=4, segment=1),
    )
    assert [unit and unit.device for unit in (table.definition(0, 9), table.definition(0, 8))] == [2, 3]
    assert [unit and unit.device for unit in (table.definition(1, 8), table.definition(2, 8))] == [4, None]


def test_findings() -> None:
    start, end = {"kind": "range_start", "device": 5}, {"kind": "range_end", "device": 4}
    assert lint(block()) == []
    assert lint() == ["error blocks: there is no unit that Linux would use"]
    assert lint(block(address=0)) == ["error blocks[0].address: the unit's registers are at address 0"]
    assert lint(block(start, end)) == ["warning blocks[0].entries[1].device: 0x4 lies before the start 0x5"]
    assert lint(block(end)) == ["warning blocks[0].entries[0].type: the range that ends here was never started"]
    assert lint(block({"kind": "pad"})) == ["warning blocks[0].entries[0].type: type 0 is reserved; it is taken as padding"]
    assert lint(block(info="0xe0")) == ["warning blocks[0].info: reserved bits 0xe0 are set"]
    assert lint(block(), block()) == ["error blocks[1].address: 0xfd200000 is blocks[0]'s too, of the same type"]
    assert lint(block({"kind": "acpi_hid", "device": 1, "hid": "A"})) == [
        "warning blocks[0].entries[0].type: ACPI devices belong in blocks of type 40h"
    ]
    assert lint(block({"kind": "special", "handle": 1, "source": 1, "variety": 3})) == [
        "warning blocks[0].entries[0].variety: 0x3 is no known value"
    ]


@pytest.mark.parametrize(("uid", "text"), [(b"\\_SB.X", "\\_SB.X"), (b"", ""), (b"\1\0", "hex:0100"), (b"hex:", "hex:6865783a")])
def test_unique_ids_are_text_where_they_can_be(uid: bytes, text: str) -> None:
    entry = AcpiHid(device=1, hid="A", uid=uid)
    assert entry.model_dump(mode="json")["uid"] == text
    assert AcpiHid.model_validate({"device": 1, "hid": "A", "uid": text}).uid == uid
