"""Mistakes about groups."""

from __future__ import annotations

from iommukit.device import Device, DeviceKind
from iommukit.group import Group
from iommukit.hookspecs import hookimpl
from iommukit.kernel.grouping import generic_device_group, generic_single_device_group, pci_device_group
from iommukit_conformance.wrong.base import Wrong


class GroupsAcrossAMissingAcs(Wrong):
    """Each function alone, whatever is above it."""

    mistake = "It gives each function a group of its own, also where nothing keeps functions apart."
    rule = "DRV-61"

    @hookimpl
    def device_group(self, device: Device) -> Group:
        """Topology plays no part."""
        return generic_device_group(device)


class OneGroupForAll(Wrong):
    """The unit is the group."""

    mistake = "It puts all devices of the unit into one group, so that none can be assigned."
    rule = "DRV-62"

    @hookimpl
    def device_group(self, device: Device) -> Group:
        """The rule of units that cannot tell devices apart."""
        return generic_single_device_group(device)


class ForgetsConventionalBridges(Wrong):
    """PCI Express is all that there is."""

    mistake = "It keeps conventional PCI devices apart, although their bridge speaks for all of them with one id."
    rule = "DRV-61"

    @hookimpl
    def device_group(self, device: Device) -> Group:
        """Requester ids on a shared bus are not the devices' own."""
        if device.facts.kind is DeviceKind.CONVENTIONAL:
            return generic_device_group(device)
        return pci_device_group(device)


class GroupsByBus(Wrong):
    """A bus is a group."""

    mistake = "It groups by bus number, also behind ports that keep functions apart."
    rule = "DRV-62"

    @hookimpl
    def device_group(self, device: Device) -> Group:
        """Whoever is on the bus already."""
        for other in device.bus.devices() if device.bus else ():
            if other.group is not None:
                return other.group
        return pci_device_group(device)


class AGroupOfItsOwnMaking(Wrong):
    """Makes the object itself."""

    mistake = "It answers a group that it has made itself, without the system's knowledge."
    rule = "DRV-60"

    @hookimpl
    def device_group(self, device: Device) -> Group:
        """Its number may be another group's."""
        return Group(len(device.system.groups))
