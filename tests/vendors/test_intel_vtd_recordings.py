"""The VT-d plugin against what real kernels did, on QEMU's q35 and on real machines."""

from __future__ import annotations

import base64
import json
import re

import pytest

from iommukit.errors import IommuError
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from tests.vendors.intel_vtd import INTEL, REGISTRY

UNIT = re.compile(r"DMAR: dmar\d+: reg_base_addr \S+ ver (\d+:\d+) cap (\S+) ecap (\S+)")
RMRR = re.compile(r"DMAR: RMRR base: (0x\S+) end: (0x\S+)")
DEVICE_OPTIONS = {
    "caching-mode=on": {"caching_mode": True},
    "x-scalable-mode=on": {"scalable_mode": True},
    "pt=off": {"pass_through": False},
    "device-iotlb=on": {"device_tlb": True},
}
RMRR_DEVICES = {
    "rmrr": ("00:03.0", "00:05.0"),
    "rmrrb": ("00:03.0",),
    "rmrr91": ("00:09.1",),
    "rmrrbad": ("00:03.0",),
}
"""Which devices the added structures of the recorded tables name."""
NEEDS_MEMORY_MAP = re.compile(r"No firmware reserved region|Your BIOS is broken; bad RMRR")
"""Lines that depend on the machine's memory map, which the model does not have."""


def case_of(record):
    return record["id"].split("-intel_vtd-")[1]


def dmar_lines(lines):
    """The driver's own lines, without interrupt remapping and without what follows a device's group."""
    return [line for line in lines if "DMAR: " in line and "DMAR-IR" not in line and not NEEDS_MEMORY_MAP.search(line)]


def scope(address, kind="endpoint"):
    """A scope for a function on bus 0."""
    return {"kind": kind, "start_bus": 0, "path": [address[-4:]]}


KINDS = {
    "1b36:000c": "root_port",
    "1b36:000e": "pcie_to_pci_bridge",
    "104c:8232": "upstream_port",
    "104c:8233": "downstream_port",
    **dict.fromkeys(("1234:11e8", "8086:2918", "8086:2922", "8086:2930"), "conventional"),
}
ACS = ["SV", "RR", "CR", "UF"]


def recorded_devices(record):
    """The recorded functions.

    QEMU's root ports have ACS unless told otherwise; Linux enables it where somebody asked for an IOMMU.
    """
    listed = {device["bdf"]: device for device in sorted(record["pci"], key=lambda device: device["bdf"])}
    devices = {}
    for address, device in listed.items():
        ids = ":".join(part[2:] for part in device["id"].split(":"))
        root = address[5:7] == "00"
        devices[address] = spec = {
            "name": address,
            "address": address,
            "id": ids,
            "class": device["class"][2:],
            "kind": KINDS.get(ids, "integrated_endpoint" if root else "endpoint"),
            "multifunction": sum(address[:-1] == other[:-1] for other in listed) > 1,
        }
        if spec["kind"] == "root_port":
            spec["acs"] = [] if "iommu=off" in record["cmdline"].split() else ACS
    if "disable-acs=on" in record["qemu_args"]:
        del devices["0000:00:06.0"]["acs"]
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


def recorded_machine(record, *, with_table):
    """The recorded machine: with a table as QEMU writes it, or with options alone."""
    args = record["qemu_args"]
    devices = recorded_devices(record)
    prefix = case_of(record).split("-")[0]
    opt_in = prefix == "optin"
    hardware = {}
    for text, options in DEVICE_OPTIONS.items():
        if text in args:
            hardware |= options
    regions = [(base, end, RMRR_DEVICES[prefix][at]) for at, (base, end) in enumerate(rmrrs_of(record))]
    firmware = {}
    if with_table:
        words = [{"version": v, "cap": "0x" + c, "ecap": "0x" + e} for v, c, e in units_of(record)]
        hardware = {"units": words}
        firmware = {"DMAR": table(record, devices, regions, opt_in)}
    else:
        hardware |= {"platform_opt_in": True} if opt_in else {}
        if "DMAR: Host address width 48" in record["iommu_log"]:
            hardware["address_width"] = 48
        for base, end, short in regions:
            spec = devices[f"0000:{short}"]
            relaxable = spec["class"].startswith("03")
            spec["reserved"] = [{"start": base, "end": end, "type": "direct-relaxable" if relaxable else "direct"}]
    return Machine.model_validate(
        {"machine": "q35", "arch": "x86_64", "hardware": hardware, "firmware": firmware, "devices": list(devices.values())}
    )


def units_of(record):
    return [match.groups() for line in record["iommu_log"] if (match := UNIT.match(line))]


def rmrrs_of(record):
    return [match.groups() for line in record["iommu_log"] if (match := RMRR.match(line))]


def table(record, devices, regions, opt_in):
    """QEMU's table: one unit that names every function of bus 0."""
    width = next(int(line.split()[-1]) for line in record["iommu_log"] if "Host address width" in line)
    named = [
        scope(address, "bridge" if "buses" in spec else "endpoint") for address, spec in devices.items() if address[5:7] == "00"
    ]
    structures = [{"kind": "drhd", "address": "0xfed90000", "scopes": named}]
    structures += [{"kind": "rmrr", "base": base, "end": end, "scopes": [scope(short)]} for base, end, short in regions]
    if any("ATSR flags" in line for line in record["iommu_log"]):
        structures.append({"kind": "atsr", "flags": ["all_ports"]})
    flags = ["intr_remap", *(["dma_ctrl_platform_opt_in"] if opt_in else [])]
    return {"host_address_width": width - 1, "flags": flags, "structures": structures}


PROFILES = {
    "6.1": "6.1.192",
    "6.12": "6.12",
    "7.2": "7.2",
    "rfc-as-posted": "rfc-as-posted",
    "rfc-unconverted": "rfc-unconverted",
}


@pytest.fixture(params=PROFILES)
def recordings(request, shared_folder):
    path = shared_folder / "recordings" / f"{request.param}-intel_vtd.jsonl"
    return PROFILES[request.param], [json.loads(line) for line in path.read_text().splitlines()]


def boot(kernel, record, *, with_table):
    config = {"INTEL_IOMMU_DEFAULT_ON": False} if kernel.startswith("rfc") else {}
    spec = BootSpec(cmdline=record["cmdline"], kconfig="lazy", config=config)
    return start_system(get_kernel(kernel), INTEL, REGISTRY, recorded_machine(record, with_table=with_table), spec)


def test_every_line_of_the_driver(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record, with_table=True)
        assert dmar_lines(system.boot.log) == dmar_lines(record["iommu_log"]), record["id"]
    assert len(records) > 35


def test_options_stand_for_the_same_capabilities(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record, with_table=False)
        log = [line.replace("flags: 0x1", "flags: 0x0") if "DRHD" in line else line for line in dmar_lines(system.boot.log)]
        assert log == dmar_lines(record["iommu_log"]), record["id"]


def test_units_and_their_devices(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record, with_table=True)
        modelled = {unit.name: sorted(d.label for d in system.devices.values() if d.unit is unit) for unit in system.units}
        assert modelled == {unit["name"]: sorted(unit["devices"]) for unit in record["iommus"]}, record["id"]


def test_reserved_regions(recordings):
    kernel, records = recordings
    compared = 0
    for record in records:
        system = boot(kernel, record, with_table=True)
        for group in record["groups"]:
            devices = [system.devices[address] for address in group["devices"]]
            modelled = {
                f"{region.start:#018x}-{region.end:#018x}-{region.type.sysfs}"
                for device in devices
                for region in system.regions(device)
            }
            assert modelled == set(group["reserved"]), record["id"]
            compared += 1
    assert compared > 300


def test_groups_at_boot(recordings):
    kernel, records = recordings
    for record in records:
        system = boot(kernel, record, with_table=True)
        modelled = [(number, kind, sorted(members)) for number, kind, members in system.snapshot()]
        recorded = [(group["id"], group["type"], sorted(group["devices"])) for group in record["groups"]]
        assert modelled == sorted(recorded), record["id"]


ERRNO = {"ok": None, "Invalid argument": "EINVAL", "Operation not permitted": "EPERM", "Device or resource busy": "EBUSY"}


def bind_as_recorded(system, group, bound):
    """Bind and unbind the group's drivers until they are those of the recording."""
    wanted = dict(pair.split("=") for pair in bound.split(",") if pair)
    for device in group.devices:
        if device.driver != wanted.get(device.label):
            if device.driver is not None:
                system.kernel.unbind(system, device)
            if device.label in wanted:
                system.kernel.bind(system, device, wanted[device.label], managed=None)


def test_writes_where_firmware_reserves_memory(recordings):
    """RMRR cases: what root may write, what becomes of the type, and what the driver says."""
    kernel, records = recordings
    compared = 0
    for record in records:
        if case_of(record).split("-")[0] not in RMRR_DEVICES:
            continue
        system = boot(kernel, record, with_table=True)
        for write in record["writes"]:
            group = system.groups[write["group"]]
            bind_as_recorded(system, group, write["drivers_bound"])
            system.take_lines()
            result = None
            try:
                system.kernel.write_type(system, group, write["wrote"])
            except IommuError as error:
                result = error.name
            where = record["id"], write["tag"], write["wrote"]
            assert (result, group.sysfs_type) == (ERRNO[write["result"]], write["type_after"]), where
            assert dmar_lines(system.take_lines()) == dmar_lines(write["dmesg"]), where
            compared += 1
    assert compared > 10


# ---- real machines ---------------------------------------------------------------------------------------------------


def real_machines(folder):
    for path in sorted((folder / "machines").iterdir()):
        if path.is_dir() and json.loads((path / "meta.json").read_text())["table"] == "DMAR":
            yield path


def real_machine(path, *, outside):
    listed = json.loads((path / "devices.json").read_text())
    lines = (path / "dmesg.txt").read_text().splitlines()
    devices = []
    for device in listed:
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
        if outside and spec["kind"] == "root_port" and spec["address"].startswith("0000:00:07"):
            spec["external_facing"] = True
        devices.append(spec)
    words = [{"version": m[1], "cap": "0x" + m[2], "ecap": "0x" + m[3]} for line in lines if (m := UNIT.match(line))]
    firmware = {"DMAR": "base64:" + base64.b64encode((path / "table.bin").read_bytes()).decode()}
    document = {"machine": path.name, "arch": "x86_64", "devices": devices, "firmware": firmware, "hardware": {"units": words}}
    return Machine.model_validate(document), lines


def real_boot(path):
    meta = json.loads((path / "meta.json").read_text())
    text = "\n".join(meta["policy_lines"])
    forced = "force enabled due to platform opt in" in text
    on = "Directed I/O" in text and not forced and "intel_iommu=on" not in meta["cmdline"]
    machine, lines = real_machine(path, outside=forced)
    spec = BootSpec(cmdline=meta["cmdline"], kconfig="lazy", config={"INTEL_IOMMU_DEFAULT_ON": on})
    return start_system(get_kernel(meta["kernel"]), INTEL, REGISTRY, machine, spec), lines


def test_real_machines_print_the_same(shared_folder):
    seen = 0
    for path in real_machines(shared_folder):
        system, lines = real_boot(path)
        assert dmar_lines(system.boot.log) == dmar_lines(lines), path.name
        seen += 1
    assert seen >= 10


def test_real_machines_meet_their_units_in_order(shared_folder):
    """Since 6.1 group numbers go unit by unit, so they show which device is whose."""
    path = shared_folder / "machines" / "latitude-9420-6.2.10"
    system, _ = real_boot(path)
    assert [unit.name for unit in system.units] == ["dmar3", "dmar2", "dmar1", "dmar0", "dmar4"]
    groups = json.loads((path / "groups.json").read_text())
    order = [
        system.devices[address].unit.name for _, members in sorted(groups.items(), key=lambda g: int(g[0])) for address in members
    ]
    position = {unit.name: at for at, unit in enumerate(system.units)}
    assert [position[name] for name in order] == sorted(position[name] for name in order)
    assert len(set(order)) == len(system.units)


def test_graphics_have_their_own_unit(shared_folder):
    system, _ = real_boot(shared_folder / "machines" / "hp-envy-x360-13-bd0-5.18-kali")
    assert system.devices["0000:00:02.0"].unit.name == "dmar0"
    assert system.devices["0000:00:1f.3"].unit.name == "dmar2"
