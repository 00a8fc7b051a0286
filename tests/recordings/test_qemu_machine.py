"""From QEMU's command line to a machine."""

from __future__ import annotations

import pytest

from iommukit.device import DeviceKind
from iommukit.errors import InputError
from iommukit.kernel.acs import acs_enabled
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.topology import build_topology
from iommukit.vendors import VendorRegistry
from iommukit_oracle.qemu_arguments import bus_below, kind_of, parse_qemu_arguments, place_devices
from iommukit_oracle.qemu_machine import ACS, binds_at_boot, boot_of, machine_of, profile_of
from iommukit_oracle.recording import Recording
from tests.recordings.conftest import shipped


def recording(qemu_args: str = "", **changes) -> Recording:
    fields = {"id": "a b", "kernel": "6.12", "vendor": "intel_vtd", "arch": "amd64", "cmdline": "", "groups": []}
    return Recording.model_validate({**fields, "qemu_args": qemu_args, **changes})


def devices(name: str):
    return {device.name: device for device in machine_of(shipped()[name]).devices}


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(shipped()))
def test_devices_are_where_the_kernel_found_them(name):
    source = shipped()[name]
    if source.arch != "s390x":
        placed = place_devices(parse_qemu_arguments(source))
        assert set(placed) <= {entry.bdf for entry in source.functions}
    machine = machine_of(source)
    assert {device.name for device in machine.devices if device.present} == {entry.bdf for entry in source.functions}
    build_topology(machine)


def test_buses_are_numbered_depth_first_by_slot():
    text = (
        "qemu -device pcie-root-port,id=b,addr=1d -device pcie-root-port,id=a,addr=0x2 -device x3130-upstream,id=u,bus=a"
        " -device xio3130-downstream,id=d1,bus=u -device xio3130-downstream,id=d2,bus=u -device nvme,bus=d2"
        " -device e1000e,bus=b -device virtio-net-pci -device virtio-blk-pci,bus=d1 -device edu"
        " -device pci-bridge,id=old,addr=1.1,chassis_nr=1 -device e1000e,bus=old,addr=3 -device nvme,addr=1c.2"
    )
    placed = place_devices(parse_qemu_arguments(recording(text)))
    found = {address: (slot.device.model, kind_of(slot, placed).value) for address, slot in placed.items()}
    assert found == {
        "0000:00:01.1": ("pci-bridge", "pci_bridge"),
        "0000:01:03.0": ("e1000e", "conventional"),
        "0000:00:02.0": ("pcie-root-port", "root_port"),
        "0000:02:00.0": ("x3130-upstream", "upstream_port"),
        "0000:03:00.0": ("xio3130-downstream", "downstream_port"),
        "0000:04:00.0": ("virtio-blk-pci", "endpoint"),
        "0000:03:01.0": ("xio3130-downstream", "downstream_port"),
        "0000:05:00.0": ("nvme", "endpoint"),
        "0000:00:1d.0": ("pcie-root-port", "root_port"),
        "0000:06:00.0": ("e1000e", "endpoint"),
        "0000:00:01.0": ("virtio-net-pci", "conventional"),
        "0000:00:03.0": ("edu", "conventional"),
        "0000:00:1c.2": ("nvme", "integrated_endpoint"),
    }
    assert bus_below(placed, "0000:00:1d.0") == "06"
    assert placed["0000:05:00.0"].parent == "0000:03:01.0"


def test_arguments_are_read():
    found = parse_qemu_arguments(
        recording("qemu -M virt,iommu=smmuv3 -m 1G -device 'edu,id=a,multifunction=on,x' -acpitable file=t.aml -dtb tree.dtb")
    )
    assert found.machine == {"": "virt", "iommu": "smmuv3"}
    assert found.memory == 1 << 30
    assert found.tables == ["t.aml", "tree.dtb"]
    assert found.devices[0].on("multifunction")
    assert found.devices[0].on("x")
    assert not found.devices[0].on("y")
    assert found.device("nvme") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qemu -append 'open", "a b: qemu_args: is no command line: "),
        ("qemu -device nvme,addr=zz", "a b: qemu_args: -device nvme,addr=zz: addr=zz is no slot"),
        ("qemu -m lots", "a b: qemu_args: -m lots: "),
    ],
)
def test_arguments_that_cannot_be_read(text, message):
    with pytest.raises(InputError) as caught:
        machine_of(recording(text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_kinds_and_ports():
    found = devices("6.12-intel_vtd-none")
    kinds = {name[5:]: device.kind for name, device in found.items()}
    assert kinds["00:00.0"] is kinds["00:1f.2"] is kinds["00:03.0"] is kinds["03:01.0"] is DeviceKind.CONVENTIONAL
    assert kinds["00:04.0"] is DeviceKind.INTEGRATED_ENDPOINT
    assert kinds["01:00.0"] is DeviceKind.ENDPOINT
    assert kinds["00:08.0"] is DeviceKind.PCIE_TO_PCI_BRIDGE
    assert found["0000:00:06.0"].attributes == {"acs_capability": ACS}
    assert not found["0000:00:08.0"].attributes
    assert found["0000:03:02.0"].parent == "0000:00:08.0"
    assert found["0000:00:06.0"].driver == "pcieport"
    assert {name for name, device in found.items() if device.multifunction} == {
        "0000:00:09.0",
        "0000:00:1f.0",
        "0000:00:1f.2",
        "0000:00:1f.3",
    }


def test_the_multifunction_bit_is_each_functions_own():
    assert devices("6.12-intel_vtd-hotplug-mfbit")["0000:00:09.1"].multifunction
    assert not devices("6.12-intel_vtd-hotplug-lazy")["0000:00:09.1"].multifunction


@pytest.mark.parametrize(
    ("case", "enabled"),
    [
        ("rfc-as-posted-intel_vtd-hpjoin-pt1", False),  # disable-acs
        ("6.12-intel_vtd-none", True),
        ("6.12-intel_vtd-optin-iommuoff", False),
        ("6.12-arm_smmu-none", False),
        ("7.2-arm_smmu-none", True),
        ("6.1-arm_smmu-acpi-untrusted-pt1", True),
    ],
)
def test_access_control_that_is_missing_or_was_not_asked_for(case, enabled):
    """What a port implements is in the machine; whether it is on follows from what the driver asks for."""
    recorded = shipped()[case]
    registry = VendorRegistry.installed()
    kernel = get_kernel(profile_of(recorded))
    vendor = registry.get(recorded.vendor)
    system = start_system(kernel, vendor, registry, machine_of(recorded), boot_of(recorded))
    assert acs_enabled(system.devices["0000:00:06.0"]) is enabled


def test_external_ports():
    external = {name for name, device in devices("7.2-intel_vtd-untrusted-lazy").items() if device.external_facing}
    assert external == {"0000:00:06.0"}
    assert not any(device.external_facing for device in devices("7.2-intel_vtd-none").values())
    source = shipped()["7.2-intel_vtd-untrusted-lazy"]
    elsewhere = source.model_copy(update={"qemu_args": source.qemu_args.replace("-acpitable file=extport.aml", "")})
    ports = {device.name for device in machine_of(elsewhere).devices if device.external_facing}
    assert ports == {"0000:00:06.0"}, "the function below it is removable"


def test_memory_that_firmware_reserves():
    def regions(name):
        return {
            device.name[5:]: [(r.start, r.end, r.type) for r in device.reserved]
            for device in devices(name).values()
            if device.reserved
        }

    assert regions("6.12-intel_vtd-rmrr-lazy") == {
        "00:03.0": [(0x1FFDD000, 0x1FFDDFFF, "direct")],
        "00:05.0": [(0x1FFDE000, 0x1FFDEFFF, "direct")],
    }
    assert regions("7.2-amd_vi-ivmd-lazy-7.2-nonpcache") == {"00:03.0": [(0x1FFDD000, 0x1FFDDFFF, "direct")]}
    assert regions("rfc-as-posted-intel_vtd-rmrr91-pt1") == {"00:09.1": [(0x1FFDD000, 0x1FFDDFFF, "direct")]}
    assert regions("rfc-as-posted-intel_vtd-rmrrb-pt1") == {"00:03.0": [(0x1FFDD000, 0x1FFDDFFF, "direct-relaxable")]}
    assert list(regions("rfc-as-posted-amd_vi-vfiojoini-lazy-7.2-nonpcache")) == ["00:09.1"]
    assert regions("6.12-intel_vtd-none") == {}


def test_a_device_that_is_plugged_in_later():
    device = devices("7.2-intel_vtd-hotplug-lazy")["0000:02:00.0"]
    assert not device.present
    assert device.kind is DeviceKind.ENDPOINT
    assert device.parent == "0000:00:07.0"


def test_what_intel_hardware_can_do():
    hardware = machine_of(shipped()["6.12-intel_vtd-none-smhw"]).hardware
    assert hardware["units"] == [{"version": "1:0", "cap": 0xD2008C22260206, "ecap": 0x480080F00F4A}]
    assert hardware["host_address_width"] == 39
    assert hardware["interrupt_remapping"]
    assert machine_of(shipped()["6.12-intel_vtd-none-diotlb"]).hardware["device_tlb"]
    assert machine_of(shipped()["6.12-intel_vtd-optin-nocmd"]).hardware["platform_opt_in"]
    silent = recording("qemu -device intel-iommu,intremap=off,caching-mode=on,pt=off")
    assert machine_of(silent).hardware == {"interrupt_remapping": False, "caching_mode": True, "pass_through": False}


def test_what_amd_hardware_can_do():
    hardware = machine_of(shipped()["6.12-amd_vi-none"]).hardware
    assert hardware == {"np_cache": True, "interrupt_remapping": True, "efr": 0x29D3, "efr2": 0, "efr_sup": False}
    assert not machine_of(shipped()["6.12-amd_vi-pt0-np-7.2-nonpcache"]).hardware["np_cache"]
    for qemu, cached in (("7.2", True), ("7.2-nonpcache", False)):
        assert machine_of(recording(vendor="amd_vi", qemu=qemu)).hardware["np_cache"] is cached


def test_what_arm_and_s390_hardware_can_do():
    assert machine_of(shipped()["6.1-arm_smmu-acpi-untrusted-pt1"]).hardware == {"described_by": "acpi"}
    assert machine_of(shipped()["6.1-arm_smmu-untrusted-pt1"]).hardware == {"described_by": "dt"}
    machine = machine_of(shipped()["7.2-s390-none"])
    assert machine.hardware == {"memory_size": 512 << 20}
    assert [(device.name, device.attributes) for device in machine.devices] == [
        ("0001:00:00.0", {"fid": 1}),
        ("0002:00:00.0", {"fid": 2}),
        ("0003:00:00.0", {"fid": 3}),
    ]


def test_kernels_and_their_builds():
    assert profile_of(shipped()["6.1-s390-none"]) == "6.1.176"
    assert profile_of(shipped()["6.1-intel_vtd-none"]) == "6.1.192"
    assert profile_of(shipped()["rfc-unconverted-intel_vtd-none"]) == "rfc-unconverted"
    assert boot_of(shipped()["6.1-intel_vtd-nocmd"]).config["INTEL_IOMMU_DEFAULT_ON"]
    assert not boot_of(shipped()["rfc-as-posted-intel_vtd-nocmd"]).config["INTEL_IOMMU_DEFAULT_ON"]


def test_drivers_that_made_groups():
    assert binds_at_boot(shipped()["6.12-arm_smmu-none"]) == [
        ("pcieport", "0000:00:06.0"),
        ("pcieport", "0000:00:07.0"),
        ("pcieport", "0000:00:08.0"),
        ("virtio-pci", "0000:00:0a.0"),
    ]
    assert binds_at_boot(shipped()["7.2-arm_smmu-none"]) == []
    assert devices("6.12-arm_smmu-none")["0000:00:06.0"].driver is None


@pytest.mark.parametrize("change", [{"arch": "riscv64"}, {"vendor": "acme"}])
def test_a_machine_that_is_not_recorded(change):
    with pytest.raises(InputError, match="a b: an architecture and a vendor among"):
        machine_of(recording(**change))


def test_functions_that_make_no_machine():
    pci = [{"bdf": "0000:05:00.0", "id": "8086:10d3"}]
    orphan = recording(
        "qemu -device pcie-root-port,id=p,addr=2 -device nvme,bus=p", pci=[{"bdf": "0000:01:00.0", "id": "8086:10d3"}]
    )
    with pytest.raises(InputError, match=r"a b: makes no machine: 0000:01:00\.0: parent"):
        machine_of(orphan)
    assert [device.kind for device in machine_of(recording(pci=pci)).devices] == [DeviceKind.CONVENTIONAL]
