"""The Arm plugin against what real kernels did on QEMU's virt machine.

Before 7.2 groups come with drivers, so the model binds in the order that the kernel printed.
"""

from __future__ import annotations

import json
import re

import pytest

import iommukit_arm_smmu
from iommukit.errors import IommuError
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
ARM = REGISTRY.register(iommukit_arm_smmu, "arm_smmu")
PROFILES = {"6.1": "6.1.192", "6.12": "6.12", "7.2": "7.2"}
ADDING = re.compile(r"(\S+) (0000:\S+): Adding to iommu group (\d+)$")
BUSES = {"0000:00:06.0": "01", "0000:00:07.0": "02", "0000:00:08.0": "03"}
KINDS = {"0000:00:06.0": "root_port", "0000:00:07.0": "root_port", "0000:00:08.0": "pcie_to_pci_bridge"}
CONVENTIONAL = "0x1234:0x11e8"
ERRNO = {
    "ok": None,
    "Invalid argument": "EINVAL",
    "Operation not permitted": "EPERM",
    "Device or resource busy": "EBUSY",
}


@pytest.fixture(params=PROFILES)
def recordings(request, shared_folder):
    path = shared_folder / "recordings" / f"{request.param}-arm_smmu.jsonl"
    return PROFILES[request.param], [json.loads(line) for line in path.read_text().splitlines()]


def boot(kernel, record):
    acpi = "acpi=force" in record["cmdline"]
    devices = []
    for address, device in {device["bdf"]: device for device in record["pci"]}.items():
        kind = "conventional" if device["id"] == CONVENTIONAL else "endpoint" if address[5:7] == "01" else "integrated_endpoint"
        ports = {"buses": BUSES[address]} if address in BUSES else {}
        if KINDS.get(address) == "root_port" and (acpi or kernel == "7.2"):
            # Older kernels without ACPI enumerate before anybody asks for access control.
            ports["acs"] = ["SV", "RR", "CR", "UF"]
        devices.append(
            {
                "name": address,
                "address": address,
                "id": ":".join(part[2:] for part in device["id"].split(":")),
                "class": device["class"][2:],
                "kind": KINDS.get(address, kind),
                "multifunction": address == "0000:00:09.0",
                **ports,
            }
        )
    hardware = {"described_by": "acpi" if acpi else "dt"}
    machine = Machine.model_validate({"machine": "virt", "arch": "aarch64", "hardware": hardware, "devices": devices})
    spec = BootSpec(cmdline=record["cmdline"], drivers="none")
    return start_system(get_kernel(kernel), ARM, REGISTRY, machine, spec)


def bind(system, text):
    """Bind as a line of the log says; the group is then the line's."""
    found = ADDING.search(text)
    if found and found[1] != "pci":
        system.kernel.bind(system, system.devices[found[2]], found[1], managed=None)
        assert system.devices[found[2]].group.id == int(found[3])


def compare(system, groups):
    for group in groups:
        modelled = system.groups[group["id"]]
        assert modelled.sysfs_type == group["type"]
        assert [device.label for device in modelled.devices] == group["devices"]
        regions = [f"{r.start:#018x}-{r.end:#018x}-{r.type.sysfs}" for r in system.group_regions(modelled)]
        assert regions == group["reserved"]
    assert len(system.groups) == len(groups)


def test_boot_and_binding(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record)
        policy = [line for line in record["iommu_log"] if line.startswith("iommu:")]
        assert [line for line in system.boot.log if line.startswith("iommu:")] == policy, record["id"]
        device = system.units[0].state.facts.device
        assert [line for line in system.boot.log if device in line] == [line for line in record["iommu_log"] if device in line], (
            record["id"]
        )
        for line in record["iommu_log"]:
            bind(system, line)
        compare(system, record["groups"])
        for event in record["events"]:
            if event.startswith("@N|"):
                bind(system, event)
        if "drivers" in record["snapshots"]:
            compare(system, record["snapshots"]["drivers"])


def test_the_second_device_behind_the_bridge(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record)
        last = system.devices["0000:03:02.0"]
        for name in ("0000:00:08.0", "0000:03:01.0", "0000:03:02.0"):
            system.kernel.bind(system, system.devices[name], "pci-stub", managed=None)
        assert last.group is None
        assert last.driver == "pci-stub"
        assert not any(entry["group"] for entry in record["pci"] if entry["bdf"] == last.label)
        refusals = [line for line in record["iommu_log"] if "Aliasing" in line]
        assert refusals == [line for line in system.lines if "Aliasing" in line][: len(refusals)], record["id"]


def test_writes(recordings):
    kernel, records = recordings
    judged = 0
    for record in records:
        system = boot(kernel, record)
        for line in [*record["iommu_log"], *record["events"]]:
            if not line.startswith("@") or line.startswith("@N|"):
                bind(system, line)
        for write in record["writes"]:
            group = system.groups[write["group"]]
            drivers = dict(pair.split("=") for pair in write["drivers_bound"].split(",") if pair)
            for device in group.devices:
                rebind(system, device, drivers.get(device.label))
            if group.sysfs_type != write["type_before"]:
                for device in group.devices:
                    rebind(system, device, None)
                system.kernel.write_type(system, group, write["type_before"])
                for device in group.devices:
                    rebind(system, device, drivers.get(device.label))
            assert attempt(system, group, write["wrote"]) == ERRNO[write["result"]], (record["id"], write)
            assert group.sysfs_type == write["type_after"], (record["id"], write)
            judged += 1
    assert judged > 150


def rebind(system, device, driver):
    if device.driver != driver:
        if device.driver:
            system.kernel.unbind(system, device)
        if driver:
            system.kernel.bind(system, device, driver, managed=None)


def attempt(system, group, text):
    try:
        system.kernel.write_type(system, group, text)
    except IommuError as error:
        return error.name
    return None
