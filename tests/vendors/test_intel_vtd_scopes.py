"""The VT-d driver and firmware: tables that cannot be used, units, and which device is whose."""

from __future__ import annotations

import pytest

from tests.vendors.intel_vtd import DISK, GPU, KERNELS, NIC, PORT, READY, boot, dmar, drhd, rmrr, scope, types, unit_of

# ---- firmware that cannot be used ------------------------------------------------------------------------------------

BROKEN = {
    "base 0": (
        dmar(drhd(0xFED90000, scope("02.0")), drhd(0, everything=True), rmrr(0x1000, 0x1FFF)),
        [
            "DMAR: [Firmware Bug]: Your BIOS is broken; DMAR reported at address 0!",
            "DMAR: Host address width 39",
            "DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
            "DMAR: DRHD base: 0x00000000000000 flags: 0x1",
            "DMAR: Parse DMAR table failure.",
        ],
    ),
    "no unit": (
        dmar(),
        [
            "DMAR: Host address width 39",
            "DMAR: [Firmware Bug]: No DRHD structure found in DMAR table",
            "DMAR: No DMAR devices found",
        ],
    ),
    "narrow": (dmar(drhd(0xFED90000, everything=True), width=11), ["DMAR: Invalid DMAR haw", "DMAR: Parse DMAR table failure."]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_tables_leave_remapping_off(case):
    table, lines = BROKEN[case]
    system = boot("6.12", [NIC], dmar=table)
    assert [line for line in system.boot.log if line.startswith("DMAR")] == lines
    assert system.units == []
    assert types(system)["nic"] == "none"


def test_registers_that_read_as_all_ones():
    ones = "0xffffffffffffffff"
    system = boot("7.2", [NIC], dmar=dmar(drhd(0xFED90000, everything=True)), hardware={"units": [{"cap": ones, "ecap": ones}]})
    assert "DMAR: [Firmware Bug]: Your BIOS is broken; DMAR reported at address fed90000 returns all ones!" in system.boot.log
    assert "DMAR: Failed to map dmar0" in system.boot.log
    assert system.units == []


def test_a_unit_without_address_width_is_left_out():
    words = [{"cap": "0xd2008c22260006", "ecap": "0xf00f4a"}]
    system = boot("6.1", [NIC], hardware={"units": words})
    assert "DMAR: dmar0: No supported address widths. Not attempting DMA translation." in system.boot.log
    assert system.units == []
    deep = [{"cap": "0xd2008c22261006", "ecap": "0xf00f4a"}]
    assert "DMAR: Cannot get a valid agaw for iommu (seq_id = 0)" in boot("6.1", [NIC], hardware={"units": deep}).boot.log


def test_a_unit_named_twice_is_one():
    system = boot("6.12", [NIC], dmar=dmar(drhd(0xFED90000, scope("04.0")), drhd(0xFED90000, everything=True)))
    assert [unit.name for unit in system.units] == ["dmar0"]


def test_a_crooked_region_is_reported_and_used():
    system = boot("6.1", [NIC], dmar=dmar(drhd(0xFED90000, everything=True), rmrr(0x1000, 0x1F00, scope("04.0"))))
    line = "DMAR: [Firmware Bug]: Your BIOS is broken; bad RMRR [0x0000000000001000-0x0000000000001f00]"
    assert line in system.boot.log
    assert system.regions(system.devices["nic"])[0].end == 0x1F00


def test_every_structure_is_printed_in_the_table_s_order():
    table = dmar(
        {"kind": "atsr", "flags": ["all_ports"]},
        {"kind": "rhsa", "address": "0xfed90000", "proximity_domain": 1},
        {"kind": "satc", "flags": ["atc_required"], "scopes": [scope("04.0")]},
        {"kind": "andd", "device_number": 1, "name": "\\_SB.UART"},
        drhd(0xFED90000, everything=True),
        width=46,
    )
    log = [line for line in boot("6.1", [NIC], dmar=table).boot.log if line.startswith("DMAR")]
    assert log == [
        "DMAR: Host address width 46",
        "DMAR: ATSR flags: 0x1",
        "DMAR: RHSA base: 0x000000fed90000 proximity domain: 0x1",
        "DMAR: SATC flags: 0x1",
        "DMAR: ANDD device: 1 name: \\_SB.UART",
        "DMAR: DRHD base: 0x000000fed90000 flags: 0x1",
        # No line for dmar0: nobody says what its registers hold.
        "DMAR: No RMRR found",
        "DMAR: dmar0: Using Queued invalidation",
        READY,
    ]


# ---- units and scopes ------------------------------------------------------------------------------------------------

FOUR = dmar(
    drhd(0xA000, scope("02.0")),
    drhd(0xB000, everything=True),
    drhd(0xC000, scope("06.0", kind="bridge")),
    drhd(0xD000, scope("1e.0")),
)


@pytest.mark.parametrize("kernel", KERNELS)
def test_units_register_in_the_driver_s_order(kernel):
    """Scoped units in reverse, then those that take the rest; a unit of which no device is there is left out."""
    system = boot(kernel, [GPU, NIC, PORT, DISK], dmar=FOUR)
    assert [unit.name for unit in system.units] == ["dmar2", "dmar0", "dmar1"]
    assert {name: unit_of(system, name) for name in system.devices} == {
        "gpu": "dmar0",
        "nic": "dmar1",
        "port": "dmar2",
        "disk": "dmar2",
    }
    assert [line.split()[1] for line in system.boot.log if "Using Queued" in line] == ["dmar2:", "dmar0:", "dmar1:"]


def test_group_numbers_go_unit_by_unit_since_6_1():
    devices = [GPU, NIC, PORT, DISK]
    by_unit = {device.name: device.group.id for device in boot("6.1", devices, dmar=FOUR).devices.values()}
    by_bus = {device.name: device.group.id for device in boot("5.19.0", devices, dmar=FOUR).devices.values()}
    assert by_unit == {"port": 0, "disk": 1, "gpu": 2, "nic": 3}
    assert by_bus == {"gpu": 0, "nic": 1, "port": 2, "disk": 3}


def test_a_path_leads_through_bridges():
    table = dmar(drhd(0xA000, scope("06.0", "00.0")), drhd(0xB000, everything=True))
    assert unit_of(boot("7.2", [PORT, DISK], dmar=table), "disk") == "dmar0"
    wrong = dmar(drhd(0xA000, scope("06.0", "01.0")), drhd(0xB000, everything=True))
    assert unit_of(boot("7.2", [PORT, DISK], dmar=wrong), "disk") == "dmar1"


def test_a_second_host_bridge_starts_its_own_paths():
    far = {**NIC, "name": "far", "address": "0000:80:04.0"}
    table = dmar(drhd(0xA000, scope("04.0", bus=0x80)), drhd(0xB000, everything=True))
    system = boot("6.12", [NIC, far], dmar=table)
    assert (unit_of(system, "far"), unit_of(system, "nic")) == ("dmar0", "dmar1")


def test_segments_are_kept_apart():
    far = {**NIC, "name": "far", "address": "0001:00:04.0"}
    table = dmar(drhd(0xA000, scope("04.0"), segment=1), drhd(0xB000, everything=True))
    system = boot("6.12", [NIC, far], dmar=table)
    assert (unit_of(system, "far"), unit_of(system, "nic")) == ("dmar0", "dmar1")
    lonely = boot("6.12", [far], dmar=dmar(drhd(0xB000, everything=True)))
    assert unit_of(lonely, "far") is None
    elsewhere = dmar(drhd(0xB000, everything=True), {**rmrr(0, 0xFFF, scope("04.0")), "segment": 1})
    near = boot("6.12", [NIC], dmar=elsewhere)
    assert [region.start for region in near.regions(near.devices["nic"])] == [0xFEE00000]


def test_nobody_translates_for_what_no_unit_names():
    system = boot("6.1", [GPU, NIC], dmar=dmar(drhd(0xA000, scope("02.0"))))
    assert (unit_of(system, "gpu"), unit_of(system, "nic")) == ("dmar0", None)


def test_a_bus_number_in_place_of_a_path_works_with_a_line():
    table = dmar(drhd(0xB000, everything=True), rmrr(0x1000, 0x1FFF, scope("00.0", bus=1)))
    system = boot("6.1", [PORT, DISK], dmar=table)
    line = "DMAR: [Firmware Bug]: RMRR entry for device 01:00.0 is broken - applying workaround"
    assert system.boot.log.count(line) == 1
    assert [region.start for region in system.regions(system.devices["disk"])] == [0x1000, 0xFEE00000]
    off = boot("6.1", [PORT, DISK], "intel_iommu=off", dmar=table)
    assert line in off.boot.log, "devices are entered even where remapping then stays off"


@pytest.mark.parametrize(
    ("device", "kind", "fits"),
    [
        (NIC, "endpoint", True),
        (NIC, "bridge", False),
        (PORT, "bridge", True),
        (PORT, "endpoint", False),
        ({**NIC, "class": "068000"}, "bridge", True),
    ],
)
def test_a_scope_of_the_wrong_type_keeps_remapping_off(device, kind, fits):
    table = dmar(drhd(0xA000, scope(device["address"][-4:], kind=kind)), drhd(0xB000, everything=True))
    system = boot("6.12", [device], dmar=table)
    assert bool(system.units) is fits
    assert (f"DMAR: Device scope type does not match for {device['address']}" in system.boot.log) is not fits


def test_scopes_of_the_unit_that_includes_all_are_not_looked_at():
    system = boot("6.12", [PORT], dmar=dmar(drhd(0xB000, scope("06.0", kind="endpoint"), everything=True)))
    assert unit_of(system, "port") == "dmar0"


def test_interrupt_controllers_are_no_devices():
    table = dmar(drhd(0xA000, scope("1e.7", kind="ioapic", number=2)), drhd(0xB000, everything=True))
    assert [unit.name for unit in boot("6.1", [NIC], dmar=table).units] == ["dmar1"]


def test_devices_outside_pci_are_known_by_name():
    uart = {"name": "uart", "address": "INTC1056:00", "kind": "platform", "attributes": {"acpi_path": "\\_SB.PC00.UA00"}}
    other = {"name": "other", "address": "INTC9999:00", "kind": "platform"}
    andd = {"kind": "andd", "device_number": 2, "name": "\\_SB.PC00.UA00"}
    table = dmar(drhd(0xB000, scope("1e.0", kind="namespace", number=2), everything=True), andd)
    system = boot("6.12", [NIC, uart, other], dmar=table)
    assert 'DMAR: ACPI device "INTC1056:00" under DMAR at b000 as 00:1e.0' in system.boot.log
    assert (unit_of(system, "uart"), unit_of(system, "other"), unit_of(system, "nic")) == ("dmar0", None, "dmar0")
    stray = dmar(drhd(0xB000, everything=True), andd)
    assert "DMAR: No IOMMU scope found for ANDD enumeration ID 2 (INTC1056:00)" in boot("6.12", [uart], dmar=stray).boot.log


def test_a_device_follows_the_one_that_masters_the_bus():
    controller = {"name": "vmd", "address": "0000:00:0e.0", "id": "8086:9a0b", "class": "010400", "kind": "integrated_endpoint"}
    below = {**NIC, "name": "below", "address": "0000:00:05.0", "real_dma_device": "vmd"}
    table = dmar(drhd(0xA000, scope("0e.0")), drhd(0xB000, everything=True))
    assert unit_of(boot("7.2", [controller, below], dmar=table), "below") == "dmar0"


def test_a_device_that_is_plugged_in_later_finds_its_unit():
    table = dmar(drhd(0xA000, scope("06.0", kind="bridge")), drhd(0xB000, everything=True), rmrr(0, 0xFFF, scope("00.0", bus=1)))
    system = boot("6.1", [PORT, {**DISK, "present": False}], dmar=table)
    system.take_lines()
    system.kernel.add(system, system.devices["disk"])
    lines = system.take_lines()
    assert unit_of(system, "disk") == "dmar0"
    assert lines[0] == "DMAR: [Firmware Bug]: RMRR entry for device 01:00.0 is broken - applying workaround"
    system.kernel.remove(system, system.devices["disk"])
    assert system.devices["disk"].attached is None
