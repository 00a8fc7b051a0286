"""The AMD-Vi plugin: every rule of ``plugins/amd_vi/README.md``, on the real engine."""

from __future__ import annotations

import pytest

import iommukit_amd_vi
from iommukit.device import DmaOps
from iommukit.domain import DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import new_boot_state, start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import DmaApiPolicy
from iommukit.vendors import VendorRegistry
from iommukit_amd_vi.options import V1_PAGE_SIZES, V2_PAGE_SIZES, AmdOptions, amd_options
from iommukit_amd_vi.units import read_platform

REGISTRY = VendorRegistry()
AMD = REGISTRY.register(iommukit_amd_vi, "amd_vi")
KERNELS = ("6.1", "rfc", "6.12", "7.2")
OLD = ("6.1", "rfc")
NEW = ("6.12", "7.2")

NIC = {"name": "nic", "address": "0000:01:00.0", "id": "8086:10d3", "class": "020000", "parent": "port"}
PORT = {
    "name": "port",
    "address": "0000:00:01.1",
    "id": "1022:1483",
    "class": "060400",
    "kind": "root_port",
    "acs": ["SV", "RR", "CR", "UF"],
}
GPU = {
    "name": "gpu",
    "address": "0000:00:02.0",
    "id": "1002:1506",
    "class": "030000",
    "kind": "integrated_endpoint",
    "capabilities": ["ats", "pri", "pasid"],
}
DIRECT = {"start": 0x1FFDD000, "end": 0x1FFDDFFF, "type": "direct"}
MSI = "0x00000000fee00000 0x00000000feefffff msi"
HT = "0x000000fd00000000 0x000000ffffffffff reserved"


def _id(value):
    """A case's name, the same in every process whatever the order of a set."""
    return " ".join(sorted(value)) if isinstance(value, set | frozenset) else str(value)


def device(address, **more):
    return {"name": address, "address": f"0000:{address}", "id": "1022:149c", "kind": "integrated_endpoint", **more}


def boot(kernel, *devices, hardware=None, firmware=None, cmdline="", kconfig="lazy", encryption=False):
    machine = Machine.model_validate(
        {
            "machine": "m",
            "arch": "x86_64",
            "hardware": hardware or {},
            "firmware": {"IVRS": firmware} if firmware else {},
            "devices": devices or (PORT, NIC),
        }
    )
    spec = BootSpec(kconfig=kconfig, cmdline=cmdline, memory_encryption=encryption)
    return start_system(get_kernel(kernel), AMD, REGISTRY, machine, spec)


def driver_of(system):
    return system.units[0].state.driver


def table(*entries, type="ivhd11", own=0x0002, info=0x203041, efr=0x29D3, blocks=(), **more):
    """An IVRS with one unit."""
    image = {} if type == "ivhd10" else {"efr_image": efr}
    unit = {"kind": type, "device": own, "address": 0xFEB80000, "entries": entries, **image, **more}
    return {"info": info, "blocks": [unit, *blocks]}


def select(device):
    return {"kind": "select", "device": device}


def span(first, last):
    return [{"kind": "range_start", "device": first}, {"kind": "range_end", "device": last}]


EVERYTHING = {"kind": "all"}
SOUTHBRIDGE = {"kind": "special", "handle": 0, "source": 0xA0, "variety": "ioapic"}


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


# ---- page tables -----------------------------------------------------------------------------------------------------

ALL_64 = (1 << 64) - 1
CAPABLE_OF_V2 = {"guest_translation": True, "gio_sup": True}
REFUSED = "AMD-Vi: Cannot enable v2 page table for DMA-API. Fallback to v1."


@pytest.mark.parametrize(
    ("kernel", "hardware", "last", "sizes"),
    [
        *((kernel, {}, ALL_64, V1_PAGE_SIZES) for kernel in (*OLD, "6.12")),
        ("7.2", {"hats": 0}, (1 << 48) - 1, V1_PAGE_SIZES),
        ("7.2", {"hats": 1}, (1 << 57) - 1, V1_PAGE_SIZES),
        ("7.2", {"hats": 2}, ALL_64, V1_PAGE_SIZES),
        # The table carries no features, so that 7.2 assumes the least.
        ("7.2", {}, (1 << 48) - 1, V1_PAGE_SIZES),
    ],
)
def test_host_page_tables(kernel, hardware, last, sizes):
    system = boot(kernel, hardware=hardware)
    domain = system.devices["nic"].group.default_domain
    assert (domain.aperture, domain.page_sizes, domain.generic_pt) == ((0, last), sizes, kernel == "7.2")
    assert V1_PAGE_SIZES & (1 << 39) == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_guest_page_tables(kernel):
    system = boot(kernel, hardware=CAPABLE_OF_V2, cmdline="amd_iommu=pgtbl_v2")
    nic = system.devices["nic"]
    domain = nic.group.default_domain
    bits = 47 if kernel == "7.2" else 48
    assert (domain.aperture, domain.page_sizes) == ((0, (1 << bits) - 1), 1 << 12 | 1 << 21 | 1 << 30)
    paging = " (Paging mode : 4 level)" if kernel in NEW else ""
    assert f"AMD-Vi: V2 page table enabled{paging}" in system.boot.log
    unmanaged = AMD.ops.domain_alloc(device=nic, type=DomainType.UNMANAGED)
    assert unmanaged.page_sizes == (V2_PAGE_SIZES if kernel == "7.2" else V1_PAGE_SIZES)


@pytest.mark.parametrize("missing", ["guest_translation", "gio_sup"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_guest_page_tables_need_two_features(kernel, missing):
    system = boot(kernel, hardware={**CAPABLE_OF_V2, missing: False}, cmdline="amd_iommu=pgtbl_v2")
    assert system.boot.log.count(REFUSED) == 1
    assert system.devices["nic"].group.default_domain.page_sizes == V1_PAGE_SIZES
    after = system.boot.log.index(REFUSED) > system.boot.log.index(
        next(line for line in system.boot.log if line.startswith("iommu: "))
    )
    assert after is (kernel != "7.2")


@pytest.mark.parametrize(("kernel", "table_used"), [("6.1", 1), ("rfc", 1), ("6.12", 2), ("7.2", 2)])
def test_guest_page_tables_and_default_identity(kernel, table_used):
    system = boot(kernel, hardware=CAPABLE_OF_V2, cmdline="amd_iommu=pgtbl_v2 iommu=pt")
    assert driver_of(system).table == table_used
    line = "AMD-Vi: V2 page table doesn't support passthrough mode. Fallback to v1."
    assert (line in system.boot.log) is (table_used == 1)


@pytest.mark.parametrize(("kernel", "refused"), [("6.12", False), ("7.2", True)])
def test_7_2_looks_at_the_tables_copy_alone(kernel, refused):
    firmware = table(EVERYTHING, SOUTHBRIDGE, info=0x203040, efr=1 << 48 | 0x29D3)
    system = boot(kernel, firmware=firmware, cmdline="amd_iommu=pgtbl_v2")
    assert (REFUSED in system.boot.log) is refused


@pytest.mark.parametrize("cmdline", ["amd_iommu=nohugepages", "amd_iommu=v2_pgsizes_only"])
@pytest.mark.parametrize("kernel", NEW)
def test_page_sizes_limit_host_tables_only(kernel, cmdline):
    limit = 0x1000 if "nohuge" in cmdline else V2_PAGE_SIZES
    assert boot(kernel, cmdline=cmdline).devices["nic"].group.default_domain.page_sizes == limit
    guest = boot(kernel, hardware=CAPABLE_OF_V2, cmdline=f"{cmdline},pgtbl_v2")
    assert guest.devices["nic"].group.default_domain.page_sizes == V2_PAGE_SIZES


def test_7_2_gives_devices_with_pasids_guest_tables():
    alone = boot("7.2", GPU, device("00:03.0"), hardware=CAPABLE_OF_V2, cmdline="amd_iommu=force_isolation")
    assert alone.devices["gpu"].sysfs_type == "DMA-FQ"
    assert alone.devices["gpu"].group.default_domain.page_sizes == V2_PAGE_SIZES
    assert alone.devices["00:03.0"].group.default_domain.page_sizes == V1_PAGE_SIZES
    unable = boot("7.2", GPU, cmdline="amd_iommu=force_isolation")
    assert unable.devices["gpu"].group.default_domain.page_sizes == V1_PAGE_SIZES


def test_7_2_without_host_tables():
    line = "AMD-Vi: [Firmware Bug]: Disable host address translation due to invalid translation level (0x3)."
    guest = boot("7.2", hardware={**CAPABLE_OF_V2, "hats": 3})
    assert line in guest.boot.log
    assert guest.devices["nic"].group.default_domain.page_sizes == V2_PAGE_SIZES
    neither = boot("7.2", hardware={"hats": 3})
    assert neither.groups == {}
    assert neither.lines == ["AMD-Vi: amd_iommu_probe_device: DMA translation not supported by iommu."]


# ---- domains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "offered"),
    [
        ("6.1", {"BLOCKED", "UNMANAGED", "DMA", "DMA_FQ", "IDENTITY"}),
        ("rfc", {"BLOCKED", "UNMANAGED", "DMA", "IDENTITY"}),
        ("6.12", {"BLOCKED", "UNMANAGED", "DMA", "IDENTITY"}),
        ("7.2", {"BLOCKED", "UNMANAGED", "DMA", "IDENTITY"}),
    ],
)
def test_types_that_can_be_allocated(kernel, offered):
    nic = boot(kernel).devices["nic"]
    for name in offered:
        domain = AMD.ops.domain_alloc(device=nic, type=DomainType[name])
        assert domain.type is DomainType[name]
    if kernel in NEW:
        assert AMD.ops.domain_alloc(device=nic, type=DomainType.PLATFORM) is None


@pytest.mark.parametrize(
    ("kernel", "static"),
    [("6.1", set()), ("rfc", set()), ("6.12", {"BLOCKED"}), ("7.2", {"BLOCKED", "IDENTITY"})],
)
def test_static_domains(kernel, static):
    nic = boot(kernel).devices["nic"]
    for kind in (DomainType.BLOCKED, DomainType.IDENTITY, DomainType.DMA):
        first, second = (AMD.ops.domain_alloc(device=nic, type=kind) for _ in range(2))
        assert (first is second) is first.static is (kind.name in static)


@pytest.mark.parametrize("kernel", KERNELS)
def test_lazy_without_a_fallback(kernel):
    system = boot(kernel)
    assert system.devices["nic"].sysfs_type == "DMA-FQ"
    assert AMD.ops.prefer_dma_api_fq(device=system.devices["nic"]) is True
    assert system.devices["nic"].group.default_domain.flush_queue is not None


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_dma_api_is_set_up(kernel):
    assert boot(kernel).devices["nic"].dma_ops is DmaOps.IOMMU
    assert boot(kernel, cmdline="iommu=pt").devices["nic"].dma_ops is DmaOps.DIRECT


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_leaving_device_is_blocked_since_6_12(kernel):
    nic = boot(kernel).devices["nic"]
    assert AMD.ops.set_dev_blocked(device=nic) is (kernel in NEW)
    assert (nic.attached is None) is (kernel in NEW)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_device_comes_back(kernel):
    system = boot(kernel, PORT, NIC, hardware={"np_cache": True})
    nic = system.devices["nic"]
    system.kernel.remove(system, nic)
    assert (nic.vendor_state, nic.group) == (None, None)
    system.kernel.add(system, nic)
    assert nic.sysfs_type == "DMA"
    assert nic.attached is nic.group.default_domain


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kdump_kernel_waits_with_attaching(kernel):
    system = boot(kernel, hardware={"translation_pre_enabled": True})
    nic = system.devices["nic"]
    assert "AMD-Vi: Copied DEV table from previous kernel." in system.boot.log
    assert (nic.sysfs_type, nic.attached) == ("DMA-FQ", None)
    system.attach(nic, nic.group.default_domain)
    assert not AMD.ops.is_attach_deferred(device=nic)


def test_a_system_without_iommus_has_none_for_a_device():
    assert AMD.ops.probe_device(device=boot("6.1", cmdline="amd_iommu=off").devices["nic"], units=[]) is None


# ---- SEV-SNP ---------------------------------------------------------------------------------------------------------

SNP_CASES = [
    ("6.1", "", True, "SNP enabled"),
    ("6.1", "iommu=pt", False, "SNP: IOMMU is disabled or configured in passthrough mode, SNP cannot be supported"),
    ("6.1", "amd_iommu=pgtbl_v2", True, "Force to using AMD IOMMU v1 page table due to SNP"),
    *(
        case
        for kernel in NEW
        for case in (
            (kernel, "", True, "IOMMU SNP support enabled."),
            (kernel, "iommu=pt", False, "SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported."),
            (kernel, "amd_iommu=pgtbl_v2", False, "SNP: IOMMU is configured with V2 page table mode, SNP cannot be supported."),
        )
    ),
]


@pytest.mark.parametrize(("kernel", "cmdline", "on", "line"), SNP_CASES)
def test_snp_and_what_stands_in_its_way(kernel, cmdline, on, line):
    system = boot(kernel, hardware={**CAPABLE_OF_V2, "snp": True}, cmdline=cmdline)
    assert driver_of(system).snp is on
    assert f"AMD-Vi: {line}" in system.boot.log
    if on:
        assert driver_of(system).table == 1


@pytest.mark.parametrize("kernel", NEW)
def test_snp_needs_the_tables_copy_of_the_feature(kernel):
    system = boot(kernel, hardware={"snp": True, "efr_sup": False})
    assert not driver_of(system).snp
    assert "AMD-Vi: SNP: IOMMU SNP feature not enabled, SNP cannot be supported." in system.boot.log


@pytest.mark.parametrize(("kernel", "outcome"), [("6.1", "DMA"), ("6.12", "ENOMEM"), ("7.2", "EINVAL")])
def test_identity_under_snp(kernel, outcome):
    """6.1 falls back and reports success, 6.12 allocates nothing, 7.2 refuses to attach."""
    system = boot(kernel, hardware={"snp": True})
    group = system.devices["nic"].group
    if outcome == "DMA":
        system.kernel.write_type(system, group, "identity")
        assert group.sysfs_type == "DMA"
    else:
        with pytest.raises(IommuError, match=outcome):
            system.kernel.write_type(system, group, "identity")
        assert group.sysfs_type == "DMA-FQ"
        assert system.devices["nic"].attached is group.default_domain


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_device_requires_identity_under_snp(kernel):
    system = boot(kernel, GPU, hardware={"snp": True, "ppr": True, "guest_translation": True})
    assert AMD.ops.def_domain_type(device=system.devices["gpu"]) is DmaApiPolicy.ANY
    assert system.devices["gpu"].sysfs_type == "DMA-FQ"


# ---- what devices require --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "old", "new"),
    [
        (["ats", "pri", "pasid"], True, True),
        (["pasid"], False, True),
        (["ats", "pasid"], False, True),
        (["ats", "pri"], False, False),
        ([], False, False),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_which_capabilities_make_identity_required(kernel, capabilities, old, new):
    system = boot(kernel, {**GPU, "capabilities": capabilities})
    expected = DmaApiPolicy.IDENTITY if (new if kernel in NEW else old) else DmaApiPolicy.ANY
    assert AMD.ops.def_domain_type(device=system.devices["gpu"]) is expected


@pytest.mark.parametrize(
    ("more", "required"),
    [
        ({}, True),
        ({"hardware": {"guest_translation": False}}, False),
        ({"hardware": {"ppr": False}}, False),
        ({"encryption": True}, False),
        ({"cmdline": "amd_iommu=force_isolation"}, False),
        ({"cmdline": "amd_iommu=force_isolation iommu=pt"}, True),
        ({"cmdline": "amd_iommu=force_isolation", "kconfig": "passthrough"}, True),
        ({"cmdline": "iommu.strict=1"}, True),
    ],
    ids=_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_when_pasids_require_identity(kernel, more, required):
    system = boot(kernel, GPU, **more)
    answer = AMD.ops.def_domain_type(device=system.devices["gpu"])
    assert answer is (DmaApiPolicy.IDENTITY if required else DmaApiPolicy.ANY)


@pytest.mark.parametrize("kernel", KERNELS)
def test_pasids_below_an_external_port(kernel):
    """The old driver sees no ATS there; the newer one answers for untrusted devices itself."""
    external = {**PORT, "external_facing": True}
    system = boot(kernel, external, {**NIC, "capabilities": ["ats", "pri", "pasid"]}, cmdline="iommu=pt")
    nic = system.devices["nic"]
    assert nic.untrusted
    expected = DmaApiPolicy.STRICT if kernel in NEW else DmaApiPolicy.ANY
    assert AMD.ops.def_domain_type(device=nic) is expected
    assert (nic.sysfs_type, system.devices["port"].sysfs_type) == ("DMA", "identity")


def test_features_are_each_units_own_before_6_7_and_shared_later():
    both = [table(select(0x10), own=0x0002, efr=0x29D3), table(select(0x18), own=0x4002, efr=0x29C3 & ~0x10)]
    firmware = {"info": 1, "blocks": [entry["blocks"][0] for entry in both]}
    bug = "AMD-Vi: [Firmware Bug]: Found inconsistent EFR/EFR2 0x29c3,0x0 (global 0x29d3,0x0) on iommu1 (0000:40:00.2)."
    for kernel in KERNELS:
        system = boot(kernel, GPU, firmware=firmware)
        assert bug in system.boot.log
        answer = AMD.ops.def_domain_type(device=system.devices["gpu"])
        assert answer is (DmaApiPolicy.ANY if kernel in NEW else DmaApiPolicy.IDENTITY)


# ---- which devices have an IOMMU -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "covered"),
    [
        ([EVERYTHING], {"00:00.0", "00:01.0", "00:03.0", "00:14.0"}),
        ([select(0x08), select(0x18)], {"00:01.0", "00:03.0"}),
        (span(0x08, 0x18), {"00:01.0", "00:03.0"}),
        (span(0x03, 0xFFFE), {"00:01.0", "00:03.0", "00:14.0"}),
        ([SOUTHBRIDGE, select(0xA0)], {"00:14.0"}),
        # The highest id of a select, a range or an alias ends the driver's tables: special devices do not extend them.
        ([SOUTHBRIDGE, select(0x08)], {"00:01.0"}),
        ([{"kind": "alias_select", "device": 0x18, "source": 0x08}], {"00:01.0", "00:03.0"}),
        ([{"kind": "extended_select", "device": 0x18, "extended": 1 << 31}], {"00:03.0"}),
        (
            [{"kind": "alias_range_start", "device": 0x08, "source": 0x08}, {"kind": "range_end", "device": 0x18}],
            {"00:01.0", "00:03.0"},
        ),
        ([], set()),
    ],
    ids=_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_device_entries(kernel, entries, covered):
    devices = [device(at) for at in ("00:00.0", "00:00.2", "00:01.0", "00:03.0", "00:14.0")]
    system = boot(kernel, *devices, firmware=table(*entries))
    assert {d.name for d in system.devices.values() if d.unit} == covered
    assert {d.name for d in system.devices.values() if d.group} == covered


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_iommu_translates_for_itself(kernel):
    firmware = table(EVERYTHING, own=0x0008)
    assert boot(kernel, device("00:01.0"), device("00:00.2"), firmware=firmware).devices["00:01.0"].group is None


@pytest.mark.parametrize(
    ("types", "chosen"),
    [
        (["ivhd10"], 0x10),
        (["ivhd10", "ivhd11"], 0x11),
        (["ivhd10", "ivhd11", "ivhd40"], 0x40),
        # The last block of the first unit counts, not the highest type.
        (["ivhd40", "ivhd10"], 0x10),
    ],
)
def test_which_blocks_win(types, chosen):
    blocks = [table(select(0x08 * at), type=name)["blocks"][0] for at, name in enumerate(types, start=1)]
    names = [f"00:0{at}.0" for at in range(1, len(types) + 1)]
    system = boot("6.1", *map(device, names), firmware={"info": 1, "blocks": blocks})
    numbers = {"ivhd10": 0x10, "ivhd11": 0x11, "ivhd40": 0x40}
    expected = {name for name, kind in zip(names, types, strict=True) if numbers[kind] == chosen}
    assert {d.name for d in system.devices.values() if d.group} == expected


def test_a_later_unit_overrules_an_earlier_one():
    firmware = table(EVERYTHING, own=0x0002, blocks=table(*span(0x4003, 0x40FF), own=0x4002)["blocks"])
    system = boot("6.1", device("00:01.0"), device("40:00.2"), device("40:01.0"), firmware=firmware)
    assert {name: d.unit and d.unit.name for name, d in system.devices.items()} == {
        "00:01.0": "ivhd0",
        "40:00.2": None,
        "40:01.0": "ivhd1",
    }


def test_segments_have_their_own_tables():
    firmware = table(EVERYTHING, blocks=table(select(0x08), own=0x0010, segment=1)["blocks"])
    other = {"name": "s1", "address": "0001:00:01.0", "id": "1022:149c", "kind": "integrated_endpoint"}
    lost = {"name": "s2", "address": "0002:00:01.0", "id": "1022:149c", "kind": "integrated_endpoint"}
    system = boot("6.1", device("00:01.0"), other, lost, firmware=firmware)
    assert [system.devices[name].unit and system.devices[name].unit.name for name in ("00:01.0", "s1", "s2")] == [
        "ivhd0",
        "ivhd1",
        None,
    ]


def test_without_a_table_every_function_but_the_iommu_is_covered():
    own = {**device("00:01.0", id="1022:0008"), "class": "080600"}
    system = boot("6.1", device("00:00.0"), own, device("00:00.2"), cmdline="amd_iommu=irtcachedis")
    assert {d.name for d in system.devices.values() if d.group} == {"00:00.0", "00:00.2"}
    assert "AMD-Vi: iommu0 (0x0008) : IRT cache is disabled" in system.boot.log


# ---- groups ----------------------------------------------------------------------------------------------------------


def alias(device, source):
    return {"kind": "alias_select", "device": device, "source": source}


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_alias_on_the_same_bus_groups(kernel):
    entries = [*span(0x08, 0xFFFE), alias(0x18, 0x08)]
    system = boot(kernel, device("00:01.0"), device("00:02.0"), device("00:03.0"), firmware=table(*entries))
    groups = {frozenset(member.name for member in group.devices) for group in system.groups.values()}
    assert groups == {frozenset({"00:01.0", "00:03.0"}), frozenset({"00:02.0"})}


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_alias_on_another_bus_does_not(kernel):
    entries = [*span(0x08, 0xFFFE), alias(0x0100, 0x18)]
    system = boot(kernel, PORT, NIC, device("00:03.0"), firmware=table(*entries))
    assert len(system.groups) == 3


def test_an_alias_makes_its_target_a_covered_device():
    """Probing a device makes its IOMMU serve the ids that it uses; a device met later under such an id has an IOMMU."""
    entries = [select(0x10), select(0xFFFF)]
    alone = boot("6.1", device("00:02.0"), device("00:03.0"), firmware=table(*entries))
    assert alone.devices["00:03.0"].group is None
    quirky = device("00:02.0", dma_aliases=["03.0"])
    shared = boot("6.1", quirky, device("00:03.0"), firmware=table(*entries))
    assert shared.devices["00:03.0"].group is shared.devices["00:02.0"].group is not None


def acpi(name, hid="AMDI0020", uid="ID00"):
    return {"name": name, "address": f"{hid}:{name}", "kind": "platform", "attributes": {"hid": hid, "uid": uid}}


def hid(device, uid="", hid="AMDI0020"):
    return {"kind": "acpi_hid", "device": device, "hid": hid, "uid_format": "string" if uid else "none", "uid": uid}


@pytest.mark.parametrize("kernel", KERNELS)
def test_acpi_devices_of_one_requester_id_share_a_group(kernel):
    entries = [EVERYTHING, hid(0xA5, "ID00"), hid(0xA5, "ID01"), hid(0xA6, "ID02")]
    devices = [acpi(f"u{n}", uid=f"ID0{n}") for n in range(4)]
    system = boot(kernel, *devices, firmware=table(*entries, type="ivhd40"))
    assert system.devices["u0"].group is system.devices["u1"].group is not None
    assert system.devices["u2"].group not in (None, system.devices["u0"].group)
    assert system.devices["u3"].group is None
    root = "0xa0" if kernel == "7.2" else "160"
    assert f"AMD-Vi: ivrs, add hid:AMDI0020, uid:ID00, rdevid:{root}" in system.boot.log


def test_acpi_devices_are_only_read_from_type_40():
    system = boot("6.1", acpi("u0"), firmware=table(EVERYTHING, hid(0xA5, "ID00"), type="ivhd11"))
    assert system.devices["u0"].group is None


def test_an_entry_without_a_unique_id_is_for_all():
    system = boot("6.1", acpi("u0"), acpi("u1", uid="X"), firmware=table(EVERYTHING, hid(0xA5), type="ivhd40"))
    assert system.devices["u0"].group is system.devices["u1"].group is not None


def test_a_numeric_unique_id_counts_by_its_first_byte():
    entry = {**hid(0xA5), "uid_format": "integer", "uid": "hex:0300000000000000"}
    system = boot("6.1", acpi("u3", uid=3), acpi("u4", uid=4), firmware=table(EVERYTHING, entry, type="ivhd40"))
    assert (system.devices["u3"].group is None, system.devices["u4"].group is None) == (False, True)


@pytest.mark.parametrize(("entries", "found"), [(1, NEW), (2, ())])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_only_entry_of_a_hardware_id_is_taken_since_6_12(kernel, entries, found):
    named = [hid(0xA5, f"\\_SB.FUR{n}") for n in range(entries)]
    system = boot(kernel, acpi("u0"), firmware=table(EVERYTHING, *named, type="ivhd40"))
    assert (system.devices["u0"].group is not None) is (kernel in found)
    plural = "s" if entries > 1 else ""
    complaint = f"AMD-Vi: [Firmware Bug]: No ACPI device matched UID, but {entries} device{plural} matched HID."
    assert system.lines.count(f"platform AMDI0020:u0: {complaint}") == (kernel in NEW)


# ---- reserved regions ------------------------------------------------------------------------------------------------


def regions(system, name):
    return [region.sysfs for region in system.group_regions(system.devices[name].group)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_of_every_device(kernel):
    assert regions(boot(kernel), "nic") == [MSI, HT]


def memory(kind, flags, start=0x7000000, length=0x2000, **more):
    return {"kind": kind, "flags": flags, "start": start, "length_bytes": length, **more}


UNITY = ["unity", "read", "write"]


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        (memory("ivmd_all", UNITY), {"00:01.0", "00:02.0", "00:03.0"}),
        (memory("ivmd_single", UNITY, device=0x10), {"00:02.0"}),
        (memory("ivmd_range", UNITY, device=0x08, last_device=0x10), {"00:01.0", "00:02.0"}),
        (memory("ivmd_all", ["read", "write"]), set()),
        (memory("ivmd_all", UNITY, length=0), set()),
        # The driver takes an exclusion range for a unity map.
        (memory("ivmd_single", ["exclusion"], device=0x18), {"00:03.0"}),
        # It reads the segment from bytes that the specification reserves.
        (memory("ivmd_all", UNITY, reserved=1), set()),
    ],
    ids=_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_definitions(kernel, definition, named):
    names = ("00:01.0", "00:02.0", "00:03.0")
    system = boot(kernel, *map(device, names), firmware=table(EVERYTHING, blocks=[definition]))
    line = "0x0000000007000000 0x0000000007001fff direct"
    for name in names:
        assert regions(system, name) == ([line] if name in named else []) + [MSI, HT]
        expected = {(0x7000000, 0x7001FFF)} if name in named else set()
        assert system.devices[name].group.default_domain.direct == expected


@pytest.mark.parametrize(
    ("start", "length", "line"),
    [
        (0x7000001, 0x1000, "0x0000000007001000 0x0000000007001fff direct"),
        (0x7000000, 0x1001, "0x0000000007000000 0x0000000007001fff direct"),
    ],
)
def test_memory_definitions_are_rounded_up(start, length, line):
    definition = memory("ivmd_all", UNITY, start, length)
    system = boot("6.1", device("00:01.0"), firmware=table(EVERYTHING, blocks=[definition]))
    assert regions(system, "00:01.0")[0] == line


@pytest.mark.parametrize("firmware", [None, table(EVERYTHING)])
def test_a_machine_files_direct_region(firmware):
    system = boot("6.1", device("00:01.0", reserved=[DIRECT]), device("00:02.0"), firmware=firmware)
    assert regions(system, "00:01.0")[0] == "0x000000001ffdd000 0x000000001ffddfff direct"
    assert regions(system, "00:02.0") == [MSI, HT]


@pytest.mark.parametrize(
    ("kind", "reason"), [("direct-relaxable", "no relaxable regions"), ("reserved", "never mapped"), ("msi", "fixed")]
)
def test_regions_that_no_table_expresses(kind, reason):
    with pytest.raises(NotApplicable, match=reason):
        boot("6.1", device("00:01.0", reserved=[{**DIRECT, "type": kind}]))


def test_the_interrupt_window_may_be_named():
    window = {"start": 0xFEE00000, "end": 0xFEEFFFFF, "type": "msi"}
    assert regions(boot("6.1", device("00:01.0", reserved=[window])), "00:01.0") == [MSI, HT]


# ---- capabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "hardware", "kernels"),
    [
        ("cache_coherency", {}, KERNELS),
        ("interrupt_remapping", {}, KERNELS),
        ("interrupt_remapping", {"interrupt_remapping": False}, ()),
        ("noexec", {}, ()),
        ("pre_boot_protection", {}, ()),
        ("pre_boot_protection", {"dma_remap": True}, KERNELS),
        ("deferred_flush", {}, ("6.12",)),
        ("enforce_cache_coherency", {}, NEW),
        ("dirty_tracking", {}, ()),
        ("dirty_tracking", {"hd_sup": True}, NEW),
        ("made_up", {}, ()),
    ],
    ids=_id,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_capabilities(kernel, capability, hardware, kernels):
    nic = boot(kernel, hardware=hardware).devices["nic"]
    assert AMD.ops.capable(device=nic, capability=capability) is (kernel in kernels)


@pytest.mark.parametrize(("type", "info", "protected"), [("ivhd11", 3, True), ("ivhd11", 1, False), ("ivhd10", 3, False)])
def test_pre_boot_protection_of_a_table(type, info, protected):
    """Only with the newer blocks does the driver look."""
    nic = boot("6.1", firmware=table(EVERYTHING, type=type, info=info)).devices["nic"]
    assert AMD.ops.capable(device=nic, capability="pre_boot_protection") is protected


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
    ids=_id,
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
