"""AMD-Vi domains: table formats, page sizes, apertures, SEV-SNP and capabilities, by driver generation."""

from __future__ import annotations

import pytest

from iommukit.device import DmaOps
from iommukit.domain import DomainType
from iommukit.errors import IommuError
from iommukit.policy import DmaApiPolicy
from iommukit_amd_vi.options import V1_PAGE_SIZES, V2_PAGE_SIZES
from tests.vendors.amd_vi import (
    AMD,
    EVERYTHING,
    GPU,
    KERNELS,
    NEW,
    NIC,
    OLD,
    PORT,
    SOUTHBRIDGE,
    boot,
    case_id,
    device,
    driver_of,
    table,
)

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
    ids=case_id,
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
