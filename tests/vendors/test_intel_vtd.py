"""The VT-d driver at boot: the command line, whether remapping is on, and what the units can do."""

from __future__ import annotations

import pytest

from iommukit.device import DmaOps
from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import new_boot_state
from iommukit.machine.model import BootSpec
from iommukit_intel_vtd.capabilities import Capabilities
from tests.vendors.intel_vtd import (
    DISK,
    FORCED,
    GPU,
    GRAPHICS_UNIT,
    INTEL,
    KERNELS,
    NIC,
    NO_BATCHING,
    OLD,
    OPS,
    OUTSIDE,
    PORT,
    READY,
    boot,
    dmar,
    drhd,
    scope,
    two_units,
    types,
)

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


@pytest.mark.parametrize(
    ("kernel", "on"), [("6.1", True), ("6.1.176", True), ("6.1.192", False), ("rfc", True), ("6.12", True), ("7.2", False)]
)
def test_the_platform_overruled_iommu_off_until_2026(kernel, on):
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
        ({"platform_opt_in": True}, GRAPHICS_UNIT, "hardware.platform_opt_in"),
        ({"host_address_width": 46}, GRAPHICS_UNIT, "hardware.host_address_width"),
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
