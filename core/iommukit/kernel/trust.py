"""Which PCI functions are untrusted (``drivers/pci/probe.c:set_pcie_untrusted``), in both generations of the rule."""

from __future__ import annotations

import enum

from iommukit.device import Device, DeviceKind


class TrustRule(enum.Enum):
    """The generation of the rule."""

    BELOW_EXTERNAL_PORT = "below an external-facing port"
    """Mainline 6.1: everything below an external-facing port."""
    REMOVABLE = "tunnelled below an external-facing port"
    """Stable 6.1.176 or earlier, 6.12, 7.2: x86 with ACPI only, and a discrete controller's own functions are trusted."""


INTEGRATED_THUNDERBOLT = frozenset(
    (0x8086, device)
    for device in (
        *(0x8A1D, 0x8A1F, 0x8A21, 0x8A23),  # Ice Lake
        *(0x9A23, 0x9A25, 0x9A27, 0x9A29),  # Tiger Lake-LP
        *(0x9A2B, 0x9A2D, 0x9A2F, 0x9A31),  # Tiger Lake-H
    )
)
"""Root ports of processors whose firmware does not say that their ports tunnel."""


def is_untrusted(device: Device, rule: TrustRule, arch: str) -> bool:
    """Whether a function is untrusted when the kernel meets it.  Set once, inherited downward, never cleared."""
    parent = device.parent
    if parent is None or not device.facts.kind.is_pci:
        return False
    if parent.untrusted:
        return True
    if rule is TrustRule.BELOW_EXTERNAL_PORT:
        return parent.facts.external_facing
    return arch == "x86_64" and _is_tunnelled(device, parent)


def _is_tunnelled(device: Device, parent: Device) -> bool:
    """``arch_pci_dev_is_removable`` of x86."""
    root = parent
    while root.parent is not None:
        root = root.parent
    if root.facts.kind is not DeviceKind.ROOT_PORT or not root.facts.external_facing:
        return False
    if parent.facts.usb4_host_interface or parent.facts.ids in INTEGRATED_THUNDERBOLT:
        return True
    return not _in_discrete_controller(device, root)


_ABOVE = {
    DeviceKind.UPSTREAM_PORT: (),
    DeviceKind.DOWNSTREAM_PORT: (DeviceKind.UPSTREAM_PORT,),
    DeviceKind.ENDPOINT: (DeviceKind.DOWNSTREAM_PORT, DeviceKind.UPSTREAM_PORT),
}
"""What lies between a discrete controller's own function and the root port."""


def _in_discrete_controller(device: Device, root: Device) -> bool:
    """Whether a function belongs to the switch directly below the root port."""
    chain = _ABOVE.get(device.facts.kind)
    if chain is None:
        return False
    above = device.parent
    for kind in chain:
        if above is None or above.facts.kind is not kind:
            return False
        above = above.parent
    return above is root
