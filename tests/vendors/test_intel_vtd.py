"""The rules of the VT-d driver, one by one, on small machines under the real kernel profiles."""

from __future__ import annotations

import pytest

import iommukit_intel_vtd
from iommukit.device import DmaOps
from iommukit.domain import DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.kernel.start import new_boot_state, start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry
from iommukit_intel_vtd.capabilities import SIZE_1G, SIZE_2M, Capabilities

REGISTRY = VendorRegistry()
INTEL = REGISTRY.register(iommukit_intel_vtd, "intel_vtd")
OPS = INTEL.ops

NIC = {"name": "nic", "address": "0000:00:04.0", "id": "8086:10d3", "class": "020000", "kind": "integrated_endpoint"}
GPU = {"name": "gpu", "address": "0000:00:02.0", "id": "8086:5912", "class": "030000", "kind": "integrated_endpoint"}
PORT = {"name": "port", "address": "0000:00:06.0", "id": "1b36:000c", "class": "060400", "kind": "root_port"}
PORT |= {"acs": ["SV", "RR", "CR", "UF"], "buses": "01"}
DISK = {"name": "disk", "address": "0000:01:00.0", "id": "1b36:0010", "class": "010802", "parent": "port"}
OUTSIDE = {**PORT, "external_facing": True}
KERNELS = [*PROFILES, "6.1.192"]
OLD = ["6.1", "rfc", "rfc-as-posted"]
NEW = ["6.12", "7.2"]
FORCED = "DMAR: Intel-IOMMU force enabled due to platform opt in"
NO_BATCHING = "DMAR: IOMMU batching disallowed due to virtualization"
READY = "DMAR: Intel(R) Virtualization Technology for Directed I/O"


def machine(devices, hardware=None, dmar=None):
    firmware = {"DMAR": dmar} if dmar else {}
    document = {"machine": "m", "arch": "x86_64", "devices": devices, "hardware": hardware or {}, "firmware": firmware}
    return Machine.model_validate(document)


def boot(kernel, devices=(NIC,), cmdline="", *, hardware=None, dmar=None, kconfig=None, **config):
    spec = BootSpec(cmdline=cmdline, kconfig=kconfig, config=config)
    return start_system(get_kernel(kernel), INTEL, REGISTRY, machine(list(devices), hardware, dmar), spec)


def dmar(*structures, width=39, flags=()):
    return {"host_address_width": width - 1, "flags": list(flags), "structures": list(structures)}


def drhd(address, *scopes, everything=False, segment=0):
    flags = ["include_pci_all"] if everything else []
    return {"kind": "drhd", "address": address, "flags": flags, "segment": segment, "scopes": list(scopes)}


def scope(*path, kind="endpoint", bus=0, number=0):
    return {"kind": kind, "start_bus": bus, "path": list(path), "enumeration_id": number}


def rmrr(base, end, *scopes):
    return {"kind": "rmrr", "base": base, "end": end, "scopes": list(scopes)}


def types(system):
    return {device.name: device.sysfs_type for device in system.devices.values()}


def unit_of(system, name):
    unit = system.devices[name].unit
    return unit.name if unit else None


# ---- the command line ------------------------------------------------------------------------------------------------

WORDS = {
    "on": (["DMAR: IOMMU enabled"], [Verdict.INEFFECTIVE]),
    "off": (["DMAR: IOMMU disabled"], [Verdict.EFFECTIVE]),
    "off,on": (["DMAR: IOMMU disabled", "DMAR: IOMMU enabled"], [Verdict.EFFECTIVE, Verdict.EFFECTIVE]),
    "strict": (["DMAR: intel_iommu=strict deprecated; use iommu.strict=1 instead"], [Verdict.EFFECTIVE]),
    "strict-bad": (["DMAR: intel_iommu=strict deprecated; use iommu.strict=1 instead"], [Verdict.EFFECTIVE]),
    "igfx_off": (["DMAR: Disable GFX device mapping"], [Verdict.EFFECTIVE]),
    "sp_off": (["DMAR: Disable supported super page"], [Verdict.EFFECTIVE]),
    "sm_on": (["DMAR: Enable scalable mode if hardware supports"], [Verdict.INEFFECTIVE]),
    "sm_off": (["DMAR: Scalable mode is disallowed"], [Verdict.EFFECTIVE]),
    "forcedac": (["DMAR: intel_iommu=forcedac deprecated; use iommu.forcedac instead"], [Verdict.INEFFECTIVE]),
    "tboot_noforce": (
        ["DMAR: Intel-IOMMU: not forcing on after tboot. This could expose security risk for tboot"],
        [Verdict.INEFFECTIVE],
    ),
    "bogus,,sm_off": (
        ["DMAR: Unknown option - 'bogus,,sm_off'", "DMAR: Scalable mode is disallowed"],
        [Verdict.UNKNOWN, Verdict.EFFECTIVE],
    ),
    # Debian's own word is none of mainline's.
    "intgpu_off": (["DMAR: Unknown option - 'intgpu_off'"], [Verdict.UNKNOWN]),
    "": ([], [Verdict.INVALID]),
}


@pytest.mark.parametrize("value", WORDS)
def test_words_of_the_option(value):
    lines, verdicts = WORDS[value]
    system = boot("7.2", cmdline=f"intel_iommu={value}")
    table = system.boot.log.index("DMAR: Host address width 39")
    assert system.boot.log[:table] == lines
    assert [report.verdict for report in system.boot.reports] == verdicts


def test_a_word_with_a_tail_is_reported_as_what_it_was_read_as():
    reports = boot("7.2", cmdline="intel_iommu=strict-bad").boot.reports
    assert (reports[0].option, "read as strict" in reports[0].note) == ("intel_iommu=strict-bad", True)


def test_the_option_needs_a_value():
    assert [report.verdict for report in boot("6.1", cmdline="intel_iommu").boot.reports] == [Verdict.INVALID]


@pytest.mark.parametrize("kernel", KERNELS)
def test_strict_of_the_vendor_beats_the_core_option(kernel):
    for cmdline in ("intel_iommu=strict iommu.strict=0", "iommu.strict=0 intel_iommu=on,strict"):
        system = boot(kernel, cmdline=cmdline)
        assert types(system)["nic"] == ("identity" if kernel == "rfc-unconverted" else "DMA")
        assert any("strict mode (set via kernel command line)" in line for line in system.boot.log)


def test_scalable_mode_alone_does_not_switch_remapping_on():
    system = boot("6.1", cmdline="intel_iommu=sm_on", INTEL_IOMMU_DEFAULT_ON=False)
    assert system.units == []
    assert "DMAR: IOMMU enabled" not in system.boot.log


# ---- on or off -------------------------------------------------------------------------------------------------------

SWITCH = [
    # build default, command line, opt-in, external port: on, default, forced line, ACS asked for
    (True, "", False, True, True, "DMA-FQ", False, True),
    (True, "intel_iommu=off", False, True, False, None, False, False),
    (True, "iommu=off", False, True, False, None, False, False),
    (False, "", False, True, False, None, False, False),
    (False, "intel_iommu=on", False, True, True, "DMA-FQ", False, True),
    (False, "intel_iommu=on iommu=off", False, True, False, None, False, False),
    # The opt-in switches on with identity for trusted devices, whatever the command line's default.
    (False, "", True, True, True, "identity", True, True),
    (False, "iommu.passthrough=0 iommu.strict=1", True, True, True, "identity", True, True),
    # It needs a port for strangers, and cannot overrule off.
    (False, "", True, False, False, None, False, True),
    (False, "intel_iommu=off", True, True, False, None, False, True),
    # Where remapping is on anyway it changes nothing and says nothing.
    (True, "", True, True, True, "DMA-FQ", False, True),
    (False, "intel_iommu=on", True, True, True, "DMA-FQ", False, True),
]


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2", "rfc"])
@pytest.mark.parametrize(("default_on", "cmdline", "opt_in", "outside", "on", "kind", "forced", "acs"), SWITCH)
def test_whether_remapping_is_on(kernel, default_on, cmdline, opt_in, outside, on, kind, forced, acs):
    devices = [NIC, OUTSIDE if outside else PORT]
    system = boot(kernel, devices, cmdline, hardware={"platform_opt_in": opt_in}, kconfig="lazy", INTEL_IOMMU_DEFAULT_ON=default_on)
    assert bool(system.units) is on
    assert types(system)["nic"] == (kind or "none")
    assert (FORCED in system.boot.log) is forced
    assert (READY in system.boot.log) is on
    assert system.boot.acs_requested is acs
    assert not any("batching" in line for line in system.boot.log)


@pytest.mark.parametrize(("kernel", "on"), [("6.1", False), ("rfc", False), ("6.12", True), ("7.2", False)])
def test_only_one_release_lets_the_platform_overrule_iommu_off(kernel, on):
    system = boot(kernel, [NIC, OUTSIDE], "iommu=off", hardware={"platform_opt_in": True}, kconfig="lazy")
    assert (bool(system.units), FORCED in system.boot.log, system.boot.acs_requested) == (on, on, False)
    assert types(system)["nic"] == ("DMA-FQ" if on else "none")


def test_untrusted_devices_are_translated_under_the_opt_in():
    system = boot("6.1", [NIC, OUTSIDE, DISK], hardware={"platform_opt_in": True}, INTEL_IOMMU_DEFAULT_ON=False)
    assert types(system) == {"nic": "identity", "port": "identity", "disk": "DMA"}


def test_the_opt_in_comes_after_the_policy_line():
    log = boot("6.1", [NIC, OUTSIDE], hardware={"platform_opt_in": True}, INTEL_IOMMU_DEFAULT_ON=False).boot.log
    policy = next(at for at, line in enumerate(log) if line.startswith("iommu: DMA domain TLB"))
    assert log.index("DMAR: Host address width 39") < policy < log.index(FORCED) < log.index("DMAR: No RMRR found")


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


# ---- graphics --------------------------------------------------------------------------------------------------------

OWN_UNIT = dmar(drhd(0xA000, scope("02.0")), drhd(0xB000, everything=True))


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12", "7.2"])
def test_graphics_without_translation(kernel):
    """Before 6.12 graphics below a shared unit become identity; since, only units of their own are left out."""
    shared = boot(kernel, [GPU, NIC], "intel_iommu=on,igfx_off", kconfig="lazy")
    assert types(shared) == {"gpu": "identity" if kernel in OLD else "DMA-FQ", "nic": "DMA-FQ"}
    alone = boot(kernel, [GPU, NIC], "intel_iommu=on,igfx_off", kconfig="lazy", dmar=OWN_UNIT)
    assert types(alone) == {"gpu": "none", "nic": "DMA-FQ"}
    assert [unit.name for unit in alone.units] == ["dmar1"]
    assert types(boot(kernel, [GPU, NIC], kconfig="lazy", dmar=OWN_UNIT))["gpu"] == "DMA-FQ"


def test_a_unit_for_graphics_and_more_is_kept():
    table = dmar(drhd(0xA000, scope("02.0"), scope("04.0")), drhd(0xB000, everything=True))
    system = boot("6.12", [GPU, NIC], "intel_iommu=igfx_off", dmar=table)
    assert unit_of(system, "gpu") == "dmar0"


@pytest.mark.parametrize("number", ["29b2", "2a40", "2e90", "0044", "1606", "163d"])
def test_chipsets_whose_graphics_fail_behind_a_unit(number):
    bridge = {"name": "bridge", "address": "0000:00:00.0", "id": f"8086:{number}", "class": "060000", "kind": "conventional"}
    system = boot("6.1", [bridge, GPU])
    assert "pci 0000:00:00.0: DMAR: Disabling IOMMU for graphics on this chipset" in system.boot.log
    assert types(system)["gpu"] == "identity"
    assert types(boot("6.1", [{**bridge, "id": "8086:29c0"}, GPU]))["gpu"] == "DMA-FQ"


def test_the_old_build_option_for_graphics():
    assert types(boot("6.1", [GPU], INTEL_IOMMU_BROKEN_GFX_WA=True))["gpu"] == "identity"
    kept = boot("6.1", [GPU], dmar=OWN_UNIT, INTEL_IOMMU_BROKEN_GFX_WA=True)
    assert types(kept)["gpu"] == "identity", "the unit of its own was kept before the option spoke"


def test_write_buffer_quirk_speaks():
    bridge = {"name": "bridge", "address": "0000:00:00.0", "id": "8086:2e20", "class": "060000", "kind": "conventional"}
    assert "pci 0000:00:00.0: DMAR: Forcing write-buffer flush capability" in boot("7.2", [bridge]).boot.log


@pytest.mark.parametrize(("number", "said"), [("9a49", True), ("4680", True), ("5912", False)])
def test_graphics_that_must_stay_translated(number, said):
    system = boot("6.12", [{**GPU, "id": f"8086:{number}"}])
    assert ("pci 0000:00:02.0: DMAR: Skip IOMMU disabling for graphics" in system.boot.log) is said


# ---- Calpella --------------------------------------------------------------------------------------------------------


def calpella(control, number="0040"):
    registers = {} if control is None else {"0x52": control}
    host = {"name": "host", "address": "0000:00:00.0", "id": f"8086:{number}", "class": "060000", "kind": "conventional"}
    return [{**host, "attributes": {"registers": registers}}, GPU]


@pytest.mark.parametrize("number", ["0040", "0062", "006a"])
@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_ironlake_with_a_shadow_table_is_strict_before_the_policy_is_printed(kernel, number):
    system = boot(kernel, calpella(0x0900, number), kconfig="lazy")
    assert "pci 0000:00:00.0: DMAR: Disabling batched IOTLB flush on Ironlake" in system.boot.log
    assert any(line.strip().endswith("policy: strict mode") for line in system.boot.log)
    assert types(system)["gpu"] == "DMA"


def test_ironlake_without_a_shadow_table():
    system = boot("6.1", calpella(0x0100), kconfig="lazy")
    line = "pci 0000:00:00.0: DMAR: BIOS has allocated no shadow GTT; disabling IOMMU for graphics"
    assert line in system.boot.log
    assert types(system) == {"host": "DMA-FQ", "gpu": "identity"}


def test_ironlake_that_nobody_translates_stays_lazy():
    system = boot("6.1", calpella(0x0900), "intel_iommu=igfx_off", kconfig="lazy")
    assert types(system)["host"] == "DMA-FQ"


def test_a_register_that_is_not_given_cannot_be_read():
    assert types(boot("6.1", calpella(None), kconfig="lazy"))["gpu"] == "DMA-FQ"


# ---- Azalia ----------------------------------------------------------------------------------------------------------

NO_TLB = "Your BIOS is broken; DMA routed to ISOCH DMAR unit but no TLB space."
SOUND = {"name": "sound", "address": "0000:00:1b.0", "id": "8086:3a3e", "class": "040300", "kind": "integrated_endpoint"}


def isoch(control, *, sound=SOUND):
    hub = {"name": "hub", "address": "0000:00:14.0", "id": "8086:342e", "class": "080000", "kind": "integrated_endpoint"}
    return [{**hub, "attributes": {"registers": {"0x188": control}}}, sound]


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12", "7.2"])
@pytest.mark.parametrize(
    ("control", "identity", "line"),
    [
        (0x0, True, NO_TLB),
        ("0x100", True, NO_TLB),
        (0x1, False, None),
        (0x10, False, None),
        (0x8, False, "DMAR: Recommended TLB entries for ISOCH unit is 16; your BIOS set 8"),
    ],
)
def test_sound_without_tlb_entries(kernel, control, identity, line):
    system = boot(kernel, isoch(control), kconfig="lazy")
    assert types(system) == {"hub": "DMA-FQ", "sound": "identity" if identity else "DMA-FQ"}
    said = [text for text in system.boot.log if "ISOCH" in text]
    assert said == ([line] if line else [])


def test_sound_without_the_hub_is_left_alone():
    assert types(boot("6.12", [SOUND], kconfig="lazy"))["sound"] == "DMA-FQ"


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_untrusted_devices_trigger_no_quirk(kernel):
    """A device that claims to be the chipset's sound, plugged in from outside, is translated."""
    sound = {**SOUND, "address": "0000:01:00.0", "parent": "port", "kind": "endpoint"}
    system = boot(kernel, [OUTSIDE, *isoch(0, sound=sound)], "iommu.passthrough=1")
    assert types(system)["sound"] == "DMA"
    assert NO_TLB not in system.boot.log
    assert system.boot.log[-3:-1] == [
        "pci 0000:01:00.0: DMAR: Skipping IOMMU quirk for dev [8086:3A3E] on untrusted PCI link",
        "pci 0000:01:00.0: DMAR: Please check with your BIOS/Platform vendor about this",
    ]


def test_an_untrusted_host_bridge_disables_nothing():
    fake = {**DISK, "id": "8086:2e20"}
    system = boot("6.1", [OUTSIDE, fake, GPU])
    assert types(system)["gpu"] == "DMA-FQ"
    assert sum("Skipping IOMMU quirk for dev [8086:2E20]" in line for line in system.boot.log) == 2


# ---- caching mode and stages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12", "7.2"])
@pytest.mark.parametrize(
    ("hardware", "cmdline", "strict"),
    [
        ({"caching_mode": False}, "", False),
        ({"caching_mode": True}, "", True),
        ({"caching_mode": True, "scalable_mode": True}, "", True),
        ({"caching_mode": True, "scalable_mode": True, "first_stage": True}, "", False),
        ({"caching_mode": True, "scalable_mode": True, "first_stage": True}, "intel_iommu=sm_off", True),
        ({"caching_mode": True, "scalable_mode": True, "first_stage": True, "second_stage": False}, "", False),
    ],
)
def test_caching_mode_is_strict_unless_the_first_stage_is_used(kernel, hardware, cmdline, strict):
    system = boot(kernel, [NIC], cmdline, hardware=hardware, kconfig="lazy")
    assert types(system)["nic"] == ("DMA" if strict else "DMA-FQ")
    assert system.boot.log.count(NO_BATCHING) == strict
    assert any("lazy mode" in line for line in system.boot.log), "the policy was printed before"


def test_caching_mode_leaves_identity_alone():
    system = boot("6.1", [NIC], "iommu=pt", hardware={"caching_mode": True})
    assert types(system)["nic"] == "identity"
    assert NO_BATCHING in system.boot.log


def two_units(first, second):
    words = [{"cap": f"{unit.cap:#x}", "ecap": f"{unit.ecap:#x}"} for unit in (first, second)]
    return {"units": words}


def test_units_decide_together_before_7_2_and_each_for_itself_since():
    plain = Capabilities().with_width(48)
    cached = Capabilities(cap=plain.cap | 1 << 7, ecap=plain.ecap | 0b11001 << 43)
    table = dmar(drhd(0xA000, scope("02.0")), drhd(0xB000, everything=True))
    for kernel, strict in (("6.12", True), ("7.2", False)):
        system = boot(kernel, [GPU, NIC], dmar=table, hardware=two_units(cached, plain), kconfig="lazy")
        assert types(system) == dict.fromkeys(("gpu", "nic"), "DMA" if strict else "DMA-FQ")


def test_a_scalable_platform_without_any_stage_cannot_start():
    nothing = {"scalable_mode": True, "second_stage": False}
    system = boot("6.1", [NIC], hardware=nothing)
    assert "DMAR: Initialization failed" in system.boot.log
    assert system.units == []


def test_different_capabilities_are_reported_until_7_2():
    other = Capabilities(cap=Capabilities().cap | 1 << 59 | 1 << 56, ecap=Capabilities().ecap & ~(1 << 6))
    table = dmar(drhd(0xA000, scope("02.0")), drhd(0xB000, everything=True))
    for kernel, lines in (("6.12", ["pi_support", "fl1gp_support", "pass_through"]), ("7.2", [])):
        log = boot(kernel, [GPU, NIC], dmar=table, hardware=two_units(other, Capabilities())).boot.log
        assert [line.split()[3] for line in log if "inconsistent" in line] == lines


# ---- requirements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "kind"), [("6.1", "identity"), ("rfc", "identity"), ("6.12", "DMA"), ("7.2", "DMA")])
def test_without_pass_through_identity_is_software_and_later_impossible(kernel, kind):
    system = boot(kernel, [NIC], "iommu.passthrough=1", hardware={"pass_through": False})
    assert types(system)["nic"] == kind


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12", "7.2"])
@pytest.mark.parametrize(
    ("role", "kind"),
    [("identity-required", "identity"), ("strict-required", "DMA"), ("direct-region", "DMA-FQ"), ("relaxable-region", "DMA-FQ")],
)
def test_examples_are_what_their_role_says(kernel, role, kind):
    if role == "strict-required" and kernel in OLD:
        with pytest.raises(NotApplicable, match="no device for the role strict-required"):
            boot(kernel, [{"name": "it", "role": role}])
        return
    system = boot(kernel, [{"name": "it", "role": role}], kconfig="lazy")
    assert types(system)["it"] == kind
    regions = [region.sysfs.split()[2] for region in system.regions(system.devices["it"])]
    own = {"direct-region": ["direct"], "relaxable-region": ["direct-relaxable"]}.get(role, [])
    assert regions == [*own, "msi"]


@pytest.mark.parametrize("role", ["lazy-preferred", "no-lazy", "unheard-of"])
def test_roles_without_an_example(role):
    state = new_boot_state(get_kernel("7.2"), "x86_64", BootSpec())
    assert OPS.example_device(role=role, boot=state) is None


# ---- reserved regions ------------------------------------------------------------------------------------------------


def reserved(device, kind="direct", start=0x1000, end=0x1FFF):
    return {**device, "reserved": [{"start": start, "end": end, "type": kind}]}


@pytest.mark.parametrize(
    ("number", "kind"),
    [("020000", "direct"), ("030000", "direct-relaxable"), ("0c0330", "direct-relaxable"), ("0c0500", "direct")],
)
def test_the_class_decides_whether_a_region_is_relaxable(number, kind):
    device = {**NIC, "class": number}
    for machine_file in ({"devices": [reserved(device, kind)]}, {"devices": [device], "dmar": True}):
        table = dmar(drhd(0xB000, everything=True), rmrr(0x1000, 0x1FFF, scope("04.0"))) if "dmar" in machine_file else None
        system = boot("6.1", machine_file["devices"], dmar=table)
        assert [r.sysfs for r in system.regions(system.devices["nic"])] == [
            f"0x0000000000001000 0x0000000000001fff {kind}",
            "0x00000000fee00000 0x00000000feefffff msi",
        ]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (reserved(NIC, "direct-relaxable"), "class 020000 direct, not direct-relaxable"),
        (reserved(GPU, "direct"), "class 030000 direct-relaxable, not direct"),
        (reserved(NIC, "reserved"), "no region of type reserved"),
        (reserved(NIC, "msi"), "no region of type msi"),
        (reserved({"name": "uart", "kind": "platform"}), "PCI devices only"),
    ],
)
def test_regions_that_vtd_cannot_have(device, reason):
    with pytest.raises(NotApplicable, match=reason):
        boot("6.12", [device])


def test_the_interrupt_window_may_be_written_down():
    system = boot("6.12", [reserved(NIC, "msi", 0xFEE00000, 0xFEEFFFFF)])
    assert [region.type.value for region in system.regions(system.devices["nic"])] == ["msi"]
    assert "DMAR: No RMRR found" in system.boot.log


def test_regions_of_the_machine_file_are_added_to_the_table_s():
    system = boot("6.1", [reserved(NIC)], dmar=dmar(drhd(0xB000, everything=True), rmrr(0x3000, 0x3FFF, scope("04.0"))))
    assert sorted(region.start for region in system.regions(system.devices["nic"])) == [0x1000, 0x3000, 0xFEE00000]


def test_a_bridge_s_region_is_that_of_all_below():
    system = boot("6.1", [PORT, DISK], dmar=dmar(drhd(0xB000, everything=True), rmrr(0, 0xFFF, scope("06.0", kind="bridge"))))
    assert [region.start for region in system.regions(system.devices["disk"])] == [0, 0xFEE00000]


@pytest.mark.parametrize("kernel", ["6.1", "7.2"])
def test_the_floppy_s_memory(kernel):
    isa = {"name": "isa", "address": "0000:00:1f.0", "id": "8086:2918", "class": "060100", "kind": "conventional"}
    with_it, without = boot(kernel, [isa]), boot(kernel, [isa], INTEL_IOMMU_FLOPPY_WA=False)
    assert with_it.regions(with_it.devices["isa"])[0].sysfs == "0x0000000000000000 0x0000000000ffffff direct-relaxable"
    assert [region.type.value for region in without.regions(without.devices["isa"])] == ["msi"]


# ---- domains ---------------------------------------------------------------------------------------------------------

TYPES = {
    # type: (6.1, 6.12, 7.2); what comes back, None for a refusal
    DomainType.DMA: (True, True, True),
    DomainType.UNMANAGED: (True, True, True),
    DomainType.DMA_FQ: (True, False, False),
    DomainType.IDENTITY: (True, True, True),
    DomainType.BLOCKED: (False, True, True),
    DomainType.PLATFORM: (False, False, False),
}


@pytest.mark.parametrize("kind", TYPES)
def test_types_that_can_be_allocated(kind):
    for kernel, there in zip(("6.1", "6.12", "7.2"), TYPES[kind], strict=True):
        system = boot(kernel)
        device = system.devices["nic"]
        one, two = system.alloc(device, kind), system.alloc(device, kind)
        assert (one is not None) is there
        if one is not None:
            assert one.type is kind
            assert one.static is (kind in (DomainType.IDENTITY, DomainType.BLOCKED))
            assert (one is two) is one.static
            assert one.generic_pt is (kernel == "7.2" and not one.static)


def test_static_domains_are_of_one_boot():
    first, second = boot("7.2"), boot("7.2")
    assert first.alloc(first.devices["nic"], DomainType.IDENTITY) is not second.alloc(second.devices["nic"], DomainType.IDENTITY)


ALL_SIZES = 0x1000 | SIZE_2M | SIZE_1G
GEOMETRY = [
    # hardware, command line: bits of the aperture, page sizes
    ({}, "", 39, ALL_SIZES),
    ({"address_width": 48}, "", 48, ALL_SIZES),
    ({"address_width": 57}, "", 57, ALL_SIZES),
    ({"superpages": ["2M"]}, "", 39, 0x1000 | SIZE_2M),
    ({"superpages": []}, "", 39, 0x1000),
    ({}, "intel_iommu=sp_off", 39, 0x1000),
    # A real unit: tables for 48 bits, of which 39 may be used.
    ({"units": [{"cap": "0xd2008c40660462", "ecap": "0xf050da"}]}, "", 39, ALL_SIZES),
    # First-stage tables: four levels at least, canonical addresses, 2 MiB always.
    ({"address_width": 48, "scalable_mode": True, "first_stage": True}, "", 47, 0x1000 | SIZE_2M),
    ({"address_width": 48, "scalable_mode": True, "first_stage": True, "superpages": ["2M", "1G"]}, "", 47, ALL_SIZES),
    ({"address_width": 57, "scalable_mode": True, "first_stage": True}, "", 56, 0x1000 | SIZE_2M),
    ({"address_width": 48, "scalable_mode": True, "first_stage": True}, "intel_iommu=sm_off", 48, ALL_SIZES),
    # Both stages, five levels in the second only: four it is.
    ({"units": [{"cap": "0xd2008c22380e06", "ecap": "0xc80000f00f4a"}]}, "", 47, 0x1000 | SIZE_2M),
]


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
@pytest.mark.parametrize(("hardware", "cmdline", "bits", "sizes"), GEOMETRY)
def test_geometry_of_an_attached_domain(kernel, hardware, cmdline, bits, sizes):
    system = boot(kernel, [NIC], cmdline, hardware=hardware)
    domain = system.devices["nic"].attached
    assert domain.aperture == (0, (1 << bits) - 1)
    assert domain.page_sizes == sizes


@pytest.mark.parametrize(("kernel", "bits"), [("6.1", 57), ("rfc", 57), ("6.12", 57), ("7.2", 39)])
def test_geometry_before_attaching(kernel, bits):
    system = boot(kernel)
    assert system.alloc(system.devices["nic"], DomainType.DMA).aperture == (0, (1 << bits) - 1)


@pytest.mark.parametrize(("kernel", "first_stage"), [("6.1", False), ("6.12", False), ("7.2", True)])
def test_unmanaged_domains_keep_the_second_stage_until_7_2(kernel, first_stage):
    system = boot(kernel, hardware={"address_width": 48, "scalable_mode": True, "first_stage": True})
    assert system.alloc(system.devices["nic"], DomainType.UNMANAGED).first_stage is first_stage


FAR = reserved(GPU, "direct-relaxable", 0x80_0000_0000, 0x80_0000_0FFF)


@pytest.mark.parametrize(("kernel", "errno"), [("6.1", "EFAULT"), ("6.12", "EINVAL"), ("7.2", "EFAULT")])
def test_a_region_beyond_the_unit_s_width(kernel, errno):
    system = boot(kernel, [FAR], "iommu.passthrough=1")
    system.take_lines()
    with pytest.raises(IommuError, match=errno):
        system.kernel.write_type(system, system.devices["gpu"].group, "DMA")
    assert types(system)["gpu"] == "identity"
    line = (
        "pci 0000:00:02.0: DMAR: prepare_domain_attach_device: iommu width (39) is not sufficient for the mapped address"
        " (8000001000)"
    )
    assert (line in system.take_lines()) is (kernel == "6.1")


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_a_region_at_the_very_end(kernel):
    system = boot(kernel, [reserved(NIC, "direct", 0x7F_FFFF_F000, 0x7F_FFFF_FFFF)], "iommu.passthrough=1")
    system.kernel.write_type(system, system.devices["nic"].group, "DMA")
    assert types(system)["nic"] == "DMA"


def test_a_released_device_is_attached_to_nothing():
    system = boot("6.12")
    nic = system.devices["nic"]
    OPS.release_device(device=nic)
    assert nic.attached is None


def test_a_domain_for_a_wider_unit_does_not_fit():
    wide, narrow = Capabilities().with_width(48), Capabilities()
    table = dmar(drhd(0xA000, scope("02.0")), drhd(0xB000, everything=True), width=48)
    system = boot("7.2", [GPU, NIC], dmar=table, hardware=two_units(wide, narrow))
    gpu, nic = system.devices["gpu"], system.devices["nic"]
    domain = system.alloc(gpu, DomainType.UNMANAGED)
    with pytest.raises(IommuError, match="EINVAL"):
        system.attach(nic, domain)
    system.attach(gpu, domain)
    assert (gpu.attached, nic.attached.type) == (domain, DomainType.DMA_FQ)


INELIGIBLE = (
    "{device}: DMAR: Device is ineligible for IOMMU domain attach due to platform RMRR requirement.  Contact your platform vendor."
)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("device", [reserved(NIC), reserved({**GPU, "name": "nic"}, "direct-relaxable"), NIC])
def test_firmware_s_memory_and_assignment(kernel, device):
    """Before 6.12 the driver itself refuses unmanaged domains; the core's claim of later kernels does not get that far."""
    system = boot(kernel, [device])
    nic = system.devices["nic"]
    nic.driver = "vfio-pci"
    before = nic.attached
    domain = system.alloc(nic, DomainType.UNMANAGED)
    system.take_lines()
    if kernel in NEW or device is NIC or device["class"] == "030000":
        system.attach(nic, domain)
        assert nic.attached is domain
        return
    with pytest.raises(IommuError, match="EPERM"):
        system.attach(nic, domain)
    assert nic.attached is before
    assert system.take_lines() == [INELIGIBLE.format(device="vfio-pci 0000:00:04.0")]


# ---- capabilities and the rest ---------------------------------------------------------------------------------------

CAPABLE = [
    # capability, hardware: 6.1, 6.12, 7.2
    ("cache_coherency", {}, True, True, True),
    ("deferred_flush", {}, False, True, False),
    ("pre_boot_protection", {}, False, False, False),
    ("pre_boot_protection", {"platform_opt_in": True}, True, True, True),
    ("interrupt_remapping", {}, True, True, True),
    ("interrupt_remapping", {"interrupt_remapping": False}, False, False, False),
    ("enforce_cache_coherency", {}, False, False, False),
    ("enforce_cache_coherency", {"snoop_control": True}, False, True, True),
    ("dirty_tracking", {"dirty_tracking": True}, False, False, False),
    ("dirty_tracking", {"dirty_tracking": True, "scalable_mode": True}, False, True, True),
    ("noexec", {}, False, False, False),
]


@pytest.mark.parametrize(("capability", "hardware", "old", "middle", "new"), CAPABLE)
def test_capable(capability, hardware, old, middle, new):
    for kernel, expected in (("6.1", old), ("rfc", old), ("6.12", middle), ("7.2", new)):
        system = boot(kernel, hardware=hardware)
        assert OPS.capable(device=system.devices["nic"], capability=capability) is expected, kernel


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_queue_works_for_every_device(kernel):
    system = boot(kernel, hardware={"caching_mode": True})
    assert OPS.prefer_dma_api_fq(device=system.devices["nic"]) is True


def test_a_kdump_kernel_waits_for_the_driver():
    system = boot("6.1", hardware={"translation_pre_enabled": True})
    nic = system.devices["nic"]
    assert (nic.attached, nic.attach_deferred) == (None, True)
    assert "DMAR: Copied translation tables from previous kernel for dmar0" in system.boot.log
    system.attach(nic, nic.group.default_domain)
    assert OPS.is_attach_deferred(device=nic) is False
    assert boot("6.1").devices["nic"].attach_deferred is False


@pytest.mark.parametrize("kernel", ["6.1", "7.2"])
def test_mapping_calls_reach_the_domain(kernel):
    assert boot(kernel).devices["nic"].dma_ops is DmaOps.IOMMU
    assert boot(kernel, cmdline="iommu=pt").devices["nic"].dma_ops is DmaOps.DIRECT


def test_nothing_is_said_of_pasids_but_in_emulation():
    line = "DMAR: VT-d Scalable Mode not enabled, no PASID allocation"
    assert line in boot("6.1", hardware={"caching_mode": True}).boot.log
    assert line not in boot("6.12", hardware={"caching_mode": True}).boot.log
    assert line not in boot("6.1", hardware={"caching_mode": True, "scalable_mode": True}).boot.log


# ---- machine files that cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "table", "place"),
    [
        ({"caching_mode": "yes"}, None, "hardware.caching_mode"),
        ({"address_width": 40}, None, "hardware.address_width"),
        ({"superpages": ["4M"]}, None, "hardware.superpages.0"),
        ({"units": [{"cap": "x", "ecap": 0}]}, None, "hardware.units.0.cap"),
        ({"units": [{"cap": 0, "ecap": 0, "version": "one"}]}, None, "hardware.units.0.version"),
        ({"units": []}, None, "hardware.units"),
        ({"platform_opt_in": True}, OWN_UNIT, "hardware.platform_opt_in"),
        ({"host_address_width": 46}, OWN_UNIT, "hardware.host_address_width"),
    ],
)
def test_bad_hardware_options_name_their_place(hardware, table, place):
    with pytest.raises(InputError) as caught:
        boot("6.12", [NIC], hardware=hardware, dmar=table)
    assert str(caught.value).startswith(f"m: {place}: ")
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_options_change_the_words_that_are_given():
    words = {"units": [{"cap": "0xd2008c40660462", "ecap": "0xf050da", "version": "1:0"}], "caching_mode": True}
    log = boot("6.12", [NIC], hardware=words).boot.log
    assert "DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap d2008c406604e2 ecap f050da" in log


def test_the_declaration_explains_each_option():
    assert all(text and "\n" not in text for text in INTEL.declaration.hardware_options.values())
    assert {"caching_mode", "pass_through", "scalable_mode", "first_stage", "units"} <= INTEL.declaration.hardware_options.keys()
