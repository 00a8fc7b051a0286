"""The Arm plugin on machines that carry an IORT."""

from __future__ import annotations

import pytest

import iommukit_arm_smmu
from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.machine.tables import load_tables
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
ARM = REGISTRY.register(iommukit_arm_smmu, "arm_smmu")
KERNELS = ("6.1", "rfc", "6.12", "7.2")

ITS = {"kind": "its_group", "label": "its", "identifiers": [4, 9]}
FIRST = {
    "kind": "smmuv3",
    "label": "first",
    "base_address": "0x2b400000",
    "flags": ["cohacc_override"],
    "mappings": [{"input_base": 0, "id_count": "0xffffff", "output_base": 0, "target": "its"}],
}
SECOND = {"kind": "smmuv3", "label": "second", "base_address": "0x2b600000"}
OLD = {"kind": "smmu", "label": "old", "base_address": "0x7fb00000", "span": "0x10000", "flags": ["coherent_walk"]}
ROOT = {
    "kind": "root_complex",
    "label": "root",
    "mappings": [
        {"input_base": 0, "id_count": "0xff", "output_base": "0x10000", "target": "first"},
        {"input_base": "0x200", "id_count": "0xff", "output_base": "0x200", "target": "second"},
    ],
}
CAMERA = {
    "kind": "named_component",
    "label": "camera",
    "name": r"\_SB.CAM0",
    "mappings": [{"output_base": "0x77", "target": "old", "flags": ["single"]}],
}


def rmr(target, stream, *, count=0, flags=0, base="0x90000000", size="0x10000"):
    ranges = [{"base": base, "size": size}]
    mapping = {"output_base": stream, "id_count": count, "target": target}
    return {"kind": "rmr", "label": "rmr", "flags": flags, "ranges": ranges, "mappings": [mapping]}


def pci(name, address, **more):
    return {"name": name, "address": address, "id": "8086:10d3", "class": "020000", "kind": "integrated_endpoint", **more}


def boot(kernel, nodes, *devices, revision=6, **machine):
    table = {"revision": revision, "nodes": nodes}
    fields = {"machine": "server", "arch": "aarch64", "firmware": {"IORT": table}, "devices": devices, **machine}
    spec = BootSpec(kconfig="lazy")
    return start_system(get_kernel(kernel), ARM, REGISTRY, Machine.model_validate(fields), spec)


def stream_ids(system, name):
    device = system.devices[name]
    return device.vendor_state.ids if device.group else None


def regions(system, name):
    found = system.group_regions(system.devices[name].group)
    return [(region.start, region.end, region.type.sysfs) for region in found if region.start != 0x0800_0000]


# ---- units -----------------------------------------------------------------------------------------------------------


def test_units_come_from_the_table():
    system = boot("6.1", [ITS, FIRST, OLD, SECOND])
    assert [unit.name for unit in system.units] == [
        "smmu3.0x000000002b400000",
        "smmu.0x000000007fb00000",
        "smmu3.0x000000002b600000",
    ]
    facts = [unit.state.facts for unit in system.units]
    assert [fact.device for fact in facts] == ["arm-smmu-v3.0.auto", "arm-smmu.1.auto", "arm-smmu-v3.2.auto"]
    assert [fact.coherent_walk for fact in facts] == [True, True, False]
    assert [line for line in system.boot.log if "option mask" in line] == [
        "arm-smmu-v3 arm-smmu-v3.0.auto: option mask 0x0",
        "arm-smmu-v3 arm-smmu-v3.2.auto: option mask 0x0",
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_iort_without_smmus_gives_nothing_an_iommu(kernel):
    root = {"kind": "root_complex", "mappings": [{"id_count": "0xffff", "target": "its"}]}
    system = boot(kernel, [ITS, root], pci("nic", "0000:00:04.0"))
    assert (system.units, system.groups) == ([], {})


def test_qemus_own_table_without_an_smmu(shared_folder):
    fields = {"machine": "virt", "arch": "aarch64", "firmware": {"IORT": "aarch64_virt_IORT.aml"}}
    machine = load_tables(Machine.model_validate(fields), shared_folder / "tables" / "qemu")
    assert start_system(get_kernel("7.2"), ARM, REGISTRY, machine, BootSpec()).units == []


# ---- devices ---------------------------------------------------------------------------------------------------------

PLACES = [
    # address, unit's index or None, stream ids
    ("0000:00:04.0", 0, (0x10020,)),
    ("0000:02:00.0", 1, (0x200,)),
    ("0000:01:00.0", None, None),
    ("0001:00:04.0", None, None),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("address", "unit", "ids"), PLACES)
def test_requester_ids_are_mapped(kernel, address, unit, ids):
    system = boot(kernel, [ITS, FIRST, SECOND, ROOT], pci("nic", address))
    assert stream_ids(system, "nic") == ids
    assert system.devices["nic"].unit is (None if unit is None else system.units[unit])


def test_all_aliases_must_be_mapped():
    bridge = {"name": "bridge", "address": "0000:00:08.0", "kind": "pcie_to_pci_bridge", "buses": "01"}
    behind = {"name": "old", "address": "0000:01:02.0", "kind": "conventional", "parent": "bridge"}
    system = boot("7.2", [ITS, FIRST, SECOND, ROOT], bridge, behind)
    assert stream_ids(system, "bridge") == (0x10040,)
    assert stream_ids(system, "old") is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_components_are_found_by_their_path(kernel):
    devices = [
        {"name": "cam", "address": r"\_SB.CAM0", "kind": "platform"},
        {"name": "other", "address": "QCOM0001:00", "kind": "platform"},
    ]
    system = boot(kernel, [OLD, CAMERA], *devices)
    assert stream_ids(system, "cam") == (0x77,)
    assert stream_ids(system, "other") is None


def test_a_device_may_say_its_path():
    device = {"name": "cam", "address": "ABCD0001:00", "kind": "platform", "attributes": {"acpi_path": r"\_SB.CAM0"}}
    assert stream_ids(boot("6.12", [OLD, CAMERA], device), "cam") == (0x77,)


def test_v2_components_with_one_stream_share_a_group():
    second = {**CAMERA, "label": "more", "name": r"\_SB.CAM1"}
    devices = [{"name": f"cam{n}", "address": rf"\_SB.CAM{n}", "kind": "platform"} for n in (0, 1)]
    system = boot("6.12", [OLD, CAMERA, second], *devices)
    assert system.devices["cam0"].group is system.devices["cam1"].group


@pytest.mark.parametrize(("kernel", "early"), [("6.1", False), ("6.12", False), ("7.2", True)])
def test_acpi_devices_meet_their_unit_at_bind_as_well(kernel, early):
    table = {"revision": 6, "nodes": [ITS, FIRST, SECOND, ROOT]}
    fields = {"machine": "m", "arch": "aarch64", "firmware": {"IORT": table}, "devices": [pci("nic", "0000:00:04.0")]}
    system = start_system(get_kernel(kernel), ARM, REGISTRY, Machine.model_validate(fields), BootSpec(drivers="none"))
    assert bool(system.groups) is early
    assert system.boot.acs_requested is True


# ---- regions ---------------------------------------------------------------------------------------------------------

FIRM = (0x9000_0000, 0x9000_FFFF, "direct")
RANGES = [
    # the range's node, revision of the table, what the device has
    (rmr("first", "0x10020"), 6, [FIRM]),
    (rmr("first", "0x10020", flags=1), 6, [(0x9000_0000, 0x9000_FFFF, "direct-relaxable")]),
    (rmr("first", "0x10000", count="0x3f"), 6, [FIRM]),
    (rmr("first", "0x10021"), 6, []),
    (rmr("second", "0x10020"), 6, []),
    (rmr("first", "0x10020"), 4, []),
    (rmr("first", "0x10020"), 5, [FIRM]),
    (rmr("first", "0x10020", base="0x90000800", size="0x1000"), 6, [(0x9000_0000, 0x9000_1FFF, "direct")]),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("node", "revision", "expected"), RANGES)
def test_reserved_memory_ranges(kernel, node, revision, expected):
    system = boot(kernel, [ITS, FIRST, SECOND, ROOT, node], pci("nic", "0000:00:04.0"), revision=revision)
    assert regions(system, "nic") == expected


def test_the_machine_files_regions_come_on_top():
    own = [{"start": "0xa0000000", "end": "0xa000ffff", "type": "direct-relaxable"}]
    device = pci("nic", "0000:00:04.0", reserved=own)
    system = boot("6.1", [ITS, FIRST, SECOND, ROOT, rmr("first", "0x10020")], device)
    assert regions(system, "nic") == [FIRM, (0xA000_0000, 0xA000_FFFF, "direct-relaxable")]


def test_ranges_of_pci_need_firmwares_configuration():
    nodes = [ITS, FIRST, SECOND, ROOT, rmr("first", "0x10020")]
    system = boot("6.12", nodes, pci("nic", "0000:00:04.0"), hardware={"preserve_config": False})
    assert regions(system, "nic") == []


@pytest.mark.parametrize(
    ("model", "expected"), [("hisilicon_hi161x", [(0x0802_0000, 0x0802_FFFF), (0x0812_0000, 0x0812_FFFF)]), ("generic", [])]
)
def test_interrupt_pages_are_reserved_behind_hisilicons_first_smmu(model, expected):
    hardware = {"its": {4: 0x0801_0000, 9: 0x0811_0000, 5: 0x0821_0000}}
    system = boot("6.1", [ITS, {**FIRST, "model": model}, SECOND, ROOT], pci("nic", "0000:00:04.0"), hardware=hardware)
    assert [(start, end) for start, end, _ in regions(system, "nic")] == expected
    assert {kind for _, _, kind in regions(system, "nic")} <= {"msi"}


# ---- contradictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"hardware": {"base": "0x9050000"}}, "server: hardware.base: the IORT says this of each SMMU"),
        ({"hardware": {"coherent_walk": True}}, "server: hardware.coherent_walk: the IORT says this of each SMMU"),
        ({"hardware": {"version": 2}}, "server: hardware.version: the IORT has SMMUv3"),
    ],
)
def test_what_the_table_says_is_not_said_twice(machine, message):
    with pytest.raises(InputError) as refused:
        boot("6.12", [ITS, FIRST, SECOND, ROOT], pci("nic", "0000:00:04.0"), **machine)
    assert str(refused.value) == message


def test_stream_ids_are_the_tables():
    device = pci("nic", "0000:00:04.0", attributes={"stream_ids": [1]})
    with pytest.raises(InputError, match=r"devices\[0\].attributes.stream_ids: the IORT says which ids a device has"):
        boot("6.12", [ITS, FIRST, SECOND, ROOT], device)


@pytest.mark.parametrize("hardware", [{"described_by": "dt"}, {"version": 2, "legacy_binding": True}])
def test_an_iort_is_acpis(hardware):
    with pytest.raises(NotApplicable, match="an IORT is ACPI's, not a device tree's"):
        boot("6.12", [OLD], hardware=hardware)
