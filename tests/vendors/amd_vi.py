"""What the tests of the AMD-Vi plugin share: machines, tables and a boot."""

from __future__ import annotations

import iommukit_amd_vi
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.vendors import VendorRegistry

REGISTRY = VendorRegistry()
AMD = REGISTRY.register(iommukit_amd_vi, "amd_vi")
KERNELS = ("6.1", "rfc", "6.12", "7.2")
OLD = ("6.1", "rfc")
NEW = ("6.12", "7.2")

NIC = {"name": "nic", "address": "0000:01:00.0", "id": "8086:10d3", "class": "020000", "parent": "port"}
PORT = {
    "name": "port",
    "address": "0000:00:01.1",
    "id": "1022:1483",
    "class": "060400",
    "kind": "root_port",
    "acs": ["SV", "RR", "CR", "UF"],
}
GPU = {
    "name": "gpu",
    "address": "0000:00:02.0",
    "id": "1002:1506",
    "class": "030000",
    "kind": "integrated_endpoint",
    "capabilities": ["ats", "pri", "pasid"],
}
DIRECT = {"start": 0x1FFDD000, "end": 0x1FFDDFFF, "type": "direct"}
MSI = "0x00000000fee00000 0x00000000feefffff msi"
HT = "0x000000fd00000000 0x000000ffffffffff reserved"


def case_id(value):
    """A case's name, the same in every process whatever the order of a set."""
    return " ".join(sorted(value)) if isinstance(value, set | frozenset) else str(value)


def device(address, **more):
    return {"name": address, "address": f"0000:{address}", "id": "1022:149c", "kind": "integrated_endpoint", **more}


def boot(kernel, *devices, hardware=None, firmware=None, cmdline="", kconfig="lazy", encryption=False):
    machine = Machine.model_validate(
        {
            "machine": "m",
            "arch": "x86_64",
            "hardware": hardware or {},
            "firmware": {"IVRS": firmware} if firmware else {},
            "devices": devices or (PORT, NIC),
        }
    )
    spec = BootSpec(kconfig=kconfig, cmdline=cmdline, memory_encryption=encryption)
    return start_system(get_kernel(kernel), AMD, REGISTRY, machine, spec)


def driver_of(system):
    return system.units[0].state.driver


def table(*entries, type="ivhd11", own=0x0002, info=0x203041, efr=0x29D3, blocks=(), **more):
    """An IVRS with one unit."""
    image = {} if type == "ivhd10" else {"efr_image": efr}
    unit = {"kind": type, "device": own, "address": 0xFEB80000, "entries": entries, **image, **more}
    return {"info": info, "blocks": [unit, *blocks]}


def select(device):
    return {"kind": "select", "device": device}


def span(first, last):
    return [{"kind": "range_start", "device": first}, {"kind": "range_end", "device": last}]


EVERYTHING = {"kind": "all"}
SOUTHBRIDGE = {"kind": "special", "handle": 0, "source": 0xA0, "variety": "ioapic"}


def regions(system, name):
    return [region.sysfs for region in system.group_regions(system.devices[name].group)]
