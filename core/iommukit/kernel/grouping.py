"""Which devices share a group (``drivers/iommu/iommu.c``: ``pci_device_group`` and its relatives; the same in all profiles).

Only groups that exist already are found, so devices are probed from the root downward and group numbers follow the order
of probing.
"""

from __future__ import annotations

from iommukit.device import Device
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.acs import acs_enabled, acs_path_enabled
from iommukit.kernel.aliases import are_aliases, dma_aliases


def generic_device_group(device: Device) -> Group:
    """A new group for each device."""
    return device.system.new_group()


def generic_single_device_group(device: Device) -> Group:
    """One group for each IOMMU (7.2: rockchip, omap and others)."""
    for other in device.system.devices.values():
        if other.unit is device.unit and other.group is not None:
            return other.group
    return device.system.new_group()


def pci_device_group(device: Device) -> Group:
    """The group of a PCI function by its aliases, the ACS bits above it and its slot.

    Raises ``IommuError("EINVAL")`` for a device that is not PCI.
    """
    if device.facts.pci is None or device.bus is None:
        raise IommuError("EINVAL", f"{device.label} is no PCI function")
    # 1. Whoever stands for the function's requests and has a group.
    representative = device
    for alias, _ in dma_aliases(device):
        representative = alias
        if alias.group is not None:
            return alias.group
    # 2. Up to the first bridge from which isolation holds all the way.
    bus = representative.bus
    while bus is not None and bus.bridge is not None:
        if acs_path_enabled(bus.bridge):
            break
        representative = bus.bridge
        if representative.group is not None:
            return representative.group
        bus = representative.bus
    # 3. Functions of the same bus that share requester ids.
    seen: set[int] = set()
    group = _alias_group(representative, seen) or _function_group(representative, seen)
    # 4. Nobody.
    return group or device.system.new_group()


def _alias_group(device: Device, seen: set[int]) -> Group | None:
    """A group among the functions whose requester ids overlap (``get_pci_alias_group``)."""
    assert device.facts.pci is not None
    if device.facts.pci.devfn in seen:
        return None
    seen.add(device.facts.pci.devfn)
    if device.group is not None:
        return device.group
    if device.bus is None or not device.system.aliased_buses:
        return None
    if (device.bus.segment, device.bus.number) not in device.system.aliased_buses:
        return None
    for other in device.bus.devices():
        if other is device or not are_aliases(device, other):
            continue
        group = _alias_group(other, seen) or _function_group(other, seen)
        if group is not None:
            return group
    return None


def _function_group(device: Device, seen: set[int]) -> Group | None:
    """A group among the slot's other functions that are not isolated either (``get_pci_function_alias_group``)."""
    if not device.multifunction or device.bus is None or acs_enabled(device):
        return None
    assert device.facts.pci is not None
    for other in device.bus.slots.get(device.facts.pci.slot, ()):
        if other is device or acs_enabled(other):
            continue
        group = _alias_group(other, seen)
        if group is not None:
            return group
    return None
