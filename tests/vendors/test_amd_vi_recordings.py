"""The AMD-Vi plugin against what real kernels did, on QEMU's q35 and on real machines."""

from __future__ import annotations

import base64
import json
import re

import pytest

import iommukit_amd_vi
from iommukit.errors import IommuError
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
AMD = REGISTRY.register(iommukit_amd_vi, "amd_vi")
PROFILES = {"6.1": "6.1.192", "6.12": "6.12", "7.2": "7.2", "rfc-as-posted": "rfc-as-posted"}
NOT_THE_DRIVER = re.compile(r"AMD IOMMUv2|perf/amd_iommu")
"""Lines of other code: the module for process address spaces, the counters."""
ERRNO = {"ok": None, "Invalid argument": "EINVAL", "Operation not permitted": "EPERM", "Device or resource busy": "EBUSY"}


def case_of(record):
    return record["id"].split("-amd_vi-")[1]


def driver_lines(lines):
    """The driver's own lines; the kernel's oldest way of printing features takes two."""
    return [line for line in lines if ("AMD-Vi: " in line or line.startswith(" PPR")) and not NOT_THE_DRIVER.search(line)]


# ---- QEMU's q35 ------------------------------------------------------------------------------------------------------

IVMD_DEVICES = {"ivmd": "0000:00:03.0", "vfiojoini": "0000:00:09.1"}
"""Whom the memory definition is for that some cases add to the table."""
MEMORY = (0x1FFDD000, 0x1000)
KINDS = {"1b36:000c": "root_port", "1b36:000e": "pcie_to_pci_bridge", "104c:8232": "upstream_port", "104c:8233": "downstream_port"}
KINDS |= dict.fromkeys(("1234:11e8", "8086:2918", "8086:2922", "8086:2930"), "conventional")


def recorded_devices(record):
    """The recorded functions.  QEMU's root ports have ACS, which Linux enables where somebody asked for an IOMMU."""
    listed = {device["bdf"]: device for device in sorted(record["pci"], key=lambda device: device["bdf"])}
    devices = {}
    for address, device in listed.items():
        ids = ":".join(part[2:] for part in device["id"].split(":"))
        inside = "integrated_endpoint" if address[5:7] == "00" else "endpoint"
        devices[address] = spec = {
            "name": address,
            "address": address,
            "id": ids,
            "class": device["class"][2:],
            "kind": KINDS.get(ids, inside),
            "multifunction": sum(address[:-1] == other[:-1] for other in listed) > 1,
        }
        if spec["kind"] == "root_port" and "disable-acs=on" not in record["qemu_args"]:
            spec["acs"] = ["SV", "RR", "CR", "UF"]
    if "extport.aml" in record["qemu_args"]:
        devices["0000:00:06.0"]["external_facing"] = True
    number_buses(devices, "00", iter(range(1, 256)))
    return devices


def number_buses(devices, bus, fresh):
    """Give each bridge its bus as the kernel does, depth first."""
    for address, spec in devices.items():
        if address[5:7] == bus and spec["class"] == "060400":
            spec["buses"] = f"{next(fresh):02x}"
            number_buses(devices, spec["buses"], fresh)


def rid(address):
    bus, slot, function = re.fullmatch(r"0000:(..):(..)\.(.)", address).groups()
    return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)


def emulated_table(record, devices):
    """The table as QEMU 7.2 writes it: one legacy block that names the functions of bus 0, the IOMMU too, and what lies behind."""
    entries = []
    for address, spec in devices.items():
        if address[5:7] != "00":
            continue
        entries.append({"kind": "select", "device": rid(address)})
        if "buses" in spec:
            first = int(spec["buses"], 16) << 8
            alias = spec["kind"] == "pcie_to_pci_bridge"
            start = {"kind": "alias_range_start", "source": first} if alias else {"kind": "range_start"}
            entries += [{**start, "device": first}, {"kind": "range_end", "device": first | 0xFF}]
    entries.append({"kind": "special", "handle": 0, "source": 0xA0, "variety": "ioapic"})
    own = next(rid(address) for address, spec in devices.items() if spec["class"] == "080600")
    blocks = [{"kind": "ivhd10", "device": own, "address": 0xFED80000, "feature_reporting": 0x44, "entries": entries}]
    if (named := IVMD_DEVICES.get(case_of(record).split("-")[0])) is not None:
        start, length = MEMORY
        memory = {"start": start, "length_bytes": length, "flags": ["unity", "read", "write"]}
        blocks.append({"kind": "ivmd_single", "device": rid(named), **memory})
    return {"revision": 1, "blocks": blocks}


def recorded_machine(record, *, with_table):
    devices = recorded_devices(record)
    hardware = {"np_cache": record["qemu"] == "7.2"}
    firmware = {}
    if with_table:
        hardware["efr"] = 0x29D3
        firmware = {"IVRS": emulated_table(record, devices)}
    elif (named := IVMD_DEVICES.get(case_of(record).split("-")[0])) is not None:
        start, length = MEMORY
        devices[named]["reserved"] = [{"start": start, "end": start + length - 1, "type": "direct"}]
    return Machine.model_validate(
        {"machine": "q35", "arch": "x86_64", "hardware": hardware, "firmware": firmware, "devices": list(devices.values())}
    )


def boot(kernel, record, *, with_table=True):
    spec = BootSpec(cmdline=record["cmdline"], kconfig="lazy")
    return start_system(get_kernel(kernel), AMD, REGISTRY, recorded_machine(record, with_table=with_table), spec)


@pytest.fixture(params=PROFILES)
def recordings(request, shared_folder):
    path = shared_folder / "recordings" / f"{request.param}-amd_vi.jsonl"
    return PROFILES[request.param], [json.loads(line) for line in path.read_text().splitlines()]


def bind(system, group, bound):
    """Bind and unbind the group's drivers until they are those of the recording."""
    wanted = dict(pair.split("=") for pair in bound.split(",") if pair)
    for device in group.devices:
        if device.driver != wanted.get(device.label):
            if device.driver is not None:
                system.kernel.unbind(system, device)
            if device.label in wanted:
                system.kernel.bind(system, device, wanted[device.label], managed=None)


def bring_to(system, group, kind):
    """Take a group to the type in which the recording found it: between two recorded writes the guest resets it."""
    if group.sysfs_type != kind:
        bind(system, group, "")
        for step in ("DMA", kind) if kind == "DMA-FQ" else (kind,):
            system.kernel.write_type(system, group, step)


@pytest.mark.parametrize("with_table", [True, False], ids=["table", "options"])
def test_log_is_the_kernels(recordings, with_table):
    """Every line about the policy and of the driver, in order, to the last blank."""
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record, with_table=with_table)
        recorded = [line for line in record["iommu_log"] if line.startswith("iommu: ") or driver_lines([line])]
        assert system.boot.log == recorded, record["id"]
    assert len(records) > 30


@pytest.mark.parametrize("with_table", [True, False], ids=["table", "options"])
def test_groups_at_boot(recordings, with_table):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record, with_table=with_table)
        modelled = [(number, kind, sorted(members)) for number, kind, members in system.snapshot()]
        recorded = [(group["id"], group["type"], sorted(group["devices"])) for group in record["groups"]]
        assert modelled == sorted(recorded), record["id"]


def test_units_and_their_devices(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record)
        modelled = {unit.name: sorted(d.label for d in system.devices.values() if d.unit is unit) for unit in system.units}
        assert modelled == {unit["name"]: sorted(unit["devices"]) for unit in record["iommus"]}, record["id"]


@pytest.mark.parametrize("with_table", [True, False], ids=["table", "options"])
def test_reserved_regions(recordings, with_table):
    kernel, records = recordings
    direct = 0
    for record in records:
        system = boot(kernel, record, with_table=with_table)
        for group in record["groups"]:
            regions = system.group_regions(system.devices[group["devices"][0]].group)
            modelled = [f"{region.start:#018x}-{region.end:#018x}-{region.type.sysfs}" for region in regions]
            assert modelled == group["reserved"], record["id"]
            direct += "direct" in modelled[0]
    assert direct


def test_writes(recordings):
    """What root may write and what becomes of the type.  How the text is spelt is the core's business."""
    kernel, records = recordings
    compared = 0
    for record in records:
        if case_of(record).split("-")[0] not in ("sysfs", "ivmd", "untrusted"):
            continue
        system = boot(kernel, record)
        for write in record["writes"]:
            if write["tag"] == "syntax":
                continue
            group = system.groups[write["group"]]
            bring_to(system, group, write["type_before"])
            bind(system, group, write["drivers_bound"])
            result = None
            try:
                system.kernel.write_type(system, group, write["wrote"])
            except IommuError as error:
                result = error.name
            where = record["id"], write["tag"], write["wrote"]
            assert (result, group.sysfs_type) == (ERRNO[write["result"]], write["type_after"]), where
            compared += 1
    assert compared > 200


# ---- real machines ---------------------------------------------------------------------------------------------------

REGISTERS = {"asus-x399-a-5.18.13-ck": {"units": [{"efr": 0xF77EF22294ADA}] * 2}}
"""Registers that the log shows and the table has otherwise."""


def real_machines(folder):
    found = []
    for path in sorted((folder / "machines").iterdir()):
        if path.is_dir() and json.loads((path / "meta.json").read_text())["table"] == "IVRS":
            found.append(path)
    assert len(found) == 9
    return found


def real_boot(path):
    """Boot a real machine: its table, its functions, its command line; the build option as its log shows."""
    meta = json.loads((path / "meta.json").read_text())
    devices = []
    for device in json.loads((path / "devices.json").read_text()):
        spec = {
            "name": device["bdf"],
            "address": device["bdf"],
            "id": f"{device['vendor']}:{device['device']}",
            "class": device["class"],
            "kind": "root_port" if device["type"] == "01" else "integrated_endpoint",
            "acs": "unknown",
        }
        if device["bridge_to"]:
            spec["buses"] = device["bridge_to"]
        devices.append(spec)
    firmware = {"IVRS": "base64:" + base64.b64encode((path / "table.bin").read_bytes()).decode()}
    machine = Machine.model_validate(
        {
            "machine": path.name,
            "arch": "x86_64",
            "devices": devices,
            "firmware": firmware,
            "hardware": REGISTERS.get(path.name, {}),
        }
    )
    strict = "strict mode" in "".join(meta["policy_lines"])
    spec = BootSpec(cmdline=meta["cmdline"], kconfig="strict" if strict else "lazy")
    system = start_system(get_kernel(meta["kernel"]), AMD, REGISTRY, machine, spec)
    return system, (path / "dmesg.txt").read_text().splitlines()


def test_real_machines_print_the_same(shared_folder):
    for path in real_machines(shared_folder):
        system, lines = real_boot(path)
        assert driver_lines(system.boot.log) == driver_lines(lines), path.name


def test_real_machines_group_the_same_devices(shared_folder):
    """All functions but the IOMMUs' own and the host bridges that the table leaves out."""
    for path in real_machines(shared_folder):
        system, _ = real_boot(path)
        groups = json.loads((path / "groups.json").read_text())
        recorded = {address for members in groups.values() for address in members}
        assert {device.label for device in system.devices.values() if device.group} == recorded, path.name
        alone = {device.label for device in system.devices.values() if not device.group}
        assert alone <= {"0000:00:00.0", "0000:00:00.2", "0000:40:00.0", "0000:40:00.2"}, path.name


def test_two_units_share_a_segment(shared_folder):
    """The second unit's range lies in the first one's, and wins."""
    system, _ = real_boot(shared_folder / "machines" / "asus-x399-a-5.18.13-ck")
    assert [unit.name for unit in system.units] == ["ivhd0", "ivhd1"]
    units = {device.label: device.unit for device in system.devices.values()}
    first, second = system.units
    assert {unit for label, unit in units.items() if label < "0000:40"} == {first, None}
    assert {unit for label, unit in units.items() if label > "0000:40:00.2"} == {second}


def test_acpi_devices_come_from_the_newest_blocks(shared_folder):
    """Only blocks of type 40h name ACPI devices, so that these show which blocks the driver took."""
    path = shared_folder / "machines" / "asus-g513rm-6.2.6-omv-strict"
    system, _ = real_boot(path)
    acpi = system.units[0].state.driver.platform.acpi_devices
    assert [(device.hid, device.uid, device.devid) for device in acpi] == [("AMDI0020", f"\\_SB.FUR{n}", 0x00A5) for n in range(4)]
