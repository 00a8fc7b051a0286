"""Access control services: whether a function keeps peer-to-peer traffic apart (``drivers/pci/pci.c``, PCIe 6.12)."""

from __future__ import annotations

from iommukit.device import Device, DeviceKind

REQUIRED = frozenset({"SV", "RR", "CR", "UF"})
"""What isolation asks for: source validation, request and completion redirect, upstream forwarding."""

_NEVER = frozenset({DeviceKind.PCIE_TO_PCI_BRIDGE, DeviceKind.PCI_TO_PCIE_BRIDGE, DeviceKind.EVENT_COLLECTOR})
_PORTS = frozenset({DeviceKind.ROOT_PORT, DeviceKind.DOWNSTREAM_PORT})


def _ids(vendor: int, *devices: int) -> set[tuple[int, int]]:
    return {(vendor, device) for device in devices}


_NO_PEER_TO_PEER = frozenset(
    # Multifunction network adapters whose makers state that functions do not reach each other (pci_quirk_mf_endpoint_acs).
    _ids(0x1924, 0x0903, 0x0923, 0x0A03)
    | _ids(0x8086, 0x10C6, 0x10DB, 0x10DD, 0x10E1, 0x10F1, 0x10F7, 0x10F8, 0x10F9, 0x10FA, 0x10FB, 0x10FC)
    | _ids(0x8086, 0x1507, 0x1514, 0x151C, 0x1529, 0x152A, 0x154D, 0x154F, 0x1551, 0x1558)
    | _ids(0x8086, 0x1509, 0x150E, 0x150F, 0x1510, 0x1511, 0x1516, 0x1527)
    | _ids(0x8086, 0x10C9, 0x10E6, 0x10E7, 0x10E8, 0x150A, 0x150D, 0x1518, 0x1526)
    | _ids(0x8086, 0x10A7, 0x10A9, 0x10D6, 0x1521, 0x1522, 0x1523, 0x1524)
    | _ids(0x8086, 0x105E, 0x105F, 0x1060, 0x10D9, 0x15B7, 0x15B8)
    | _ids(0x14E4, 0x16D7, 0x1750, 0x1751, 0x1752)
    | _ids(0x10DF, 0x0720)
    | _ids(0x1DED, 0x0710, 0x8000)
    | _ids(0x19A2, 0x0710, 0x0714)
)

_INTEL = 0x8086
"""Intel's endpoints in the root complex let peers reach each other by translated addresses alone (``pci_quirk_rciep_acs``)."""

_CHIPSET_PORTS = frozenset(
    # Intel root ports without the capability that isolate all the same (pci_quirk_intel_pch_acs): Ibex Peak, Cougar Point,
    # Panther Point, Lynx Point, Lynx Point-LP, Wildcat Point-LP, Patsburg, Wellsburg.
    _ids(0x8086, 0x3B42, 0x3B43, 0x3B44, 0x3B45, 0x3B46, 0x3B47, 0x3B48, 0x3B49, 0x3B4A, 0x3B4B, 0x3B4C, 0x3B4D, 0x3B4E)
    | _ids(0x8086, 0x3B4F, 0x3B50, 0x3B51)
    | {(0x8086, 0x1C10 + n) for n in range(16)}
    | {(0x8086, 0x1E10 + n) for n in range(16)}
    | {(0x8086, 0x8C10 + n) for n in range(16)}
    | {(0x8086, 0x9C10 + n) for n in range(12)}
    | {(0x8086, 0x9C90 + n) for n in range(12)}
    | {(0x8086, 0x1D10 + n) for n in range(0, 16, 2)}
    | {(0x8086, 0x8D10 + n) for n in range(16)}
    | {(0x8086, 0x8C90 + n) for n in range(0, 16, 2)}
)

_SERVER_PORTS = frozenset(
    # Root ports that provide isolation without saying so: Qualcomm, X-Gene, ThunderX2, Zhaoxin.
    _ids(0x17CB, 0x0400, 0x0401) | _ids(0x10E8, 0xE004) | _ids(0x177D, 0xA02C, 0xAF84) | _ids(0x1D17, 0x3038, 0x3104, 0x9083)
)

_SOUTH_BRIDGE = frozenset(
    # Functions of AMD's south bridges, isolated only where an IVRS describes them (pci_quirk_amd_sb_acs).
    _ids(0x1002, 0x4385, 0x439C, 0x4383, 0x439D, 0x4399) | _ids(0x1022, 0x780F, 0x7809)
)


def _quirk(device: Device) -> bool | None:
    """The device-specific answer for the required set (``pci_dev_specific_acs_enabled``), ``None`` where there is none."""
    ids = device.facts.ids
    kind = device.facts.kind
    if ids in _NO_PEER_TO_PEER:
        return True
    if kind is DeviceKind.INTEGRATED_ENDPOINT and device.facts.vendor_id == _INTEL and not device.facts.acs_unknown:
        return True
    if kind in _PORTS and (ids in _SERVER_PORTS or (ids in _CHIPSET_PORTS and device.system.boot.arch == "x86_64")):
        return True  # of a chipset's port the kernel makes sure at the bridge of the same chipset
    if ids in _SOUTH_BRIDGE and kind is not DeviceKind.ROOT_PORT:
        return "IVRS" in device.system.machine.firmware and device.multifunction
    return None


def acs_enabled(device: Device) -> bool:
    """Whether the required set holds at one function (``pci_acs_enabled``).

    A machine file states the enabled bits (``acs``), or only what the hardware implements (``attributes: {acs_capability: […]}``):
    the kernel then enables that if an IOMMU driver asks for it before the scan (``pci_request_acs``).

    Where the machine file says that the bits are unknown, the system's assumption answers; running a boot with both
    assumptions shows which groups depend on it.
    """
    answer = _quirk(device)
    if answer is not None:
        return answer
    kind = device.facts.kind
    if not kind.is_pcie or kind in _NEVER:
        return False
    if kind not in _PORTS and not device.multifunction:
        return True
    facts = device.facts
    if facts.acs_unknown:
        return device.system.assume_acs
    implemented = facts.attributes.get("acs_capability")
    enabled = facts.acs
    if enabled is None and implemented is not None and device.system.boot.acs_requested:
        enabled = frozenset(implemented)
    # A bit that the hardware does not implement counts as enabled.
    return enabled is not None and (REQUIRED if implemented is None else REQUIRED.intersection(implemented)) <= enabled


def acs_path_enabled(start: Device) -> bool:
    """Whether the required set holds at ``start`` and everything above it (``pci_acs_path_enabled``)."""
    device: Device | None = start
    while device is not None:
        if not acs_enabled(device):
            return False
        device = device.bus.bridge if device.bus else None
    return True
