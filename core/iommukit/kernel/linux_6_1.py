"""Linux 6.1 as released: a default domain *type*, and writes that only touch groups of one device."""

from __future__ import annotations

from typing import ClassVar

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops, start_flush_queue
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.boot import SystemDefault, TypeDefault
from iommukit.kernel.kernel import KEYWORDS, Kernel, device_answer, move_group, platform_dma
from iommukit.kernel.system import System
from iommukit.kernel.trust import TrustRule
from iommukit.policy import DmaApiPolicy, Era

REQUIRED_TYPE: dict[DmaApiPolicy, DomainType | None] = {
    DmaApiPolicy.IDENTITY: DomainType.IDENTITY,
    DmaApiPolicy.STRICT: DomainType.DMA,
    DmaApiPolicy.LAZY: DomainType.DMA_FQ,
    DmaApiPolicy.ANY: None,
}
"""How ``iommu_get_def_domain_type`` reads a driver's answer."""

FALLBACK_LINE = "iommu: Failed to allocate default IOMMU domain of type {type} for group {group} - Falling back to IOMMU_DOMAIN_DMA"
NO_NAME = "(null)"
"""What ``%s`` prints for a group's name, which nobody sets."""


class Linux61(Kernel):
    """Mainline 6.1.0."""

    name = "6.1"
    summary = "mainline 6.1.0"
    era = Era.V6_1
    version = (6, 1)
    trust_rule = TrustRule.BELOW_EXTERNAL_PORT
    off_is_final = False
    lazy_by_default: ClassVar[tuple[str, ...]] = ("x86_64",)
    keeps_first_default = False
    """False: a later registration allocates a second default domain for a group that has one."""

    # ---- boot --------------------------------------------------------------------------------------------------------

    def new_default(self) -> SystemDefault:
        """A domain type; lines without a suffix end in a blank."""
        return TypeDefault(trailing_space=True)

    def probe_batch(self, system: System, batch: list[tuple[Device, Unit]]) -> None:
        """All devices first, then each new group's default domain (``bus_iommu_probe``)."""
        groups: dict[Group, None] = {}
        for device, unit in batch:
            try:
                groups[self.join_attached(system, device, unit)] = None
            except IommuError as error:
                self.give_up(system, device, error)
        for group in groups:
            self.set_up_boot_group(system, group)

    def set_up_boot_group(self, system: System, group: Group) -> None:
        """Default domain, direct mappings, first attachment, DMA API, for a whole group."""
        if group.default_domain is None or not self.keeps_first_default:
            self.alloc_boot_default(system, group)
        self.map_direct_ignoring_errors(system, group.devices, group.default_domain)
        domain = group.default_domain
        if domain is not None:
            for device in group.devices:
                if not system.deferred(device):
                    try:
                        system.attach(device, domain)
                    except IommuError as error:
                        system.log(f"{device.log_name}: cannot be attached to its default domain (-{error.name})")
                        break
        self.finalize(system, group)

    def alloc_boot_default(self, system: System, group: Group) -> None:
        """Scan the group's requirements in order; a conflict falls back to the system default for good."""
        required: DomainType | None = None
        first: Device | None = None
        for device in group.devices:
            wanted = self.required_type(device)
            if wanted is None:
                continue
            if required is not None and required is not wanted and first is not None:
                system.log(
                    f"{device.log_name}: Device needs domain type {wanted.label}, but device {first.label} in the same"
                    f" iommu group requires type {required.label} - using default"
                )
                required = None
            if first is None:
                first, required = device, wanted
        self.alloc_default(system, group, required or system.boot.default.domain_type())

    def required_type(self, device: Device) -> DomainType | None:
        """What a device needs (``iommu_get_def_domain_type``); untrusted devices are translated before the driver is asked."""
        if device.untrusted:
            return DomainType.DMA
        return REQUIRED_TYPE[device_answer(device)]

    def alloc_default(self, system: System, group: Group, kind: DomainType) -> bool:
        """Allocate the default domain, translated and strict where the wanted type is not to be had.

        False if nothing could be allocated; nobody minds at boot: the group then has no default domain.
        """
        device = group.devices[0]
        if device.unit is not None and not device.unit.default_domains:
            platform_dma(system, group)
            return False
        domain = self.try_alloc(system, device, kind)
        if domain is None and kind is not DomainType.DMA:
            domain = self.try_alloc(system, device, DomainType.DMA)
            if domain is not None:
                system.log(FALLBACK_LINE.format(type=kind.value, group=NO_NAME))
        if domain is None:
            return False
        group.default_domain = domain
        if group.domain is None:
            group.domain = domain
        return True

    @staticmethod
    def try_alloc(system: System, device: Device, kind: DomainType) -> Domain | None:
        """A domain, or nothing, whatever the driver's reason: 6.1's ``domain_alloc`` answers NULL."""
        try:
            return system.alloc(device, kind)
        except IommuError:
            return None

    @staticmethod
    def map_direct_ignoring_errors(system: System, devices: list[Device], domain: Domain | None) -> None:
        """Direct mappings whose failure nobody looks at."""
        if domain is None:
            return
        for device in devices:
            try:
                system.map_direct(device, domain)
            except IommuError:
                continue

    def finalize(self, system: System, group: Group) -> None:
        """Let the driver finish each device (``__iommu_group_dma_finalize``)."""
        for device in group.devices:
            system.vendor.ops.probe_finalize(device=device)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def join_attached(self, system: System, device: Device, unit: Unit) -> Group:
        """Join a group and whatever domain it is attached to (``iommu_group_add_device``)."""
        group = self.join(system, device, unit)
        if group.domain is not None and not system.deferred(device):
            try:
                system.attach(device, group.domain)
            except IommuError:
                self.leave(system, device)
                raise
        return group

    def probe_one(self, system: System, device: Device, unit: Unit) -> None:
        """``iommu_probe_device``: a new group takes its type from this device alone; an existing one is not asked again."""
        group = self.join_attached(system, device, unit)
        if group.default_domain is None:
            self.alloc_hotplug_default(system, group, device)
        if group.default_domain is not None and group.owner is None:
            try:
                system.attach(device, group.default_domain)
            except IommuError:
                self.leave(system, device)
                raise
        self.map_direct_ignoring_errors(system, [device], group.default_domain)
        system.vendor.ops.probe_finalize(device=device)

    def alloc_hotplug_default(self, system: System, group: Group, device: Device) -> None:
        """The default domain of a group that a device has just started."""
        self.alloc_default(system, group, self.required_type(device) or system.boot.default.domain_type())

    def setup_at_bind(self, system: System, device: Device) -> None:
        """arm64 sets up the DMA API at each bind."""
        if system.boot.arch == "aarch64" and device.group is not None:
            iommu_setup_dma_ops(device)

    # ---- ownership ---------------------------------------------------------------------------------------------------

    def ask(self, system: System, device: Device, kind: DomainType) -> Domain | None:
        """A driver's NULL has no reason."""
        return self.try_alloc(system, device, kind)

    def is_default_domain(self, group: Group) -> bool:
        """6.1 also accepts one identity domain for another (a GPU driver swaps them)."""
        if group.domain is group.default_domain:
            return True
        both = (group.domain, group.default_domain)
        return all(domain is not None and domain.type is DomainType.IDENTITY for domain in both)

    def claim(self, system: System, group: Group, owner: object) -> None:
        """Into the blocking domain, device by device; a refusal leaves those before it blocked."""
        self.require_claimable(group)
        move_group(system, group, self.blocking_domain(system, group), revert=False)
        group.owner = owner
        group.owner_count = 1

    def release(self, system: System, group: Group) -> None:
        """Back into the default domain.  A refusal is only warned of: the group stays blocked."""
        if not group.owner_count or group.owner is None:
            system.log("WARNING: at iommu_group_release_dma_owner")
            return
        group.owner_count = 0
        group.owner = None
        if group.default_domain is None:
            for device in group.devices:
                system.detach(device)
            group.domain = None
            return
        try:
            move_group(system, group, group.default_domain, revert=False)
        except IommuError:
            system.log("iommu driver failed to attach the default domain")
            system.log("WARNING: at iommu_group_release_dma_owner")

    # ---- sysfs -------------------------------------------------------------------------------------------------------

    def change_type(self, system: System, group: Group, keyword: str) -> None:
        """The checks in the kernel's order, then a live queue or a new domain."""
        current = group.default_domain
        assert current is not None
        if len(group.devices) != 1:
            system.log("iommu: Cannot change default domain: Group has more than one device")
            raise IommuError("EINVAL")
        device = group.devices[0]
        wanted = KEYWORDS[keyword]
        live = wanted is DomainType.DMA_FQ and current.type is DomainType.DMA
        if device.driver is not None and not live:
            system.log("iommu: Device is still bound to driver")
            raise IommuError("EBUSY")
        if group.domain is not current:
            system.log(f"{device.log_name}: Group not assigned to default domain")
            raise IommuError("EBUSY")
        required = self.required_type(device)
        if wanted is None:
            wanted = required or system.boot.default.domain_type()
        elif required is not None and required is not wanted:
            system.log(f"{device.log_name}: Device cannot be in {wanted.label} domain")
            raise IommuError("EINVAL")
        if wanted is current.type:
            return
        if wanted is DomainType.DMA_FQ and current.type is DomainType.DMA:
            if not start_flush_queue(current, device):
                raise IommuError("ENOMEM")
            current.type = DomainType.DMA_FQ
            return
        self.replace_default(system, group, device, wanted)

    def replace_default(self, system: System, group: Group, device: Device, wanted: DomainType) -> None:
        """A new default domain for a group of one; a refusal frees it and leaves the old one in place."""
        previous, attached = group.default_domain, group.domain
        group.default_domain = None
        if not self.alloc_default(system, group, wanted):
            group.default_domain = previous
            raise IommuError("ENOMEM")
        fresh: Domain | None = group.default_domain
        assert fresh is not None
        try:
            system.map_direct(device, fresh)
            system.attach(device, fresh)
        except IommuError:
            group.default_domain, group.domain = previous, attached
            system.free(fresh)
            raise
        group.domain = fresh
        system.vendor.ops.probe_finalize(device=device)
        if previous is not None:
            system.free(previous)


class Linux61EarlierStable(Linux61):
    """6.1.176: stable backports and Debian's build, as the recordings have it."""

    name = "6.1.176"
    summary = "stable 6.1.176 (newer rule of trust, one default domain for each group)"
    trust_rule = TrustRule.REMOVABLE
    keeps_first_default = True


class Linux61Stable(Linux61EarlierStable):
    """6.1.192: as 6.1.176, and ``iommu=off`` is the last word."""

    name = "6.1.192"
    summary = "stable 6.1.192 (as 6.1.176; iommu=off overrules the platform)"
    off_is_final = True
