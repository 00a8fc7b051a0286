"""From QEMU's command line and the recorded PCI functions to a machine of this project.

A device's name in the machine is its address.  What QEMU's command line does not say is taken from what the kernel printed or
showed: the capability words of the IOMMU, the memory that firmware tables reserve, the ports that firmware calls external.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from iommukit.device import DeviceKind
from iommukit.errors import InputError
from iommukit.kernel.cmdline import split_cmdline
from iommukit.kernel.profiles import get_kernel
from iommukit.machine.model import BootSpec, DeviceSpec, Machine
from iommukit_oracle.events import later_devices
from iommukit_oracle.qemu_arguments import (
    BRIDGES,
    HAS_ACS,
    QemuArguments,
    QemuDevice,
    Slot,
    bus_below,
    kind_of,
    parse_qemu_arguments,
    place_devices,
)
from iommukit_oracle.recording import GroupEntry, PciEntry, Recording

ARCH = {"amd64": "x86_64", "arm64": "aarch64", "s390x": "s390x"}
"""The recordings' architectures (Debian's names) as machine files call them."""

PROFILE = {"6.1": "6.1.192"}
"""Kernels whose profile has another name, where a recording does not tell its release: those of 6.1 are of its stable series."""
_RELEASES = tuple(map(re.compile, (r" Debian (\d+\.\d+\.\d+)-\S+ \(\d{4}-", r"^Linux version (\d+\.\d+\.\d+)")))
"""The release in a kernel's words of itself: Debian's stands at the end, as its names have their own last number."""

ACS = ("SV", "RR", "CR", "UF")
"""What the kernel enables of QEMU's access control capability once somebody has asked for it."""

EMPTY = {"8086:342e": {"0x188": 0}}
"""Registers of devices that a quirk of the kernel reads: QEMU's device with such numbers has nothing there."""

EXTERNAL_PORT = "0000:00:06.0"
"""The port that the project's own tables (``extport.asl``, ``virt-ext.dts``) call external-facing."""

CHIPSET_SLOT = "0000:00:1f."
"""The q35 chipset's functions, all with the multifunction bit."""

NPCACHE = 1 << 26
"""NpCache in the AMD capability header (AMD I/O Virtualization Technology Specification, 3.2.1)."""


# ---- the machine -----------------------------------------------------------------------------------------------------


def machine_of(recording: Recording, later: Mapping[str, str] = MappingProxyType({})) -> Machine:
    """The machine that a recording was made on; ``later`` are further devices that are not there at boot, QEMU's model by address.

    Raises ``InputError`` for arguments that cannot be read and for an architecture or vendor that is not recorded.
    """
    arch = ARCH.get(recording.arch)
    describe = HARDWARE.get(recording.vendor)
    if arch is None or describe is None:
        wanted = ", ".join([*ARCH, *HARDWARE])
        message = f"an architecture and a vendor among {wanted} were expected, got {recording.arch} and {recording.vendor}"
        raise InputError(message, source=recording.id)
    arguments = parse_qemu_arguments(recording)
    devices = _zpci(recording, arguments, later) if arch == "s390x" else _functions(recording, arguments, later)
    try:
        return Machine(
            machine=re.sub(r"[^A-Za-z0-9._-]", "_", recording.id)[:100] or "recorded",
            summary="as recorded",
            arch=arch,
            hardware=describe(recording, arguments),
            devices=tuple(devices),
        )
    except ValidationError as error:
        message = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
        raise InputError(f"makes no machine: {message}", source=recording.id) from error


def boot_of(recording: Recording) -> BootSpec:
    """How the recorded kernel was built and started.

    Debian builds with the Intel IOMMU on; the builds of the posted patch leave it off.  Drivers are bound by the machine or by
    steps.
    """
    config = {"INTEL_IOMMU_DEFAULT_ON": not recording.kernel.startswith("rfc")}
    return BootSpec(cmdline=recording.cmdline, drivers="none", config=config)


def profile_of(recording: Recording) -> str:
    """The name of the kernel profile: of 6.1, that of the release in the stable series."""
    if recording.kernel not in PROFILE:
        return recording.kernel
    told = next((found[1] for pattern in _RELEASES if (found := pattern.search(recording.uname))), PROFILE[recording.kernel])
    return get_kernel(told).name


def _functions(recording: Recording, arguments: QemuArguments, later: Mapping[str, str]) -> Iterator[DeviceSpec]:
    """The functions there at boot, then those that are plugged in later."""
    placed = place_devices(arguments)
    external = _external_ports(recording, arguments, placed)
    reserved = _firmware_regions(recording)
    bound_later = {address for _, address in binds_at_boot(recording)}
    for entry in recording.functions:
        slot = placed.get(entry.bdf)
        driver = None if entry.bdf in bound_later else entry.driver or None
        extra = {"reserved": reserved.get(entry.bdf, ()), "external_facing": entry.bdf in external, "driver": driver}
        yield _spec(entry, slot, placed, extra)
    bridges = [address for address, slot in placed.items() if slot.device.model in BRIDGES]
    for address, model in {**dict(later_devices(recording)), **later}.items():
        parent = next((bridge for bridge in bridges if bus_below(placed, bridge) == address[5:7]), None)
        slot = Slot(QemuDevice(model, {}), address, parent)
        entry = PciEntry.model_validate({"bdf": address, "id": "0000:0000"})
        yield _spec(entry, slot, placed, {"present": False, "reserved": reserved.get(address, ())})


def _spec(entry: PciEntry, slot: Slot | None, placed: dict[str, Slot], extra: dict[str, Any]) -> DeviceSpec:
    fields: dict[str, Any] = {
        "name": entry.bdf,
        "address": entry.bdf,
        "id": entry.ids,
        "class": entry.class_code.removeprefix("0x"),
        "kind": DeviceKind.CONVENTIONAL,
        "multifunction": entry.bdf.startswith(CHIPSET_SLOT),
        **extra,
    }
    if slot is not None:
        fields["kind"] = kind_of(slot, placed)
        fields["multifunction"] = slot.device.on("multifunction")
        fields["parent"] = slot.parent
        if slot.device.model in BRIDGES:
            fields["buses"] = bus_below(placed, slot.address)
        if slot.device.model in HAS_ACS and not slot.device.on("disable-acs"):
            fields["attributes"] = {"acs_capability": ACS}
        if entry.ids in EMPTY:
            fields["attributes"] = {"registers": EMPTY[entry.ids]}
        if slot.device.on("ats"):
            fields["capabilities"] = ("ats",)
    return DeviceSpec.model_validate(fields)


def _external_ports(recording: Recording, arguments: QemuArguments, placed: dict[str, Slot]) -> set[str]:
    """The ports that firmware calls external: named by a table of the project, or above a function that sysfs calls removable."""
    ports = {EXTERNAL_PORT} if any("ext" in name for name in arguments.tables) else set()
    for entry in recording.functions:
        slot = placed.get(entry.bdf)
        if entry.removable == "removable" and slot is not None:
            while slot.parent is not None:
                slot = placed[slot.parent]
            ports.add(slot.address)
    return ports


# ---- memory that firmware reserves -----------------------------------------------------------------------------------

_RMRR = re.compile(r"DMAR: RMRR base: 0x([0-9a-f]+) end: 0x([0-9a-f]+)")
_LOCKED = re.compile(r"(\S+): DMAR: Device is ineligible for IOMMU domain attach")


def _firmware_regions(recording: Recording) -> dict[str, list[dict[str, Any]]]:
    """Regions by device: those that firmware was made to name, else those of RMRR and IVMD structures, as the groups show them.

    A group shows the regions of all its members.  The device is the member that no group without the region has, and, if
    several are left, the one that the kernel named when it refused to attach it.
    """
    if recording.firmware is not None:
        return {device: [_region(text) for text in texts] for device, texts in recording.firmware.items()}
    rmrrs = {(int(match[1], 16), int(match[2], 16)) for line in recording.iommu_log if (match := _RMRR.search(line))}
    seen = [recording.groups, *recording.snapshots.values()]
    groups = [group for snapshot in seen for group in snapshot]
    locked = {match[1] for write in recording.writes for line in write.dmesg if (match := _LOCKED.search(line))}
    locked = {name.rpartition(" ")[2] for name in locked}
    found: dict[str, list[dict[str, Any]]] = {}
    for text in sorted({text for group in groups for text in group.reserved}):
        region = _region(text)
        in_table = (region["start"], region["end"]) in rmrrs
        from_table = in_table if recording.vendor == "intel_vtd" else region["type"] == "direct"
        if recording.arch != "amd64" or not from_table:
            continue
        devices = _having(text, groups)
        named = devices & locked
        for device in sorted(named if named and len(devices) > 1 else devices):
            found.setdefault(device, []).append(region)
    return found


def _region(text: str) -> dict[str, Any]:
    first, last, kind = text.split("-", 2)
    return {"start": int(first, 16), "end": int(last, 16), "type": kind}


def _having(region: str, groups: list[GroupEntry]) -> set[str]:
    with_it = {device for group in groups if region in group.reserved for device in group.devices}
    return with_it - {device for group in groups if region not in group.reserved for device in group.devices}


# ---- binds that make groups ------------------------------------------------------------------------------------------

_ADDING = re.compile(r"^(\S+) (\S+): Adding to iommu group \d+$")


def binds_at_boot(recording: Recording) -> list[tuple[str, str]]:
    """Driver and address of the functions that got their group when a driver was about to bind, in the log's order.

    The driver is the first that tried; the one that is bound in the end may be another.
    """
    found = [match.groups() for line in recording.iommu_log if (match := _ADDING.match(line))]
    return [(driver, address) for driver, address in found if driver != "pci"]


# ---- what the IOMMU can do -------------------------------------------------------------------------------------------

_UNIT = re.compile(r"DMAR: dmar\d+: reg_base_addr [0-9a-f]+ ver (\S+) cap ([0-9a-f]+) ecap ([0-9a-f]+)")
_WIDTH = re.compile(r"DMAR: Host address width (\d+)")
_FEATURES = re.compile(r"AMD-Vi: Extended features \((0x[0-9a-f]+), (0x[0-9a-f]+)\)")
_TABLE_FEATURES = re.compile(r"AMD-Vi: Using global IVHD EFR:(0x[0-9a-f]+)")
_INITRD_TABLE = re.compile(r"ACPI table found in initrd \[(?:.*/)?([^/\]]+)\]")


def _matches(recording: Recording, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    return [match for line in recording.iommu_log if (match := pattern.search(line))]


def _intel(recording: Recording, arguments: QemuArguments) -> dict[str, Any]:
    """The capability words as printed; without them, what QEMU's properties say."""
    device = arguments.device("intel-iommu") or QemuDevice("intel-iommu", {})
    hardware: dict[str, Any] = {"interrupt_remapping": device.properties.get("intremap") != "off"}
    units = _matches(recording, _UNIT)
    if units:
        hardware["units"] = [{"version": u[1], "cap": int(u[2], 16), "ecap": int(u[3], 16)} for u in units]
    else:
        hardware.update({name: device.on(key) for key, name in _INTEL_PROPERTIES.items() if key in device.properties})
    widths = _matches(recording, _WIDTH)
    if widths:
        hardware["host_address_width"] = int(widths[0][1])
    if device.on("device-iotlb"):
        hardware["device_tlb"] = True
    if any("optin" in match[1] for match in _matches(recording, _INITRD_TABLE)):
        hardware["platform_opt_in"] = True
    return hardware


_INTEL_PROPERTIES = {
    "caching-mode": "caching_mode",
    "x-scalable-mode": "scalable_mode",
    "pt": "pass_through",
    "snoop-control": "snoop_control",
}


def _amd(recording: Recording, arguments: QemuArguments) -> dict[str, Any]:
    """The capability header and the feature register as the kernel showed them; without them, what QEMU is known to have."""
    device = arguments.device("amd-iommu") or QemuDevice("amd-iommu", {})
    header = next((unit.attribute("cap") for unit in recording.iommus), None) or ""
    known = re.fullmatch(r"[0-9a-f]+", header)
    cached = bool(int(header, 16) & NPCACHE) if known else "nonpcache" not in recording.qemu
    hardware: dict[str, Any] = {"np_cache": cached, "interrupt_remapping": device.properties.get("intremap") == "on"}
    for features in _matches(recording, _FEATURES):
        hardware.update(efr=int(features[1], 16), efr2=int(features[2], 16))
    for table in _matches(recording, _TABLE_FEATURES):
        hardware["efr_sup"] = int(table[1], 16) != 0
    return hardware


def _is_acpi(recording: Recording) -> bool:
    return ("acpi", "force") in list(split_cmdline(recording.cmdline))


def _arm(recording: Recording, arguments: QemuArguments) -> dict[str, Any]:
    return {"described_by": "acpi" if _is_acpi(recording) else "dt"}


def _s390(recording: Recording, arguments: QemuArguments) -> dict[str, Any]:
    return {"memory_size": arguments.memory}


HARDWARE: dict[str, Callable[[Recording, QemuArguments], dict[str, Any]]] = {
    "intel_vtd": _intel,
    "amd_vi": _amd,
    "arm_smmu": _arm,
    "s390": _s390,
}
"""By vendor: the machine's ``hardware``."""


_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")


def _zpci(recording: Recording, arguments: QemuArguments, later: Mapping[str, str]) -> Iterator[DeviceSpec]:
    """s390: each function is its own segment, whose number is QEMU's ``uid``."""
    numbers = ((device.properties.get("uid", ""), device.properties.get("fid", "")) for device in arguments.devices)
    fids = {int(uid, 0): int(fid, 0) for uid, fid in numbers if _NUMBER.fullmatch(uid) and _NUMBER.fullmatch(fid)}
    for entry in recording.functions:
        fid = fids.get(int(entry.bdf[:4], 16))
        yield DeviceSpec.model_validate(
            {
                "name": entry.bdf,
                "address": entry.bdf,
                "id": entry.ids,
                "class": entry.class_code.removeprefix("0x"),
                "kind": DeviceKind.ZPCI,
                "driver": entry.driver or None,
                "attributes": {"fid": fid} if fid is not None else {},
            }
        )
    for address in later:
        yield DeviceSpec.model_validate({"name": address, "address": address, "kind": DeviceKind.ZPCI, "present": False})
