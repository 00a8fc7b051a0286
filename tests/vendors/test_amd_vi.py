"""The AMD-Vi plugin: options, bringing the units up, the table's features and bad input, on the real engine."""

from __future__ import annotations

import pytest

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import new_boot_state
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import DmaApiPolicy
from iommukit_amd_vi.options import V2_PAGE_SIZES, AmdOptions, amd_options
from iommukit_amd_vi.units import read_platform
from tests.vendors.amd_vi import (
    AMD,
    EVERYTHING,
    KERNELS,
    NEW,
    NIC,
    PORT,
    SOUTHBRIDGE,
    boot,
    case_id,
    device,
    driver_of,
    regions,
    select,
    table,
)

# ---- the plugin ------------------------------------------------------------------------------------------------------


def test_declaration_is_complete():
    declaration = AMD.declaration
    assert declaration.arch == ("x86_64",)
    assert all(text and text[0].isalpha() and not text.endswith(".") for text in declaration.hardware_options.values())
    for role, capability in (
        ("identity-required", True),
        ("strict-required", False),
        ("no-lazy", False),
        ("lazy-preferred", False),
    ):
        assert AMD.has(role) is capability
    assert not AMD.has("relaxable-regions")


@pytest.mark.parametrize("role", ["strict-required", "lazy-preferred", "no-lazy", "relaxable-region"])
def test_roles_without_an_example(role):
    with pytest.raises(NotApplicable, match=role):
        boot("6.1", {"name": "d", "role": role})


@pytest.mark.parametrize("kernel", KERNELS)
def test_example_that_requires_identity(kernel):
    system = boot(kernel, PORT, {"name": "d", "role": "identity-required", "parent": "port"})
    assert AMD.ops.def_domain_type(device=system.devices["d"]) is DmaApiPolicy.IDENTITY
    assert system.devices["d"].sysfs_type == "identity"
    assert system.devices["port"].sysfs_type == "DMA-FQ"


def test_example_needs_a_capable_iommu():
    with pytest.raises(NotApplicable, match="guest_translation"):
        boot("6.1", {"name": "d", "role": "identity-required"}, hardware={"guest_translation": False})


@pytest.mark.parametrize("kernel", KERNELS)
def test_example_with_a_direct_region(kernel):
    system = boot(kernel, {"name": "d", "role": "direct-region"})
    group = system.devices["d"].group
    assert regions(system, "d")[0].endswith(" direct")
    assert group.default_domain.direct == {(0x1FFDD000, 0x1FFDDFFF)}


# ---- options ---------------------------------------------------------------------------------------------------------

RESTRICTING = "AMD-Vi: Restricting V1 page-sizes to "


@pytest.mark.parametrize(
    ("word", "kernels", "field", "value", "line"),
    [
        ("off", KERNELS, "off", True, None),
        ("fullflush", KERNELS, "full_flush", True, "AMD-Vi: amd_iommu=fullflush deprecated; use iommu.strict=1 instead"),
        ("force_enable", KERNELS, "force_enable", True, None),
        ("force_isolation", KERNELS, "force_isolation", True, None),
        ("pgtbl_v1", KERNELS, "table", 1, None),
        ("pgtbl_v2", KERNELS, "table", 2, None),
        ("irtcachedis", KERNELS, "irt_cache_disabled", True, None),
        ("nohugepages", NEW, "page_sizes", 0x1000, RESTRICTING + "4KiB"),
        ("v2_pgsizes_only", NEW, "page_sizes", V2_PAGE_SIZES, RESTRICTING + "4KiB/2MiB/1GiB"),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_words_of_amd_iommu(kernel, word, kernels, field, value, line):
    system = boot(kernel, cmdline=f"amd_iommu={word}")
    options = amd_options(system.boot)
    (report,) = system.boot.reports
    if kernel in kernels:
        assert options == AmdOptions(**{field: value})
        assert report.verdict is not Verdict.UNKNOWN
        assert line is None or line in system.boot.log
    else:
        assert options == AmdOptions()
        assert report.verdict is Verdict.UNKNOWN
        assert "since 6.12" in report.note
        assert f"AMD-Vi: Unknown option - '{word}'" in system.boot.log


@pytest.mark.parametrize(
    ("word", "hint"),
    [("on", "only off exists"), ("pt", "iommu=pt"), ("strict", "iommu.strict=1"), ("lazy", "iommu.strict=0"), ("offf", None)],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_words_that_users_believe_in(kernel, word, hint):
    system = boot(kernel, cmdline=f"amd_iommu={word}")
    (report,) = system.boot.reports
    if hint is None:  # Words are matched by prefix.
        assert report.verdict is Verdict.EFFECTIVE
        assert system.units == []
    else:
        assert (report.option, report.verdict) == (f"amd_iommu={word}", Verdict.UNKNOWN)
        assert hint in report.note
        assert system.devices["nic"].sysfs_type == "DMA-FQ"


def test_an_unknown_word_is_printed_with_all_that_follows():
    system = boot("6.1", cmdline="amd_iommu=on,,force_isolation,pgtbl_v2")
    assert [report.verdict for report in system.boot.reports] == [Verdict.UNKNOWN, Verdict.EFFECTIVE, Verdict.EFFECTIVE]
    assert system.boot.log[0] == "AMD-Vi: Unknown option - 'on,,force_isolation,pgtbl_v2'"


def test_later_words_win():
    assert amd_options(boot("6.1", cmdline="amd_iommu=pgtbl_v2 amd_iommu=pgtbl_v1").boot).table == 1


def test_before_6_1_a_word_counts_at_any_position_and_others_are_silent():
    system = boot("5.19", cmdline="amd_iommu=on,xforce_isolationx,pgtbl_v2")
    assert amd_options(system.boot) == AmdOptions(force_isolation=True)
    verdicts = {report.option: report.verdict for report in system.boot.reports}
    assert verdicts == {
        "amd_iommu=on": Verdict.UNKNOWN,
        "amd_iommu=force_isolation": Verdict.EFFECTIVE,
        "amd_iommu=pgtbl_v2": Verdict.UNKNOWN,
    }
    assert not [line for line in system.boot.log if "Unknown option" in line]


def test_option_without_a_value_has_no_reader():
    (report,) = boot("6.1", cmdline="amd_iommu").boot.reports
    assert report.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("cmdline", "verdict"),
    [
        ("amd_iommu_dump", Verdict.INEFFECTIVE),
        ("amd_iommu_intr=legacy", Verdict.INEFFECTIVE),
        ("amd_iommu_intr=both", Verdict.UNKNOWN),
        ("ivrs_ioapic=4@00:14.0", Verdict.INEFFECTIVE),
        ("ivrs_acpihid=AMDI0020:ID00@00:14.5", Verdict.INEFFECTIVE),
    ],
)
def test_companion_options(cmdline, verdict):
    (report,) = boot("6.1", cmdline=cmdline).boot.reports
    assert (report.option, report.verdict) == (cmdline, verdict)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cmdline", ["amd_iommu=fullflush iommu.strict=0", "iommu.strict=0 amd_iommu=fullflush"])
def test_full_flush_beats_the_core_option_in_either_order(kernel, cmdline):
    assert boot(kernel, cmdline=cmdline).devices["nic"].sysfs_type == "DMA"


@pytest.mark.parametrize("kernel", KERNELS)
def test_full_flush_leaves_identity_alone(kernel):
    assert boot(kernel, cmdline="amd_iommu=fullflush iommu=pt").devices["nic"].sysfs_type == "identity"


# ---- bringing the IOMMUs up ------------------------------------------------------------------------------------------


def test_units_are_found_without_the_early_hook():
    system = boot("6.1")
    state = new_boot_state(get_kernel("6.1"), "x86_64", BootSpec())
    state.default.settle("lazy", memory_encryption=False)
    assert [unit.name for unit in AMD.ops.discover(machine=system.machine, boot=state)] == ["ivhd0"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cmdline", ["iommu=off", "amd_iommu=off"])
def test_switched_off(kernel, cmdline):
    system = boot(kernel, cmdline=cmdline)
    assert (system.units, system.groups) == ([], {})
    assert not [line for line in system.boot.log if line.startswith("AMD-Vi")]
    assert system.boot.acs_requested


def test_old_kernels_say_that_they_are_switched_off():
    assert boot("5.12", cmdline="amd_iommu=off").boot.log[0] == "AMD-Vi: AMD IOMMU disabled"


STONEY = device("00:01.0", id="1002:98E4", **{"class": "030000"})


@pytest.mark.parametrize("kernel", KERNELS)
def test_stoney_ridge_graphics_keep_the_iommu_off(kernel):
    system = boot(kernel, STONEY)
    assert system.units == []
    assert system.boot.log[0] == "AMD-Vi: Disable IOMMU on Stoney Ridge"
    assert not system.boot.acs_requested
    assert boot(kernel, STONEY, cmdline="amd_iommu=force_enable").units


def test_force_enable_came_with_5_14():
    assert boot("5.13", STONEY, cmdline="amd_iommu=force_enable").units == []
    assert boot("5.14", STONEY, cmdline="amd_iommu=force_enable").units


def test_stoney_ridge_graphics_in_a_slot_do_not_matter():
    assert boot("6.1", PORT, {**NIC, "id": "1002:98e4"}).units


STRICT_LINE = "AMD-Vi: Using strict mode due to virtualization"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("cmdline", ["", "iommu.strict=0"])
def test_a_cache_of_absent_entries_makes_the_system_strict(kernel, cmdline):
    system = boot(kernel, hardware={"np_cache": True}, cmdline=cmdline)
    lazy = next(line for line in system.boot.log if "lazy mode" in line)
    assert system.boot.log.index(lazy) < system.boot.log.index(STRICT_LINE)
    assert system.devices["nic"].sysfs_type == "DMA"
    assert boot(kernel, hardware={"np_cache": True}, cmdline="iommu=pt").devices["nic"].sysfs_type == "identity"


def test_one_emulated_unit_is_enough():
    firmware = table(EVERYTHING, blocks=[table(select(0x4003), own=0x4002)["blocks"][0]])
    system = boot("6.1", firmware=firmware, hardware={"units": [{}, {"np_cache": True}]})
    assert system.boot.log.count(STRICT_LINE) == 1
    assert system.devices["nic"].sysfs_type == "DMA"


def test_before_5_15_the_cache_is_called_otherwise():
    assert "AMD-Vi: IOMMU batching is disabled due to virtualization" in boot("5.14", hardware={"np_cache": True}).boot.log
    assert not [line for line in boot("5.13", hardware={"np_cache": True}).boot.log if "virtualization" in line]


@pytest.mark.parametrize(
    ("kernel", "cmdline", "line"),
    [
        ("5.13", "", "AMD-Vi: Lazy IO/TLB flushing enabled"),
        ("5.13", "amd_iommu=fullflush", "AMD-Vi: IO/TLB flush on unmap enabled"),
        ("5.12", "", "AMD-Vi: Lazy IO/TLB flushing enabled"),
    ],
)
def test_before_5_14_the_driver_says_how_unmaps_are_flushed(kernel, cmdline, line):
    log = boot(kernel, cmdline=cmdline).boot.log
    assert line in log
    assert not [line for line in log if "invalidation policy" in line or "deprecated" in line]


@pytest.mark.parametrize("kernel", KERNELS)
def test_interrupts_need_the_south_bridge(kernel):
    system = boot(kernel, hardware={"interrupt_remapping": False}, cmdline="amd_iommu=irtcachedis")
    log = system.boot.log
    assert "AMD-Vi: Disabling interrupt remapping" in log
    assert "AMD-Vi: Interrupt remapping enabled" not in log
    assert not AMD.ops.capable(device=system.devices["nic"], capability="interrupt_remapping")
    # Then the hardware is enabled only after the policy has been printed.
    assert log.index("AMD-Vi: iommu0 (0x0002) : IRT cache is disabled") > log.index(
        next(line for line in log if line.startswith("iommu: "))
    )


def test_hardware_outranks_the_table():
    firmware = table(EVERYTHING, SOUTHBRIDGE)
    assert driver_of(boot("6.1", firmware=firmware)).interrupts_remapped
    assert not driver_of(boot("6.1", firmware=firmware, hardware={"interrupt_remapping": False})).interrupts_remapped


def test_a_special_device_of_unknown_kind_makes_the_driver_give_up():
    odd = {"kind": "special", "handle": 0, "source": 0xA0, "variety": 7}
    assert boot("6.1", firmware=table(EVERYTHING, SOUTHBRIDGE)).units
    system = boot("6.1", firmware=table(EVERYTHING, SOUTHBRIDGE, odd))
    assert (system.units, system.groups) == ([], {})


def test_a_block_without_ordinary_devices_makes_the_driver_give_up():
    system = boot("6.1", firmware=table(SOUTHBRIDGE))
    assert (system.units, system.groups) == ([], {})
    assert not [line for line in system.boot.log if line.startswith("AMD-Vi")]


# ---- features of the table and of the register -----------------------------------------------------------------------


def efr_line(system):
    return next(line for line in system.boot.log if "Using global" in line)


@pytest.mark.parametrize(
    ("firmware", "shown"),
    [
        (table(EVERYTHING), 0x29D3),
        # Without IVinfo EFRSup, in a legacy block, or without GASup the copy does not count.
        (table(EVERYTHING, info=0), 0),
        (table(EVERYTHING, type="ivhd10"), 0),
        (table(EVERYTHING, efr=0x29D3 & ~0x80), 0),
        (None, 0),
    ],
)
def test_when_the_tables_copy_counts(firmware, shown):
    assert efr_line(boot("6.1", firmware=firmware)) == f"AMD-Vi: Using global IVHD EFR:{shown:#x}, EFR2:0x0"


def test_naming_a_feature_makes_the_table_carry_it():
    assert efr_line(boot("6.1", hardware={"gio_sup": True})) == "AMD-Vi: Using global IVHD EFR:0x10000000029d3, EFR2:0x0"
    assert efr_line(boot("6.1", hardware={"gio_sup": True, "efr_sup": False})) == "AMD-Vi: Using global IVHD EFR:0x0, EFR2:0x0"


def test_a_register_that_differs_is_reported_and_loses():
    system = boot("6.1", firmware=table(EVERYTHING, SOUTHBRIDGE), hardware={"efr": 0xDB})
    assert "AMD-Vi: [Firmware Warn]: EFR mismatch. Use IVHD EFR (0xdb : 0x29d3), EFR2 (0x0 : 0x0)." in system.boot.log
    assert "AMD-Vi: Extended features (0x29d3, 0x0): PreF PPR GT IA GA HE" in system.boot.log


def test_an_unknown_register_is_not_shown():
    log = boot("6.1", firmware=table(EVERYTHING, SOUTHBRIDGE, type="ivhd10", feature_reporting=0x40)).boot.log
    assert not [line for line in log if "Extended features" in line or "Virtual APIC" in line]
    assert "AMD-Vi: Interrupt remapping enabled" in log


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ({"hats": 4}, "m, hardware: hats: at most 3 was expected, got 4"),
        ({"efr": "0xzz"}, "m, hardware: efr: a number or a 0x… text was expected, got '0xzz'"),
        ({"units": [{"cap": 1}]}, "m, hardware: units[0].cap: no such key"),
        ({"units": [{}, {}]}, "m, hardware: units: 2 IOMMUs are described, the machine has 1"),
        ({"np_cache": "perhaps"}, None),
    ],
    ids=case_id,
)
def test_values_that_cannot_be(hardware, message):
    with pytest.raises(InputError) as caught:
        boot("6.1", hardware=hardware)
    assert message is None or str(caught.value) == message
    assert "\n" not in str(caught.value)


def test_machines_of_other_vendors_are_not_taken():
    machine = Machine.model_validate({"machine": "m", "firmware": {"DMAR": {}}})
    with pytest.raises(NotApplicable, match="no IVRS"):
        read_platform(machine)


def test_options_of_other_vendors_are_not_taken():
    with pytest.raises(NotApplicable, match="caching_mode"):
        boot("6.1", hardware={"caching_mode": True})
