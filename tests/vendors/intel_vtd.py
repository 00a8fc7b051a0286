"""Small machines for the tests of the VT-d plugin, and booting them."""

from __future__ import annotations

import iommukit_intel_vtd
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
INTEL = REGISTRY.register(iommukit_intel_vtd, "intel_vtd")
OPS = INTEL.ops

NIC = {"name": "nic", "address": "0000:00:04.0", "id": "8086:10d3", "class": "020000", "kind": "integrated_endpoint"}
GPU = {"name": "gpu", "address": "0000:00:02.0", "id": "8086:5912", "class": "030000", "kind": "integrated_endpoint"}
PORT = {"name": "port", "address": "0000:00:06.0", "id": "1b36:000c", "class": "060400", "kind": "root_port"}
PORT |= {"acs": ["SV", "RR", "CR", "UF"], "buses": "01"}
DISK = {"name": "disk", "address": "0000:01:00.0", "id": "1b36:0010", "class": "010802", "parent": "port"}
OUTSIDE = {**PORT, "external_facing": True}
KERNELS = [*PROFILES, "6.1.192"]
OLD = ["6.1", "rfc", "rfc-as-posted"]
NEW = ["6.12", "7.2"]
FORCED = "DMAR: Intel-IOMMU force enabled due to platform opt in"
NO_BATCHING = "DMAR: IOMMU batching disallowed due to virtualization"
READY = "DMAR: Intel(R) Virtualization Technology for Directed I/O"


def machine(devices, hardware=None, dmar=None):
    firmware = {"DMAR": dmar} if dmar else {}
    document = {"machine": "m", "arch": "x86_64", "devices": devices, "hardware": hardware or {}, "firmware": firmware}
    return Machine.model_validate(document)


def boot(kernel, devices=(NIC,), cmdline="", *, hardware=None, dmar=None, kconfig=None, **config):
    spec = BootSpec(cmdline=cmdline, kconfig=kconfig, config=config)
    return start_system(get_kernel(kernel), INTEL, REGISTRY, machine(list(devices), hardware, dmar), spec)


def dmar(*structures, width=39, flags=()):
    return {"host_address_width": width - 1, "flags": list(flags), "structures": list(structures)}


def drhd(address, *scopes, everything=False, segment=0):
    flags = ["include_pci_all"] if everything else []
    return {"kind": "drhd", "address": address, "flags": flags, "segment": segment, "scopes": list(scopes)}


def scope(*path, kind="endpoint", bus=0, number=0):
    return {"kind": kind, "start_bus": bus, "path": list(path), "enumeration_id": number}


def rmrr(base, end, *scopes):
    return {"kind": "rmrr", "base": base, "end": end, "scopes": list(scopes)}


def types(system):
    return {device.name: device.sysfs_type for device in system.devices.values()}


def unit_of(system, name):
    unit = system.devices[name].unit
    return unit.name if unit else None


def two_units(first, second):
    words = [{"cap": f"{unit.cap:#x}", "ecap": f"{unit.ecap:#x}"} for unit in (first, second)]
    return {"units": words}


GRAPHICS_UNIT = dmar(drhd(0xA000, scope("02.0")), drhd(0xB000, everything=True))
