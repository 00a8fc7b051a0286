"""Mistakes about reserved regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from iommukit.device import Device
from iommukit.domain import Domain, DomainType
from iommukit.hookspecs import hookimpl
from iommukit.regions import RegionType, ReservedRegion
from iommukit_conformance.wrong.base import Wrong


class ForgetsDirectRegions(Wrong):
    """Only the interrupt window."""

    mistake = "It does not report firmware's 1:1 regions, so that firmware's DMA faults as soon as the device is translated."
    rule = "DRV-51"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """Without the regions that stay."""
        return [region for region in super().get_resv_regions(device) if region.type is not RegionType.DIRECT]


class ReservesDirectRegions(Wrong):
    """The wrong type."""

    mistake = "It reports firmware's 1:1 regions as reserved: nothing is mapped there, instead of everything."
    rule = "DRV-51"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """Reserved means never mapped."""
        return [
            replace(region, type=RegionType.RESERVED) if region.type.is_direct else region
            for region in super().get_resv_regions(device)
        ]


class RelaxesDirectRegions(Wrong):
    """Makes assignment work."""

    mistake = "It reports regions that must stay as relaxable, so that a guest gets the device without them."
    rule = "DRV-51"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """Only firmware may relax."""
        return [
            replace(region, type=RegionType.DIRECT_RELAXABLE) if region.type is RegionType.DIRECT else region
            for region in super().get_resv_regions(device)
        ]


class LosesTheLastPage(Wrong):
    """An end that is not inclusive."""

    mistake = "It takes a region's last byte for its length's and loses the last page."
    rule = "DRV-51"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """Off by one page."""
        return [
            replace(region, end=region.end - 0x1000) if region.type.is_direct else region
            for region in super().get_resv_regions(device)
        ]


class LengthForEnd(Wrong):
    """Start and length."""

    mistake = "It reports start and length where start and end are asked for, so that regions end before they start."
    rule = "DRV-50"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """Below 4 GiB the length is the smaller number."""
        return [replace(region, end=region.end - region.start) for region in super().get_resv_regions(device)]


class TellsRegionsOnce(Wrong):
    """A list that is used up."""

    mistake = "It reports a device's regions the first time only, so that the next domain lacks them."
    rule = "DRV-53"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """An iterator kept in the device."""
        told = device.vendor_state == "told"
        device.vendor_state = "told"
        return [] if told else super().get_resv_regions(device)


class UnmapsRegions(Wrong):
    """Clears what it finds."""

    mistake = "It empties a domain when a device is attached, direct regions and all."
    rule = "DRV-52"

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        """A clean start that takes firmware's mappings along."""
        super().attach_dev(domain, device)
        if domain.type is not DomainType.IDENTITY:
            domain.direct.clear()


class IgnoresTheMachineFile(Wrong):
    """Knows two types."""

    mistake = "It ignores the machine file's regions that are never to be mapped, instead of refusing the machine."
    rule = "DRV-54"

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """Reserved regions are left out."""
        return [region for region in super().get_resv_regions(device) if region.type is not RegionType.RESERVED]
