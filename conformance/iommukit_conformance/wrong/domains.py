"""Mistakes about domains and attachments."""

from __future__ import annotations

from iommukit.device import Device
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.hookspecs import hookimpl
from iommukit_conformance.reference import LAST_ADDRESS, PAGE_SIZES, unit_of
from iommukit_conformance.wrong.base import Wrong


class MovedBeforeRefused(Wrong):
    """Writes first, checks afterwards."""

    mistake = "It moves the device before it looks whether it can, so that a refused device sits in a domain that is freed."
    rule = "DRV-36"

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        """The wrong way round."""
        device.attached = domain
        if domain.aperture[0] > LAST_ADDRESS:
            raise IommuError("EINVAL", "the domain lies beyond the unit's addresses")


class KeepsTheOldDomain(Wrong):
    """An error code that is dropped."""

    mistake = "It keeps a device that is in use in its old domain, and answers success."
    rule = "DRV-35"

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        """Once attached, always there."""
        if device.attached is None:
            super().attach_dev(domain, device)


class TranslatedForIdentity(Wrong):
    """Falls back by itself."""

    mistake = "It answers a translated domain where identity was asked for, and says nothing."
    rule = "DRV-30"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """The core would have fallen back, and said so."""
        return super().domain_alloc(device, DomainType.DMA if type is DomainType.IDENTITY else type)


class OneDomainForAll(Wrong):
    """Saves memory."""

    mistake = "It gives all groups the same translated domain, so that each device reaches the others' buffers."
    rule = "DRV-31"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """One domain for each unit."""
        if type is not DomainType.DMA:
            return super().domain_alloc(device, type)
        unit = device.unit
        assert unit is not None
        shared = [other.attached for other in device.system.devices.values() if other.attached and other.attached.type is type]
        return shared[0] if shared else super().domain_alloc(device, type)


class SharedButNotStatic(Wrong):
    """Static in the driver, not in its word."""

    mistake = "Its one identity domain does not say that it is static, so that the core frees it under other groups."
    rule = "DRV-31"
    kernel = "6.12"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """One object for the unit."""
        domain = super().domain_alloc(device, type)
        if domain is not None and type is DomainType.IDENTITY:
            domain.static = False
        return domain


class CachesFreedDomains(Wrong):
    """A cache of domains, by device."""

    mistake = "It hands out a domain again that the core has given back."
    rule = "DRV-38"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """From the cache, if there is one."""
        cache: dict[DomainType, Domain] = device.vendor_state or {}
        device.vendor_state = cache
        known = cache.get(type)
        if known is not None and known.freed:
            return known
        domain = super().domain_alloc(device, type)
        if domain is not None and not domain.static:
            cache[type] = domain
        return domain


class CrashesOnUnknownTypes(Wrong):
    """A table without a default."""

    mistake = "It raises KeyError for a type that it does not have, which no core catches."
    rule = "DRV-02"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """Blocking was forgotten."""
        offered: dict[DomainType, DomainType] = {kind: kind for kind in DomainType if kind.value}
        return super().domain_alloc(device, offered[type])


class BreaksAfterARefusal(Wrong):
    """Takes a refusal for a fault of the hardware."""

    mistake = "Once it has refused a type, it refuses everything to the device."
    rule = "DRV-32"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """Marks the device."""
        domain = None if device.vendor_state == "broken" else super().domain_alloc(device, type)
        if domain is None:
            device.vendor_state = "broken"
        return domain


class DetachesWhenAsked(Wrong):
    """Frees the place before it knows."""

    mistake = "It takes a device out of its domain while it is only asked for another one."
    rule = "DRV-15"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """A gap in protection, or in the firmware's mapping."""
        device.attached = None
        return super().domain_alloc(device, type)


class NoTranslation(Wrong):
    """Half a driver."""

    mistake = "It refuses translated domains to devices that need identity, so that nobody can ever isolate them."
    rule = "DRV-33"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """The requirement belongs in def_domain_type."""
        if type is DomainType.DMA and device.facts.role == "identity-required":
            raise IommuError("EOPNOTSUPP")
        return super().domain_alloc(device, type)


class NoPageSizes(Wrong):
    """Sizes in pages in the place of bytes."""

    mistake = "Its domains map pages of 1, 512 and 262144 bytes: it counts in pages, not in bytes."
    rule = "DRV-34"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """The unit of the bitmap is a byte."""
        domain = super().domain_alloc(device, type)
        if domain is not None and not domain.static:
            domain.page_sizes = PAGE_SIZES >> 12
        return domain


class BlockedButAttached(Wrong):
    """Says that it is done."""

    mistake = "It answers that a leaving device is blocked, and leaves it in its domain."
    rule = "DRV-37"

    @hookimpl
    def set_dev_blocked(self, device: Device) -> bool:
        """Nothing is done."""
        return True


class ForgetsTheDmaApi(Wrong):
    """An empty probe_finalize."""

    mistake = "It does not point mapping calls at the domain, so that drivers hand physical addresses to a translated device."
    rule = "DRV-16"
    kernel = "6.1"

    @hookimpl
    def probe_finalize(self, device: Device) -> None:
        """Since 6.12 that would be right."""


class DefersEverybody(Wrong):
    """Waits for the driver in any kernel."""

    mistake = "It defers attachments although no kernel has crashed before, so that devices run without a domain."
    rule = "DRV-14"

    @hookimpl
    def is_attach_deferred(self, device: Device) -> bool:
        """Not only in a kdump kernel."""
        return device.attached is None


class RetypesTheDomain(Wrong):
    """Writes into what the core holds."""

    mistake = "It turns an identity domain into a translated one while the core, and sysfs, hold it for identity."
    rule = "INV-05"
    kernel = "6.12"

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        """The type is the core's promise to root."""
        super().attach_dev(domain, device)
        if domain is unit_of(device).identity:
            domain.type = DomainType.DMA


class BypassesInTheEnd(Wrong):
    """Fast behind everybody's back."""

    mistake = "It puts a device into identity in probe_finalize, after the core has put it into its group's domain."
    rule = "DRV-39"

    @hookimpl
    def probe_finalize(self, device: Device) -> None:
        """Sysfs still says translated."""
        super().probe_finalize(device)
        device.attached = unit_of(device).identity
