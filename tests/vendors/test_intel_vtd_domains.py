"""The VT-d driver's reserved regions and domains."""

from __future__ import annotations

import pytest

from iommukit.domain import DomainType
from iommukit.errors import IommuError, NotApplicable
from iommukit_intel_vtd.capabilities import SIZE_1G, SIZE_2M, Capabilities
from tests.vendors.intel_vtd import DISK, GPU, KERNELS, NEW, NIC, OPS, PORT, boot, dmar, drhd, rmrr, scope, two_units, types

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
