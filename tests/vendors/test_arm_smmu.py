"""The Arm plugin: every rule of ``plugins/arm_smmu/README.md`` but the tables, on the real engine."""

from __future__ import annotations

import pytest

import iommukit_arm_smmu
from iommukit.domain import DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.vendors import VendorRegistry
from iommukit_arm_smmu.options import unattached_streams_fault
from iommukit_arm_smmu.streams import QCOM_CLIENTS

REGISTRY = VendorRegistry()
ARM = REGISTRY.register(iommukit_arm_smmu, "arm_smmu")
KERNELS = ("6.1", "rfc", "6.12", "7.2")
NIC = {"name": "nic", "id": "8086:10d3", "class": "020000", "kind": "integrated_endpoint"}
BRIDGED = (
    {"name": "bridge", "address": "0000:00:08.0", "kind": "pcie_to_pci_bridge", "buses": "03"},
    {"name": "one", "address": "0000:03:01.0", "kind": "conventional", "parent": "bridge"},
    {"name": "two", "address": "0000:03:02.0", "kind": "conventional", "parent": "bridge"},
)
V2 = {"version": 2}


def platform(name, **attributes):
    return {"name": name, "address": name, "kind": "platform", "attributes": attributes}


def boot(kernel, *devices, hardware=None, cmdline="", kconfig="lazy", drivers="loaded", config=None):
    machine = Machine.model_validate(
        {"machine": "board", "arch": "aarch64", "hardware": hardware or {}, "devices": devices or (NIC,)}
    )
    spec = BootSpec(kconfig=kconfig, cmdline=cmdline, drivers=drivers, config=config or {})
    return start_system(get_kernel(kernel), ARM, REGISTRY, machine, spec)


def members(system):
    return {number: names for number, _, names in system.snapshot()}


def types(system):
    return [kind for _, kind, _ in system.snapshot()]


def probe_error(system, name):
    with pytest.raises(IommuError) as refused:
        system.vendor.ops.probe_device(device=system.devices[name], units=system.units)
    return refused.value


# ---- units -----------------------------------------------------------------------------------------------------------

UNITS = [
    # hardware, described by, names
    ({}, ["smmu3.0x0000000009050000"], "9050000.smmuv3"),
    ({"described_by": "acpi"}, ["smmu3.0x0000000009050000"], "arm-smmu-v3.0.auto"),
    ({"version": 2, "base": 0x5000_0000}, ["smmu.0x0000000050000000"], "50000000.smmu"),
    ({"version": 2, "described_by": "acpi"}, ["smmu.0x0000000009050000"], "arm-smmu.0.auto"),
]


@pytest.mark.parametrize(("hardware", "names", "device"), UNITS)
def test_unit_names(hardware, names, device):
    system = boot("6.12", hardware=hardware)
    assert [unit.name for unit in system.units] == names
    assert system.units[0].state.facts.device == device


def test_each_pci_segment_has_a_unit():
    devices = [{**NIC, "name": f"nic{n}", "address": f"{n:04x}:00:04.0"} for n in (0, 3)]
    system = boot("7.2", *devices)
    assert [unit.name[-9:] for unit in system.units] == ["009050000", "009070000"]
    assert [system.devices[f"nic{n}"].unit for n in (0, 3)] == system.units


LINES = [
    # kernel, hardware, lines of the first unit without the prefix
    ("6.1", {}, "ias 44-bit, oas 44-bit (features 0x00008305)"),
    ("6.12", {}, "ias 44-bit, oas 44-bit (features 0x00008305)"),
    ("7.2", {}, "oas 44-bit (features 0x01008305)"),
    ("6.1", {"coherent_walk": False, "stages": [2], "ias": 40}, "ias 40-bit, oas 44-bit (features 0x00008405)"),
]


@pytest.mark.parametrize(("kernel", "hardware", "line"), LINES)
def test_lines_at_boot(kernel, hardware, line):
    prefix = "arm-smmu-v3 9050000.smmuv3: "
    lines = [entry.removeprefix(prefix) for entry in boot(kernel, hardware=hardware).boot.log if prefix in entry]
    assert lines == [line, "allocated 65536 entries for cmdq", "allocated 32768 entries for evtq"]


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        ({"legacy_binding": True}, "SMMUv3 has no legacy_binding"),
        ({"implementation": "qcom"}, "SMMUv3 has no implementation"),
        ({"version": 2, "canwbs": True}, "SMMUv2 has no canwbs"),
    ],
)
def test_options_of_the_other_version_do_not_apply(hardware, reason):
    with pytest.raises(NotApplicable, match=reason):
        boot("6.12", hardware=hardware)


@pytest.mark.parametrize(
    ("hardware", "place"),
    [({"version": 1}, "version"), ({"granules": ["8K"]}, r"granules\[0\]"), ({"sid_bits": 33}, "sid_bits")],
)
def test_bad_options_are_named(hardware, place):
    with pytest.raises(InputError, match=f"^board: hardware: {place}: "):
        boot("6.12", hardware=hardware)


def test_every_hardware_option_is_explained():
    assert all(text and "\n" not in text for text in ARM.declaration.hardware_options.values())


# ---- when devices meet their unit ------------------------------------------------------------------------------------

MEETS = [
    # kernel, hardware, before any driver
    ("6.1", {}, False),
    ("rfc", {}, False),
    ("6.12", {}, False),
    ("7.2", {}, True),
    ("6.1", V2, False),
    ("7.2", V2, True),
    ("6.1", {"version": 2, "legacy_binding": True}, True),
]


@pytest.mark.parametrize(("kernel", "hardware", "early"), MEETS)
def test_before_72_devices_meet_their_unit_at_bind(kernel, hardware, early):
    system = boot(kernel, hardware=hardware, drivers="none")
    device = system.devices["nic"]
    assert (device.group is not None) is early
    system.kernel.bind(system, device, "e1000e", managed=None)
    assert device.group is not None


@pytest.mark.parametrize("kernel", ["6.1", "rfc", "6.12"])
def test_group_numbers_follow_the_order_of_binding(kernel):
    system = boot(kernel, {**NIC, "name": "a"}, {**NIC, "name": "b"}, drivers="none")
    for name in ("b", "a"):
        system.kernel.bind(system, system.devices[name], "e1000e", managed=None)
    assert [system.devices[name].group.id for name in ("b", "a")] == [0, 1]


ACS = [
    # kernel, hardware, whether access control was asked for in time
    ("6.1", {}, False),
    ("6.12", {}, False),
    ("7.2", {}, True),
    ("6.1", {"described_by": "acpi"}, True),
]


@pytest.mark.parametrize(("kernel", "hardware", "asked"), ACS)
def test_access_control_is_asked_for_by_iort_or_since_72(kernel, hardware, asked):
    assert boot(kernel, hardware=hardware).boot.acs_requested is asked


# ---- stream ids: SMMUv3 ----------------------------------------------------------------------------------------------

ALIASING = "Aliasing StreamID 0x300 (from 0000:03:01.0) unsupported, expect DMA to be broken"
IN_TREE = "stream 768 already in tree from dev 0000:03:01.0"


@pytest.mark.parametrize(
    ("kernel", "errno", "line"),
    [("6.1", "EINVAL", IN_TREE), ("6.12", "EINVAL", IN_TREE), ("7.2", "ENODEV", ALIASING)],
)
def test_the_second_device_behind_a_bridge_has_no_iommu(kernel, errno, line):
    system = boot(kernel, *BRIDGED)
    assert members(system) == {0: ("0000:00:08.0", "0000:03:01.0")}
    assert f"pci 0000:03:02.0: {line}" in system.lines
    assert probe_error(system, "two").name == errno
    assert system.devices["two"].dma_works() is False


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_whoever_binds_first_has_the_stream(kernel):
    system = boot(kernel, *BRIDGED, drivers="none")
    for name in ("two", "one"):
        system.kernel.bind(system, system.devices[name], "pci-stub", managed=None)
    assert members(system) == {0: ("0000:03:02.0",)}
    assert "pci-stub 0000:03:01.0: stream 768 already in tree from dev 0000:03:02.0" in system.lines


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_removed_device_frees_its_stream(kernel):
    system = boot(kernel, *BRIDGED)
    for name in ("one", "two"):
        system.kernel.remove(system, system.devices[name])
    system.kernel.add(system, system.devices["two"])
    system.kernel.bind(system, system.devices["two"], "pci-stub", managed=None)
    assert members(system)[0] == ("0000:00:08.0", "0000:03:02.0")


def test_an_id_beyond_the_table():
    system = boot("7.2", {**NIC, "address": "0000:80:00.0"}, hardware={"sid_bits": 15})
    assert system.groups == {}
    assert probe_error(system, "nic").name == "ERANGE"


@pytest.mark.parametrize("kernel", KERNELS)
def test_platform_devices_are_alone_and_cannot_share_a_stream_on_v3(kernel):
    system = boot(kernel, platform("a", stream_ids=[7]), platform("b", stream_ids=[7, 8]), platform("c"))
    assert members(system) == {0: ("a",), 1: ("c",)}


def test_a_device_that_firmware_gives_no_stream_has_no_iommu():
    assert boot("7.2", platform("a", stream_ids=[])).groups == {}


@pytest.mark.parametrize("ids", ["seven", [1 << 32], [True], [-1]])
def test_bad_stream_ids_are_named(ids):
    with pytest.raises(InputError, match=r"^board: devices\[0\].attributes.stream_ids: "):
        boot("7.2", platform("a", stream_ids=ids))


# ---- stream ids: SMMUv2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_v2_the_second_device_behind_a_bridge_shares_the_group(kernel):
    assert list(members(boot(kernel, *BRIDGED, hardware=V2)).values()) == [("0000:00:08.0", "0000:03:01.0", "0000:03:02.0")]


MASKED = 0x00F0_0000
SHARING = [
    # stream ids of each platform device in order, groups by member
    ([[1], [2]], ["a", "b"]),
    ([[1], [1]], ["ab"]),
    ([[1, 2], [3, 2], [2]], ["abc"]),
    # An entry covers ids inside its mask.
    ([[MASKED | 0x100], [0x120]], ["ab"]),
    # Only the last entry counts: a group found before is forgotten where the last entry has none,
    ([[1], [1, 2]], ["a", "b"]),
    # and a device that joins by its last entry does not write the group to the others.
    ([[1], [2, 1], [2]], ["ab", "c"]),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("ids", "groups"), SHARING)
def test_v2_devices_that_share_an_entry_share_a_group(kernel, ids, groups):
    devices = [platform(name, stream_ids=own) for name, own in zip("abc", ids, strict=False)]
    assert ["".join(names) for names in members(boot(kernel, *devices, hardware=V2)).values()] == groups


REFUSED = [
    # ids, hardware, errno of the last device, line
    # Two entries with different groups.
    ([[1], [2], [1, 2]], {}, "EINVAL", None),
    # A wider match than an entry's is no inclusion.
    ([[0x120], [MASKED | 0x100]], {}, "EINVAL", None),
    ([[1], [2], [3]], {"mapping_groups": 2}, "ENOSPC", None),
    ([[0x200]], {"sid_bits": 9}, "EINVAL", "stream ID 0x200 out of range for SMMU (0x1ff)"),
    ([[0x0200_0001]], {"sid_bits": 9}, "EINVAL", "SMR mask 0x200 out of range for SMMU (0x1ff)"),
]


@pytest.mark.parametrize("kernel", ["6.1", "7.2"])
@pytest.mark.parametrize(("ids", "hardware", "errno", "line"), REFUSED)
def test_v2_refusals(kernel, ids, hardware, errno, line):
    devices = [platform(name, stream_ids=own) for name, own in zip("abc", ids, strict=False)]
    system = boot(kernel, *devices, hardware=V2 | hardware)
    last = "abc"[len(ids) - 1]
    assert system.devices[last].group is None
    assert system.devices[last].unit is None
    assert len(system.groups) == len(ids) - 1
    if line:
        assert f"platform {last}: {line}" in system.lines
    if ids[-1] != [1, 2]:
        assert probe_error(system, last).name == errno


def test_v2_two_groups_are_refused_by_the_group_hook():
    system = boot(
        "6.12", *(platform(name, stream_ids=[n]) for n, name in enumerate("ab")), platform("c", stream_ids=[0, 1]), hardware=V2
    )
    device = system.devices["c"]
    device.unit = system.vendor.ops.probe_device(device=device, units=system.units)
    with pytest.raises(IommuError) as refused:
        system.vendor.ops.device_group(device=device)
    assert refused.value.name == "EINVAL"
    assert device not in system.units[0].state.streams.claims


def test_v2_an_unused_entry_forgets_its_group():
    system = boot("7.2", platform("a", stream_ids=[1]), platform("b", stream_ids=[2]), hardware=V2)
    system.kernel.remove(system, system.devices["a"])
    assert list(system.units[0].state.streams.claims) == [system.devices["b"]]


@pytest.mark.parametrize(("version", "groups"), [(2, [("dprc", "dpni"), ("dpmac",)]), (3, [("dprc",), ("dpni",), ("dpmac",)])])
def test_fsl_mc_devices_live_in_their_containers_group_on_v2(version, groups):
    devices = (
        platform("dprc", bus="fsl-mc"),
        platform("dpni", bus="fsl-mc", container="dprc"),
        platform("dpmac", bus="fsl-mc"),
    )
    assert list(members(boot("6.12", *devices, hardware={"version": version})).values()) == groups


# ---- policy ----------------------------------------------------------------------------------------------------------

PTT = {"name": "ptt", "id": "19e5:a12e", "class": "ff0000", "kind": "integrated_endpoint"}
QCOM = {"version": 2, "implementation": "qcom"}
REQUIRED = [
    # hardware, device, eras with identity
    ({}, PTT, KERNELS),
    (V2, PTT, ()),
    ({}, NIC, ()),
    ({"version": 2, "legacy_binding": True}, NIC, KERNELS),
    (QCOM, platform("gpu", compatible=["qcom,adreno-630.2", "qcom,adreno"]), KERNELS),
    (QCOM, platform("gmu", compatible="qcom,adreno-gmu"), KERNELS),
    (QCOM, platform("display", compatible="qcom,sm8150-mdss"), ("6.12", "7.2")),
    (QCOM, platform("display", compatible="qcom,sar2130p-mdss"), ("7.2",)),
    (QCOM, platform("video", compatible="qcom,sc7280-venus"), ()),
    ({"version": 2, "implementation": "nvidia"}, platform("gpu", compatible="qcom,adreno"), ()),
    (V2, platform("gpu", compatible="qcom,adreno"), ()),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("hardware", "device", "kernels"), REQUIRED)
def test_required_identity(kernel, hardware, device, kernels):
    system = boot(kernel, device, hardware=hardware)
    answer = system.vendor.ops.def_domain_type(device=system.devices[device["name"]])
    wanted = DmaApiPolicy.IDENTITY if kernel in kernels else DmaApiPolicy.ANY
    assert answer is wanted
    assert types(system) == ["identity" if kernel in kernels else "DMA-FQ"]


def test_the_list_of_qualcomm_clients_grows():
    lengths = [sum(since <= era for since in QCOM_CLIENTS.values()) for era in (Era.V6_1, Era.V6_12, Era.V7_2)]
    assert lengths == [12, 19, 22]


CAPABLE = [
    # kernel, hardware, attributes, capabilities that hold
    ("6.1", {}, {}, {"cache_coherency", "noexec"}),
    ("6.1", {"coherent_walk": False}, {"dma_coherent": True}, {"noexec"}),
    ("6.12", {}, {}, {"cache_coherency", "noexec", "deferred_flush"}),
    ("6.12", {"dirty_state": True}, {}, {"cache_coherency", "noexec", "deferred_flush", "dirty_tracking"}),
    ("6.12", {"dirty_state": True, "coherent_walk": False}, {}, {"noexec", "deferred_flush"}),
    ("6.12", {"canwbs": True}, {}, {"cache_coherency", "noexec", "deferred_flush"}),
    ("7.2", {"canwbs": True}, {}, {"cache_coherency", "noexec", "deferred_flush", "enforce_cache_coherency"}),
    ("6.1", V2 | {"coherent_walk": False}, {}, {"noexec"}),
    ("6.1", V2 | {"coherent_walk": False}, {"dma_coherent": True}, {"cache_coherency", "noexec"}),
    ("7.2", V2, {}, {"cache_coherency", "noexec", "deferred_flush"}),
]
ASKED = (
    "cache_coherency",
    "deferred_flush",
    "interrupt_remapping",
    "noexec",
    "pre_boot_protection",
    "enforce_cache_coherency",
    "dirty_tracking",
)


@pytest.mark.parametrize(("kernel", "hardware", "attributes", "expected"), CAPABLE)
def test_capabilities(kernel, hardware, attributes, expected):
    system = boot(kernel, {**NIC, "attributes": attributes}, hardware=hardware)
    device = system.devices["nic"]
    ops = system.vendor.ops
    assert {name for name in ASKED if ops.capable(device=device, capability=name)} == expected
    assert ops.prefer_dma_api_fq(device=device) is True


# ---- domains ---------------------------------------------------------------------------------------------------------

ALLOCATED = {DomainType.UNMANAGED, DomainType.DMA, DomainType.DMA_FQ, DomainType.IDENTITY}
LEGACY = {"version": 2, "legacy_binding": True}
OFFERED = [
    # kernel, hardware, offered types
    ("6.1", {}, ALLOCATED),
    ("6.1", V2, ALLOCATED),
    ("6.1", LEGACY, {DomainType.UNMANAGED, DomainType.IDENTITY}),
    ("rfc", {}, ALLOCATED),
    ("6.12", {}, ALLOCATED | {DomainType.BLOCKED}),
    ("6.12", LEGACY, ALLOCATED | {DomainType.BLOCKED}),
    ("7.2", V2, ALLOCATED | {DomainType.BLOCKED}),
]


@pytest.mark.parametrize("kind", list(DomainType))
@pytest.mark.parametrize(("kernel", "hardware", "offered"), OFFERED)
def test_domains_offered(kernel, hardware, offered, kind):
    system = boot(kernel, hardware=hardware)
    device = system.devices["nic"]
    domain = system.alloc(device, kind)
    assert (domain is not None) is (kind in offered)
    if domain is not None:
        static = system.boot.era >= Era.V6_12 and kind in (DomainType.IDENTITY, DomainType.BLOCKED)
        assert domain.type is kind
        assert domain.static is static
        assert (system.alloc(device, kind) is domain) is static


FORMATS = [
    # hardware, page sizes, address bits
    ({}, 0x1000 | 1 << 21 | 1 << 30, 48),
    ({"va_bits": 39}, 0x1000 | 1 << 21 | 1 << 30, 39),
    ({"va_bits": 52}, 0x1000 | 1 << 21 | 1 << 30, 48),
    ({"stages": [2], "ias": 40}, 0x1000 | 1 << 21 | 1 << 30, 40),
    ({"stages": [1, 2], "ias": 40}, 0x1000 | 1 << 21 | 1 << 30, 48),
    ({"granules": ["16K", "64K"]}, 0x4000 | 1 << 25, 48),
    ({"granules": ["64K"], "va_bits": 52}, 0x1_0000 | 1 << 29, 52),
    ({"granules": ["64K"], "oas": 52}, 0x1_0000 | 1 << 29 | 1 << 42, 48),
    (V2, 0x1000 | 1 << 21 | 1 << 30, 48),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("hardware", "page_sizes", "bits"), FORMATS)
def test_format_of_an_attached_domain(kernel, hardware, page_sizes, bits):
    system = boot(kernel, hardware=hardware)
    domain = system.groups[0].default_domain
    assert domain is not None
    assert (domain.page_sizes, domain.aperture) == (page_sizes, (0, (1 << bits) - 1))


@pytest.mark.parametrize(
    ("granules", "expected"),
    # With kernels of 4, 16 and 64 KiB pages (arm_lpae_restrict_pgsizes).
    [
        (["4K", "16K", "64K"], ["4K", "16K", "64K"]),
        (["4K", "64K"], ["4K", "4K", "64K"]),
        (["16K", "64K"], ["16K", "16K", "64K"]),
        (["4K", "16K"], ["4K", "16K", "16K"]),
        (["64K"], ["64K", "64K", "64K"]),
    ],
)
def test_the_granule_is_the_kernel_s_page_size_where_it_can_be(granules, expected):
    for option, granule in zip((None, "ARM64_16K_PAGES", "ARM64_64K_PAGES"), expected, strict=True):
        system = boot("7.2", hardware={"granules": granules}, config={option: True} if option else {})
        page_sizes = system.groups[0].default_domain.page_sizes
        assert page_sizes & -page_sizes == int(granule[:-1]) << 10


@pytest.mark.parametrize(
    ("kernel", "hardware", "settled"), [("6.1", {}, False), ("6.12", {}, True), ("6.12", V2, False), ("7.2", {}, True)]
)
def test_who_settles_the_format(kernel, hardware, settled):
    system = boot(kernel, hardware=hardware)
    domain = system.alloc(system.devices["nic"], DomainType.UNMANAGED)
    assert domain is not None
    assert (domain.unit is not None) is settled


@pytest.mark.parametrize(
    ("kernel", "hardware", "errno"),
    [("6.1", {}, "ENXIO"), ("6.1", V2, "EINVAL"), ("6.12", {}, "EINVAL"), ("7.2", V2, "EINVAL")],
)
def test_a_domain_belongs_to_one_unit(kernel, hardware, errno):
    devices = [{**NIC, "name": f"nic{n}", "address": f"{n:04x}:00:04.0"} for n in (0, 1)]
    system = boot(kernel, *devices, hardware=hardware)
    first, second = system.devices.values()
    domain, before = first.group.default_domain, second.attached
    with pytest.raises(IommuError) as refused:
        system.attach(second, domain)
    assert refused.value.name == errno
    assert second.attached is before


@pytest.mark.parametrize("kernel", KERNELS)
def test_writes_change_the_type(kernel):
    system = boot(kernel)
    group = system.groups[0]
    for keyword in ("identity", "DMA", "DMA-FQ", "auto"):
        system.kernel.write_type(system, group, keyword)
        assert group.sysfs_type == ("DMA-FQ" if keyword == "auto" else keyword)


def test_61_legacy_binding_has_no_translated_default():
    system = boot("6.1", hardware=LEGACY, cmdline="iommu.passthrough=0 iommu.strict=0")
    assert types(system) == ["identity"]
    with pytest.raises(IommuError, match="EINVAL"):
        system.kernel.write_type(system, system.groups[0], "DMA")


# ---- reserved regions ------------------------------------------------------------------------------------------------

MSI = (0x0800_0000, 0x080F_FFFF, "msi")
REGION = {"start": 0x9000_0000, "end": 0x9000_FFFF}
FIRM = (0x9000_0000, 0x9000_FFFF, "direct")
SOFT = (0x9000_0000, 0x9000_FFFF, "direct-relaxable")
HELD = (0x9000_0000, 0x9000_FFFF, "reserved")
REGIONS = [
    # hardware, reserved, kernels that read it, region
    ({}, [], (), None),
    ({}, [{**REGION, "type": "direct"}], KERNELS, FIRM),
    ({}, [{**REGION, "type": "direct-relaxable"}], KERNELS, SOFT),
    ({"described_by": "dt"}, [{**REGION, "type": "direct"}], ("6.12", "7.2"), FIRM),
    ({"described_by": "dt"}, [{**REGION, "type": "direct-relaxable"}], ("6.12", "7.2"), SOFT),
    ({}, [{**REGION, "type": "reserved"}], ("6.12", "7.2"), HELD),
    ({"preserve_config": False}, [{**REGION, "type": "direct"}], (), None),
    (V2, [{**REGION, "type": "direct"}], KERNELS, FIRM),
    # Not aligned to 64 KiB: widened to pages.
    ({}, [{"start": 0x9000_0800, "end": 0x9000_17FF}], KERNELS, (0x9000_0000, 0x9000_1FFF, "direct")),
    ({"described_by": "dt"}, [{"start": 0x9000_0800, "end": 0x9000_17FF}], ("7.2", "6.12"), (0x9000_0800, 0x9000_17FF, "direct")),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("hardware", "reserved", "kernels", "expected"), REGIONS)
def test_reserved_regions(kernel, hardware, reserved, kernels, expected):
    system = boot(kernel, {**NIC, "reserved": reserved}, hardware=hardware)
    shown = [(r.start, r.end, r.type.sysfs) for r in system.group_regions(system.groups[0])]
    assert shown == [MSI, expected] if kernel in kernels else [MSI]


def test_a_platform_device_keeps_its_regions_when_pci_is_renumbered():
    device = platform("a") | {"reserved": [{**REGION, "type": "direct"}]}
    system = boot("6.1", device, hardware={"preserve_config": False})
    assert [r.type.sysfs for r in system.group_regions(system.groups[0])] == ["msi", "direct"]


@pytest.mark.parametrize(
    ("hardware", "kind", "reason"),
    [
        ({}, "msi", "interrupt window"),
        ({"described_by": "acpi"}, "reserved", "IORT has direct regions only"),
    ],
)
def test_regions_that_firmware_cannot_express(hardware, kind, reason):
    with pytest.raises(NotApplicable, match=reason):
        boot("6.12", {**NIC, "reserved": [{**REGION, "type": kind}]}, hardware=hardware)


def test_kernels_before_60_read_no_ranges_from_iort():
    system = boot("5.15", {**NIC, "reserved": [{**REGION, "type": "direct"}]})
    assert [r.type.sysfs for r in system.group_regions(system.groups[0])] == ["msi"]


# ---- options ---------------------------------------------------------------------------------------------------------

BYPASS = [
    # kernel, command line, verdict, v2 faults, v3 faults
    ("6.1", "", None, True, True),
    ("6.1", "arm-smmu.disable_bypass=0", Verdict.INEFFECTIVE, False, True),
    ("6.1", "arm_smmu.disable_bypass=n", Verdict.INEFFECTIVE, False, True),
    ("6.1", "arm-smmu-v3.disable_bypass=0", Verdict.INEFFECTIVE, True, False),
    ("6.1", "arm-smmu-v3.disable_bypass", Verdict.INEFFECTIVE, True, True),
    ("6.1", "arm-smmu-v3.disable_bypass=maybe", Verdict.INVALID, True, True),
    ("6.12", "arm-smmu-v3.disable_bypass=0", Verdict.UNKNOWN, True, True),
    ("6.12", "arm-smmu.disable_bypass=0", Verdict.INEFFECTIVE, False, True),
    ("7.2", "arm-smmu-v3.disable_bypass=0", Verdict.UNKNOWN, True, True),
]


@pytest.mark.parametrize(("kernel", "cmdline", "verdict", "v2", "v3"), BYPASS)
def test_disable_bypass_is_no_policy(kernel, cmdline, verdict, v2, v3):
    system = boot(kernel, cmdline=cmdline)
    assert [report.verdict for report in system.boot.reports] == ([verdict] if verdict else [])
    assert [unattached_streams_fault(system.boot, version) for version in (2, 3)] == [v2, v3]
    assert types(system) == types(boot(kernel))


def test_the_build_option_decides_without_the_parameter():
    state = boot("6.1", config={"ARM_SMMU_DISABLE_BYPASS_BY_DEFAULT": False}).boot
    assert [unattached_streams_fault(state, version) for version in (2, 3)] == [False, True]


# ---- examples --------------------------------------------------------------------------------------------------------

ROLES = [
    # role, type or None where there is no example, region
    ("identity-required", "identity", None),
    ("direct-region", "DMA-FQ", "direct"),
    ("relaxable-region", "DMA-FQ", "direct-relaxable"),
    ("strict-required", None, None),
    ("lazy-preferred", None, None),
    ("no-lazy", None, None),
    ("untrusted", None, None),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("role", "expected", "region"), ROLES)
def test_roles(role, kernel, expected, region):
    device = {"name": "x", "role": role}
    if expected is None:
        with pytest.raises(NotApplicable):
            boot(kernel, device)
        return
    system = boot(kernel, device)
    assert types(system) == [expected]
    kinds = [r.type.sysfs for r in system.group_regions(system.groups[0])]
    assert kinds == (["msi", region] if region else ["msi"])
