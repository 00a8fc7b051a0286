"""The s390 plugin against what real kernels did on QEMU's functions."""

from __future__ import annotations

import json

import pytest

import iommukit_s390
from iommukit.errors import IommuError
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
S390 = REGISTRY.register(iommukit_s390, "s390")
KERNELS = ("6.1", "6.12", "7.2")
ERRNO = {
    "ok": None,
    "Invalid argument": "EINVAL",
    "Operation not permitted": "EPERM",
    "Operation not supported": "EOPNOTSUPP",
}
NOT_OURS = ("Unknown kernel command line parameters", "iommu=pt", "software IO TLB")


@pytest.fixture(params=KERNELS)
def recordings(request, shared_folder):
    path = shared_folder / "recordings" / f"{request.param}-s390.jsonl"
    return request.param, [json.loads(line) for line in path.read_text().splitlines()]


def boot(kernel, record):
    fids = {address: int(unit["name"].rpartition(".")[2], 16) for unit in record["iommus"] for address in unit["devices"]}
    devices = [
        {
            "name": address,
            "address": address,
            "id": f"{device['id'].replace('0x', '').partition(':')[0]}:{device['id'][-4:]}",
            "class": device["class"][2:],
            "kind": "zpci",
            "attributes": {"fid": fids[address]},
        }
        for address, device in {device["bdf"]: device for device in record["pci"]}.items()
    ]
    machine = Machine.model_validate({"machine": "recorded", "arch": "s390x", "devices": devices})
    spec = BootSpec(cmdline=record["cmdline"], drivers="none")
    return start_system(get_kernel(kernel), S390, REGISTRY, machine, spec)


def test_boot(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record)
        printed = [line for line in record["iommu_log"] if not line.strip().startswith(NOT_OURS)]
        assert [*system.boot.log, *system.lines] == printed, record["id"]
        assert [unit.name for unit in system.units] == [unit["name"] for unit in record["iommus"]], record["id"]
        for group in record["groups"]:
            modelled = system.groups[group["id"]]
            assert modelled.sysfs_type == group["type"], record["id"]
            assert [device.label for device in modelled.devices] == group["devices"], record["id"]
            regions = [f"{r.start:#018x}-{r.end:#018x}-{r.type.sysfs}" for r in system.group_regions(modelled)]
            assert regions == group["reserved"], record["id"]


def test_writes(recordings):
    kernel, records = recordings
    judged = 0
    for record in records:
        system = boot(kernel, record)
        for write in record["writes"]:
            group = system.groups[write["group"]]
            for device in group.devices:
                _bind_as(system, device, write["drivers_bound"])
            if group.sysfs_type != write["type_before"]:
                # The script has moved the group by other means in between.
                system.kernel.write_type(system, group, write["type_before"])
            assert _write(system, group, write["wrote"]) == ERRNO[write["result"]], (record["id"], write)
            assert group.sysfs_type == write["type_after"], (record["id"], write)
            judged += 1
    assert judged >= 32


def _bind_as(system, device, drivers):
    wanted = dict(pair.split("=") for pair in drivers.split(",") if pair).get(device.label)
    if device.driver != wanted:
        if device.driver:
            system.kernel.unbind(system, device)
        if wanted:
            system.kernel.bind(system, device, wanted, managed=None)


def _write(system, group, text):
    try:
        system.kernel.write_type(system, group, text)
    except IommuError as error:
        return error.name
    return None
