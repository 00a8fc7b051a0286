"""The s390 plugin: every rule of ``plugins/s390/README.md``, on the real engine."""

from __future__ import annotations

import pytest

import iommukit_s390
from iommukit.device import DmaOps
from iommukit.domain import Domain, DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.hookspecs import FlushQueueOptions
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import DmaApiPolicy
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
S390 = REGISTRY.register(iommukit_s390, "s390")
FUNCTION = {"name": "fn", "id": "1af4:1044", "class": "00ff00", "kind": "zpci"}
KERNELS = ("6.1", "rfc", "6.12", "7.2")
ALL_TYPES = tuple(DomainType)


def boot(kernel, *devices, hardware=None, cmdline="", kconfig="lazy", drivers="loaded"):
    machine = Machine.model_validate(
        {"machine": "z", "arch": "s390x", "hardware": hardware or {}, "devices": devices or (FUNCTION,)}
    )
    spec = BootSpec(kconfig=kconfig, cmdline=cmdline, drivers=drivers)
    return start_system(get_kernel(kernel), S390, REGISTRY, machine, spec)


def types(system):
    return [kind for _, kind, _ in system.snapshot()]


# ---- units and groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_function_has_a_unit_and_a_group_of_its_own(kernel):
    devices = [{"name": f"f{n}", "kind": kind} for n, kind in enumerate(("zpci", "endpoint", "conventional"))]
    system = boot(kernel, *devices)
    assert [unit.name for unit in system.units] == [f"s390-iommu.{fid:08x}" for fid in (1, 2, 3)]
    assert [members for _, _, members in system.snapshot()] == [(device.label,) for device in system.devices.values()]


def test_the_function_id_names_the_unit():
    assert boot("6.12", {**FUNCTION, "attributes": {"fid": 0x1A}}).units[0].name == "s390-iommu.0000001a"


def test_a_platform_device_has_no_iommu():
    system = boot("6.12", FUNCTION, {"name": "ccw", "address": "0.0.0009", "kind": "platform"})
    assert system.devices["ccw"].group is None
    assert len(system.units) == 1


@pytest.mark.parametrize(
    "devices",
    [
        ({"name": "rp", "kind": "root_port"},),
        ({"name": "b", "kind": "pci_bridge"}, {"name": "f", "kind": "conventional", "parent": "b"}),
        ({"name": "rcec", "kind": "event_collector"},),
    ],
)
def test_ports_and_bridges_are_not_shown(devices):
    with pytest.raises(NotApplicable, match="s390 shows functions, not bridges"):
        boot("6.12", *devices)


@pytest.mark.parametrize(
    ("hardware", "attributes", "message"),
    [
        ({"pft": 256}, {}, "z: hardware: pft: "),
        ({}, {"start_dma": "x"}, "z: fn: attributes: start_dma: "),
        ({"tlb_refresh": "perhaps"}, {}, "z: hardware: tlb_refresh: "),
        ({}, {"end_dma": 0xFFFF_FFFF}, "z: fn: attributes: end_dma 0xffffffff lies before start_dma 0x100000000"),
    ],
)
def test_bad_attributes_are_named_with_their_place(hardware, attributes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        boot("6.12", {**FUNCTION, "attributes": attributes}, hardware=hardware)


# ---- the DMA range ---------------------------------------------------------------------------------------------------

LOW = (0, 0xFFFF_FFFF)
RT, RS, TOP = (1 << 42) - 1, (1 << 53) - 1, (1 << 64) - 1
RANGES = [
    # kernel, hardware, s390_iommu_aperture, reserved regions
    ("6.1", {}, "", []),
    ("rfc", {}, "", [LOW, (0x1_2000_0000, RT)]),
    ("6.12", {}, "", [LOW, (0x1_2000_0000, RT)]),
    ("7.2", {}, "", [LOW, (0x1_2000_0000, RT)]),
    ("6.12", {"memory_size": 1 << 30}, "2", [LOW, (0x1_8000_0000, RT)]),
    ("6.12", {}, "x", [LOW, (0x1_2000_0000, RT)]),
    ("6.12", {}, "0", [LOW]),
    ("7.2", {}, "0", [LOW]),
    ("6.12", {"start_dma": 0, "end_dma": 0xFFFF}, "", [(0x1_0000, RT)]),
    ("6.12", {"start_dma": 0x1234, "end_dma": 0xFFFF}, "", [(0, 0x1FFF), (0x1_0000, RT)]),
    ("6.12", {"end_dma": 0x1_0FFF_FFFF}, "", [LOW, (0x1_1000_0000, RT)]),
    # 7.2 takes a longer table where range and hardware ask for one.
    ("7.2", {"dtsm": 0x48}, "0", [LOW, (0x200_0000_0000_0000, TOP)]),
    ("7.2", {"dtsm": 0x48, "end_dma": RS}, "0", [LOW]),
    ("7.2", {"dtsm": 0x48, "end_dma": RS - 1}, "0", [LOW, (RS, RS)]),
    ("7.2", {"dtsm": 0x44, "end_dma": RS}, "0", [LOW, (RS + 1, TOP)]),
    ("7.2", {"dtsm": 0x40, "end_dma": RS}, "0", [LOW]),
]


@pytest.mark.parametrize(("kernel", "hardware", "factor", "expected"), RANGES)
def test_reserved_regions_are_what_lies_outside_the_range(kernel, hardware, factor, expected):
    cmdline = f"s390_iommu_aperture={factor}" if factor else ""
    system = boot(kernel, hardware=hardware, cmdline=cmdline)
    regions = system.group_regions(system.groups[0])
    assert [(region.start, region.end) for region in regions] == expected
    assert {region.type.sysfs for region in regions} <= {"reserved"}


def test_a_function_overrides_the_machine():
    own = {**FUNCTION, "attributes": {"end_dma": 0x1_0FFF_FFFF}}
    system = boot("6.12", FUNCTION | {"name": "plain"}, own)
    ends = [system.group_regions(group)[1].start for group in system.groups.values()]
    assert ends == [0x1_2000_0000, 0x1_1000_0000]


def test_72_knows_the_upper_end_only_while_a_table_is_attached():
    system = boot("7.2", hardware={"rtr": True}, cmdline="iommu.passthrough=1")
    assert types(system) == ["identity"]
    assert [(r.start, r.end) for r in system.group_regions(system.groups[0])] == [LOW]


@pytest.mark.parametrize(("kernel", "grouped"), [("6.1", True), ("rfc", False), ("6.12", False)])
def test_a_range_without_a_whole_page_is_refused_since_the_rework(kernel, grouped):
    system = boot(kernel, hardware={"start_dma": 0x1234, "end_dma": 0x1FFF})
    assert bool(system.groups) is grouped


@pytest.mark.parametrize(("kernel", "grouped"), [("6.12", False), ("7.2", True)])
def test_a_range_above_one_table_needs_a_longer_one(kernel, grouped):
    system = boot(kernel, hardware={"start_dma": 1 << 43, "end_dma": RS, "dtsm": 0x48})
    assert bool(system.groups) is grouped


# ---- the CLP configuration -------------------------------------------------------------------------------------------

CLP = {
    "functions": [
        {"fid": 7, "fh": "0x80000007", "pfgid": 1, "sdma": "0x100000000", "edma": "0x10fffffff"},
        {"fid": 9, "fh": "0x80000009", "pfgid": 2, "pft": 5, "sdma": "0x100000000", "rtr": False},
    ],
    "groups": [{"gid": 1, "refresh": True, "rtr": True, "dtsm": "0x48"}, {"gid": 2, "rtr": True}],
}


def boot_clp(kernel, *devices, cmdline=""):
    fields = {"machine": "lpar", "arch": "s390x", "firmware": {"CLP": CLP}, "devices": devices}
    spec = BootSpec(kconfig="lazy", cmdline=cmdline)
    return start_system(get_kernel(kernel), S390, REGISTRY, Machine.model_validate(fields), spec)


def test_clp_answers_for_functions_by_id_or_address():
    devices = [
        {"name": "disk", "kind": "zpci", "address": "0000:00:00.0"},
        {"name": "ism", "kind": "zpci", "attributes": {"fid": 9}},
    ]
    system = boot_clp("7.2", *devices)
    assert [unit.name for unit in system.units] == ["s390-iommu.00000007", "s390-iommu.00000009"]
    disk, ism = (unit.state for unit in system.units)
    assert (disk.tlb_refresh, disk.pft, disk.rtr, disk.dtsm) == (True, 0, True, 0x48)
    assert (ism.tlb_refresh, ism.pft, ism.rtr, ism.dtsm) == (False, 5, False, 0x40)
    assert system.group_regions(system.groups[0])[1].start == 0x1_1000_0000
    assert types(system) == ["DMA-FQ", "DMA"]


def test_a_devices_own_attributes_outrank_clp():
    device = {"name": "disk", "kind": "zpci", "attributes": {"fid": 7, "rtr": False}}
    assert types(boot_clp("7.2", device, cmdline="iommu.passthrough=1")) == ["DMA"]
    assert types(boot_clp("7.2", {**device, "attributes": {"fid": 7}}, cmdline="iommu.passthrough=1")) == ["identity"]


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ({"attributes": {"fid": 8}}, "fid 8"),
        ({"address": "0005:00:00.0"}, "address 0005:00:00.0"),
        ({}, "neither fid nor address"),
    ],
)
def test_a_function_that_clp_does_not_have(device, wanted):
    with pytest.raises(InputError) as refused:
        boot_clp("6.12", {"name": "x", "kind": "zpci", **device})
    assert str(refused.value) == f"lpar: device x: the CLP configuration has no function for {wanted}"


# ---- policy ----------------------------------------------------------------------------------------------------------

BOOTS = [
    # kernel, build option, command line, hardware, type
    ("6.1", "lazy", "", {}, "unknown"),
    ("6.1", "lazy", "iommu.passthrough=1", {}, "unknown"),
    ("6.1", "lazy", "iommu.strict=1", {}, "unknown"),
    ("rfc", "lazy", "", {}, "DMA-FQ"),
    ("rfc", "lazy", "", {"tlb_refresh": False}, "DMA-FQ"),
    ("rfc", "lazy", "iommu.strict=1", {}, "DMA"),
    ("rfc", "lazy", "s390_iommu=strict", {}, "DMA"),
    ("rfc", "lazy", "", {"pft": 5}, "DMA-FQ"),
    ("6.12", "lazy", "", {}, "DMA-FQ"),
    ("6.12", "lazy", "", {"tlb_refresh": False}, "DMA-FQ"),
    ("6.12", "lazy", "", {"pft": 5}, "DMA"),
    ("6.12", "lazy", "iommu.strict=1", {}, "DMA"),
    ("6.12", "lazy", "iommu.passthrough=1", {}, "DMA"),
    ("6.12", "lazy", "iommu.passthrough=1", {"rtr": True}, "DMA"),
    ("7.2", "lazy", "", {}, "DMA-FQ"),
    ("7.2", "lazy", "", {"pft": 5}, "DMA"),
    ("7.2", "lazy", "iommu.passthrough=1", {}, "DMA"),
    ("7.2", "lazy", "iommu.passthrough=1", {"rtr": True}, "identity"),
]


@pytest.mark.parametrize(("kernel", "kconfig", "cmdline", "hardware", "expected"), BOOTS)
def test_type_at_boot(kernel, kconfig, cmdline, hardware, expected):
    system = boot(kernel, hardware=hardware, cmdline=cmdline, kconfig=kconfig)
    assert types(system) == [expected]


def test_61_maps_by_the_architecture_and_refuses_writes():
    system = boot("6.1")
    device = system.devices["fn"]
    assert device.dma_ops is DmaOps.PLATFORM
    for keyword in ("identity", "DMA", "DMA-FQ", "auto"):
        with pytest.raises(IommuError, match="EINVAL"):
            system.kernel.write_type(system, system.groups[0], keyword)


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_writing_identity_is_not_supported(kernel):
    system = boot(kernel)
    with pytest.raises(IommuError) as refused:
        system.kernel.write_type(system, system.groups[0], "identity")
    assert refused.value.name == "EOPNOTSUPP"
    assert types(system) == ["DMA-FQ"]


def test_the_2022_series_sets_up_the_dma_api_itself():
    device = boot("rfc").devices["fn"]
    assert device.dma_ops is DmaOps.IOMMU
    assert device.system.vendor.ops.def_domain_type(device=device) is DmaApiPolicy.LAZY


LONG = FlushQueueOptions(entries=32768, timeout_ns=1_000_000_000, single_queue=True)


@pytest.mark.parametrize("kernel", ["rfc", "6.12", "7.2"])
@pytest.mark.parametrize(("refresh", "queue"), [(True, LONG), (False, FlushQueueOptions())])
def test_a_shadowing_hypervisor_gets_one_long_queue(kernel, refresh, queue):
    system = boot(kernel, hardware={"tlb_refresh": refresh})
    default = system.groups[0].default_domain
    assert default is not None
    assert default.flush_queue == queue


CAPABLE = [
    # kernel, pft, cache coherency, interrupts, deferred flush, queue
    ("6.1", 0, True, True, False, False),
    ("rfc", 0, True, True, False, True),
    ("rfc", 5, True, True, False, True),
    ("6.12", 0, True, True, True, True),
    ("6.12", 5, True, True, False, False),
    ("7.2", 5, True, True, False, False),
]


@pytest.mark.parametrize(("kernel", "pft", "coherent", "isolated", "deferred", "queue"), CAPABLE)
def test_capabilities(kernel, pft, coherent, isolated, deferred, queue):
    device = boot(kernel, hardware={"pft": pft}).devices["fn"]
    ops = device.system.vendor.ops
    answers = [
        ops.capable(device=device, capability=name)
        for name in ("cache_coherency", "interrupt_remapping", "deferred_flush", "noexec")
    ]
    assert answers == [coherent, isolated, deferred, False]
    assert ops.prefer_dma_api_fq(device=device) is queue


# ---- domains ---------------------------------------------------------------------------------------------------------

PAGING = {DomainType.DMA, DomainType.DMA_FQ, DomainType.UNMANAGED}
OFFERED = [
    # kernel, relaxed translation, types with a domain, the errno for others (None: no domain, no errno)
    ("6.1", False, {DomainType.UNMANAGED}, None),
    ("rfc", False, PAGING, None),
    ("6.12", False, PAGING | {DomainType.BLOCKED}, "EOPNOTSUPP"),
    ("6.12", True, PAGING | {DomainType.BLOCKED}, "EOPNOTSUPP"),
    ("7.2", False, PAGING | {DomainType.BLOCKED}, "EOPNOTSUPP"),
    ("7.2", True, PAGING | {DomainType.BLOCKED, DomainType.IDENTITY}, "EOPNOTSUPP"),
]


@pytest.mark.parametrize("kind", ALL_TYPES)
@pytest.mark.parametrize(("kernel", "rtr", "offered", "errno"), OFFERED)
def test_domains_offered(kernel, rtr, offered, errno, kind):
    system = boot(kernel, hardware={"rtr": rtr})
    device = system.devices["fn"]
    if kind in offered:
        domain = system.alloc(device, kind)
        assert domain is not None
        assert domain.type is kind
        assert domain.static is (kind in (DomainType.BLOCKED, DomainType.IDENTITY))
    elif errno is None:
        assert system.alloc(device, kind) is None
    else:
        with pytest.raises(IommuError) as refused:
            system.alloc(device, kind)
        assert refused.value.name == errno


@pytest.mark.parametrize(("kernel", "page_sizes", "last"), [("6.1", ~0xFFF & TOP, TOP), ("rfc", 0x1000, RT), ("6.12", 0x1000, RT)])
def test_geometry(kernel, page_sizes, last):
    system = boot(kernel)
    domain = system.alloc(system.devices["fn"], DomainType.UNMANAGED)
    assert domain is not None
    assert (domain.page_sizes, domain.aperture) == (page_sizes, (0, last))


def test_61_the_first_function_lends_its_range():
    devices = [
        {**FUNCTION, "name": f"f{n}", "attributes": {"end_dma": end}} for n, end in enumerate((0x1_0FFF_FFFF, 0x1_0EFF_FFFF))
    ]
    system = boot("6.1", *devices)
    first, second = system.devices.values()
    domain = system.alloc(first, DomainType.UNMANAGED)
    assert domain is not None
    system.attach(first, domain)
    assert domain.aperture == (0x1_0000_0000, 0x1_0FFF_FFFF)
    with pytest.raises(IommuError, match="EINVAL"):
        system.attach(second, domain)
    assert second.attached is None


@pytest.mark.parametrize("kernel", ["rfc", "6.12", "7.2"])
def test_later_ranges_only_have_to_meet_the_aperture(kernel):
    system = boot(kernel)
    device = system.devices["fn"]
    elsewhere = Domain(DomainType.UNMANAGED, aperture=(1 << 60, 1 << 61))
    before = device.attached
    with pytest.raises(IommuError, match="EINVAL"):
        system.attach(device, elsewhere)
    assert device.attached is before


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_the_static_domains_are_one_object_for_all_functions(kernel):
    system = boot(kernel, FUNCTION, {**FUNCTION, "name": "other"})
    blocked = {system.alloc(device, DomainType.BLOCKED) for device in system.devices.values()}
    assert len(blocked) == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_replugged_function_is_back_in_its_group_number(kernel):
    system = boot(kernel, FUNCTION, {**FUNCTION, "name": "other"})
    device = system.devices["fn"]
    before = types(system)
    system.kernel.remove(system, device)
    assert device.attached is None
    assert [number for number, _, _ in system.snapshot()] == [1]
    system.kernel.add(system, device)
    assert [number for number, _, _ in system.snapshot()] == [0, 1]
    assert types(system) == before


# ---- options ---------------------------------------------------------------------------------------------------------

OLD_LINE = "s390_iommu=strict deprecated; use iommu.strict=1 instead"
STRICT = [
    # kernel, command line, verdict, strict, deprecation line
    ("6.1", "s390_iommu=strict", Verdict.EFFECTIVE, False, False),
    ("6.1", "s390_iommu=bogus", Verdict.INVALID, False, False),
    ("rfc", "s390_iommu=strict", Verdict.EFFECTIVE, True, True),
    ("6.12", "s390_iommu=strict", Verdict.EFFECTIVE, True, True),
    ("6.12", "s390_iommu=strict,", Verdict.INVALID, False, False),
    ("6.12", "s390_iommu", Verdict.INVALID, False, False),
    ("7.2", "s390_iommu=strict", Verdict.EFFECTIVE, True, True),
    ("7.2", "s390_iommu=bogus", Verdict.INVALID, False, False),
]


@pytest.mark.parametrize(("kernel", "cmdline", "verdict", "strict", "line"), STRICT)
def test_the_old_strict_option(kernel, cmdline, verdict, strict, line):
    state = boot(kernel, cmdline=cmdline).boot
    assert [report.verdict for report in state.reports] == [verdict]
    assert state.default.strict is strict
    assert (state.log[0] == OLD_LINE) is line


@pytest.mark.parametrize("cmdline", ["s390_iommu=strict iommu.strict=0", "iommu.strict=0 s390_iommu=strict"])
def test_the_old_option_wins_in_either_order(cmdline):
    assert types(boot("6.12", cmdline=cmdline)) == ["DMA"]


@pytest.mark.parametrize(
    ("value", "factor", "verdict"),
    [
        ("=3", 3, Verdict.EFFECTIVE),
        ("=+3", 3, Verdict.EFFECTIVE),
        ("=0", 0, Verdict.EFFECTIVE),
        ("=4294967295", 0xFFFF_FFFF, Verdict.EFFECTIVE),
        ("=4294967296", 1, Verdict.INVALID),
        ("=0x3", 1, Verdict.INVALID),
        ("=-1", 1, Verdict.INVALID),
        ("=", 1, Verdict.INVALID),
        ("", 1, Verdict.INVALID),
    ],
)
def test_aperture_factor(value, factor, verdict):
    from iommukit_s390.options import aperture_factor

    state = boot("6.12", cmdline=f"s390_iommu_aperture{value}").boot
    assert aperture_factor(state) == factor
    assert [report.verdict for report in state.reports] == [verdict]


# ---- examples --------------------------------------------------------------------------------------------------------

ROLES = [
    # role, kernel, type or None where there is no example
    ("no-lazy", "6.1", None),
    ("no-lazy", "rfc", None),
    ("no-lazy", "6.12", "DMA"),
    ("no-lazy", "7.2", "DMA"),
    ("lazy-preferred", "6.1", None),
    ("lazy-preferred", "rfc", "DMA-FQ"),
    ("lazy-preferred", "6.12", None),
    ("identity-required", "7.2", None),
    ("direct-region", "7.2", None),
]


@pytest.mark.parametrize(("role", "kernel", "expected"), ROLES)
def test_roles(role, kernel, expected):
    device = {"name": "x", "role": role}
    if expected is None:
        with pytest.raises(NotApplicable):
            boot(kernel, device)
    else:
        assert types(boot(kernel, device)) == [expected]


def test_every_hardware_option_is_explained():
    options = S390.declaration.hardware_options
    assert set(options) == {"tlb_refresh", "pft", "rtr", "start_dma", "end_dma", "dtsm", "memory_size"}
    assert all(text and "\n" not in text for text in options.values())
