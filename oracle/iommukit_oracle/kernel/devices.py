"""QEMU's devices: which of them stand for the devices of machine files, and what drives them in a guest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iommukit.device import DeviceKind
from iommukit_oracle.guest.variants import OWN_NUMBERS


@dataclass(frozen=True, slots=True)
class Model:
    """A device of QEMU: its name, the guest's driver that does its DMA, what that can be asked to do, and what it is backed by."""

    name: str
    driver: str | None = None
    work: str = ""
    backend: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)


NETWORK = Model("e1000e", "e1000e", "network", "netdev", {"romfile": ""})
DISK = Model("nvme", "nvme", "disk", "drive", {"serial": "iommukit"})
USB = Model("qemu-xhci", "xhci_hcd")
CARD = Model("edu")
_VIRTIO = {"iommu_platform": "on", "disable-legacy": "on"}
VIRTIO_NETWORK = Model("virtio-net-pci", "virtio-pci", "network", "netdev", {**_VIRTIO, "romfile": ""})
VIRTIO_DISK = Model("virtio-blk-pci", "virtio-pci", "disk", "drive", _VIRTIO)
SHARING: Mapping[str, Model] = {"arm_smmu": DISK}
"""By vendor: what shares a slot with others, if not virtio: Arm's kernels have that built in, and it binds unasked."""

ENDPOINTS: Mapping[str, Model] = {"8086:10d3": NETWORK, "1b36:0010": DISK, "1b36:000d": USB, "1234:11e8": CARD}
"""By vendor and device: what QEMU has."""
STAND_INS: Mapping[str, Model] = {
    # Whose numbers no driver of the kernel's IOMMU layer looks at.
    "15b3:1016": NETWORK,
    "8086:2822": NETWORK,
    "1022:15e0": NETWORK,
    "8086:a12f": USB,
}
"""Devices that QEMU lacks and whose numbers mean nothing to the IOMMU code, and what is taken for them."""
_SILENT = Model("pvscsi")
_SILENT_TOO = Model("vmxnet3")
RENUMBERED: Mapping[str, Model] = {
    # That need an identity domain, by their own numbers or by a companion's register.
    "19e5:a12e": _SILENT,
    "8086:3a3e": _SILENT,
    "8086:342e": _SILENT_TOO,
    # That isolate without saying so, or would if they were ports.
    "8086:1521": Model("e1000e", backend="netdev", properties={"romfile": ""}),
    "8086:8c10": _SILENT,
}
"""Devices that the kernel's IOMMU layer knows by their numbers, and whose model at QEMU is given these (``guest/variants.py``)."""
RENUMBERED_PORTS = frozenset(("pcie-root-port", numbers) for numbers in ("8086:8c10", "177d:af84", "8086:8a1d"))
"""Ports of that kind."""
ZPCI: Mapping[str, Model] = {
    "8086:10d3": VIRTIO_NETWORK,
    "15b3:1016": VIRTIO_NETWORK,
    "1234:11e8": VIRTIO_NETWORK,
    "1b36:0010": VIRTIO_DISK,
}
"""The functions of s390, where QEMU's virtio devices are all there is."""

BRIDGES: Mapping[DeviceKind, str] = {
    DeviceKind.ROOT_PORT: "pcie-root-port",
    DeviceKind.UPSTREAM_PORT: "x3130-upstream",
    DeviceKind.DOWNSTREAM_PORT: "xio3130-downstream",
    DeviceKind.PCIE_TO_PCI_BRIDGE: "pcie-pci-bridge",
    DeviceKind.PCI_BRIDGE: "pci-bridge",
}
NUMBERS: Mapping[str, str] = {
    "pcie-root-port": OWN_NUMBERS["pcie-root-port"],
    "x3130-upstream": "104c:8232",
    "xio3130-downstream": "104c:8233",
    "pcie-pci-bridge": "1b36:000e",
    "pci-bridge": "1b36:0001",
}
"""Vendor and device of QEMU's ports and bridges: the kernel knows some makers' by their quirks."""
NUMBERED = frozenset({"pcie-root-port", "xio3130-downstream"})
"""Ports that want numbers for chassis and slot."""
PLUGGABLE = frozenset({DeviceKind.ROOT_PORT, DeviceKind.DOWNSTREAM_PORT})
"""Ports below which QEMU plugs and unplugs."""
