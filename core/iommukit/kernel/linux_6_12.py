"""Linux 6.12: the whole group decides, at boot, hotplug and sysfs alike; flush queues are a capability."""

from __future__ import annotations

from iommukit.device import Device, DmaOps, Unit
from iommukit.dma.setup import iommu_setup_dma_ops, start_flush_queue
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.boot import SystemDefault, TypeDefault
from iommukit.kernel.kernel import KEYWORDS, Kernel, device_answer, move_group, platform_dma
from iommukit.kernel.linux_6_1 import FALLBACK_LINE, NO_NAME, REQUIRED_TYPE
from iommukit.kernel.system import System
from iommukit.policy import Era

DIRECT_REFUSED = (
    "Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the device without a 1:1 mapping."
    " Contact your platform vendor."
)
DIRECT_FAILED = "IOMMU driver was not able to establish FW requested direct mapping."


class Linux612(Kernel):
    """6.12.107 as Debian builds it, without Debian's own option."""

    name = "6.12"
    summary = "6.12 (whole-group decisions; static identity and blocked domains)"
    era = Era.V6_12
    tells_leaving = False
    off_is_final = False
    version = (6, 12)

    # ---- boot --------------------------------------------------------------------------------------------------------

    def new_default(self) -> SystemDefault:
        """A domain type; no trailing blanks."""
        return TypeDefault()

    def probe_batch(self, system: System, batch: list[tuple[Device, Unit]]) -> None:
        """All devices, then each group; one group that cannot be set up undoes the unit's registration."""
        groups: dict[Group, None] = {}
        for device, unit in batch:
            try:
                groups[self.join_and_attach(system, device, unit)] = None
            except IommuError as error:
                self.give_up(system, device, error)
        for group in groups:
            try:
                if group.default_domain is None:
                    self.set_default(system, group, None)
            except IommuError:
                self.undo_registration(system, [device for device, _ in batch])
                return
            self.set_up_dma(system, group)

    def undo_registration(self, system: System, devices: list[Device]) -> None:
        """Take the devices of a unit away again (``iommu_device_unregister``); whether their DMA passes is not decided."""
        for device in devices:
            if device.unit is not None:
                device.unit.failed = True
                self.leave(system, device)
            device.dma_ops = DmaOps.PLATFORM

    # ---- decisions ---------------------------------------------------------------------------------------------------

    def group_type(self, system: System, group: Group, target: DomainType | None) -> DomainType | None:
        """What a group must or shall be, ``None`` for the system default (``iommu_get_default_domain_type``).

        ``target`` is what root asks for.  Raises ``EINVAL`` where a driver's requirement meets an untrusted device or another
        target.
        """
        required: DomainType | None = None
        untrusted: Device | None = None
        for device in group.devices:
            wanted = REQUIRED_TYPE[device_answer(device)]
            if device.untrusted:
                untrusted = device
            if wanted is None or wanted is required:
                continue
            if required is None:
                required = wanted
                continue
            system.log(
                f"{device.log_name}: IOMMU driver error, requesting conflicting def_domain_type, {required.label} and"
                f" {wanted.label}, for devices in group {group.id}."
            )
            if wanted is DomainType.IDENTITY:
                required = wanted
        if untrusted is not None:
            if required is not None and required is not DomainType.DMA:
                system.log(
                    f"{untrusted.log_name}: Device is not trusted, but driver is overriding group {group.id} to"
                    f" {required.label}, refusing to probe."
                )
                raise IommuError("EINVAL")
            required = DomainType.DMA
        if target is not None:
            if required is not None and required is not target:
                raise IommuError("EINVAL")
            return target
        return required

    def alloc_group_domain(self, system: System, group: Group, wanted: DomainType | None) -> Domain:
        """A requirement or a request is allocated or fails; the system default may fall back to strict translation."""
        if wanted is not None:
            return self.alloc_type(system, group, wanted)
        kind = system.boot.default.domain_type()
        try:
            return self.alloc_type(system, group, kind)
        except IommuError:
            if kind is DomainType.DMA:
                raise
        domain = self.alloc_type(system, group, DomainType.DMA)
        system.log(FALLBACK_LINE.format(type=kind.value, group=NO_NAME))
        return domain

    def alloc_type(self, system: System, group: Group, kind: DomainType) -> Domain:
        """The group's default domain if it is of the type already, else a new one.

        The driver never sees that a queue is wanted; the core marks the domain.
        """
        if group.default_domain is not None and group.default_domain.type is kind:
            return group.default_domain
        asked = DomainType.DMA if kind is DomainType.DMA_FQ else kind
        domain = system.alloc(group.devices[0], asked)
        if domain is None:
            raise IommuError("ENOMEM" if asked.uses_dma_api else "EOPNOTSUPP")
        if kind is DomainType.DMA_FQ:
            domain.type = kind
        return domain

    def set_default(self, system: System, group: Group, target: DomainType | None) -> None:
        """Give a group the default domain that it should have (``iommu_setup_default_domain``).

        Direct regions are mapped before the devices move, old domain to new; a refusal brings the old one back.
        """
        if group.devices[0].unit is not None and not group.devices[0].unit.default_domains:
            platform_dma(system, group)
            return
        wanted = self.group_type(system, group, target)
        current = group.default_domain
        fresh = self.alloc_group_domain(system, group, wanted)
        if fresh is current:
            return
        group.default_domain = fresh
        failed = [device for device in group.devices if not self.try_map_direct(system, device, fresh)]
        if failed:
            system.log(f"{failed[0].log_name}: {DIRECT_FAILED}")
        try:
            move_group(system, group, fresh, revert=True, skip=system.deferred)
            for device in failed:
                system.map_direct(device, fresh)
        except IommuError:
            group.default_domain = current
            if group.domain is fresh and current is not None:
                move_group(system, group, current, revert=False)
            system.free(fresh)
            raise
        if current is not None:
            system.free(current)

    @staticmethod
    def try_map_direct(system: System, device: Device, domain: Domain) -> bool:
        """Map a device's direct regions; False where the driver cannot."""
        try:
            system.map_direct(device, domain)
        except IommuError:
            return False
        return True

    def set_up_dma(self, system: System, group: Group) -> None:
        """The core itself points mapping calls at the domain, and lets the driver finish."""
        for device in group.devices:
            self.set_up_device(system, device)

    def set_up_device(self, system: System, device: Device) -> None:
        """One device's DMA API."""
        if device.dma_ops is not DmaOps.PLATFORM:
            iommu_setup_dma_ops(device, self.dma_domain(device))
        system.vendor.ops.probe_finalize(device=device)

    def dma_domain(self, device: Device) -> Domain | None:
        """The domain that mapping calls shall use: what the group is attached to."""
        return device.group.domain if device.group else None

    # ---- devices -----------------------------------------------------------------------------------------------------

    def join_and_attach(self, system: System, device: Device, unit: Unit) -> Group:
        """Join a group: direct regions into its default domain first, then the domain it is attached to."""
        group = self.join(system, device, unit)
        try:
            if group.default_domain is not None:
                system.map_direct(device, group.default_domain)
            if group.domain is not None and not system.deferred(device):
                self.attach_newcomer(system, device, group.domain)
        except IommuError:
            self.leave(system, device)
            raise
        return group

    def attach_newcomer(self, system: System, device: Device, domain: Domain) -> None:
        """A device with a direct region may not be blocked."""
        if domain.type is DomainType.BLOCKED or (device.group and domain is device.group.blocking_domain):
            self.refuse_direct(system, device)
        system.attach(device, domain)

    @staticmethod
    def refuse_direct(system: System, device: Device) -> None:
        """Raise ``EINVAL`` for a device whose firmware insists on a 1:1 region."""
        if device.require_direct:
            system.log(f"{device.log_name}: {DIRECT_REFUSED}")
            raise IommuError("EINVAL")

    def probe_one(self, system: System, device: Device, unit: Unit) -> None:
        """``iommu_probe_device``: the first device of a group decides for the group as it is; a joining one is not compared."""
        group = self.join_and_attach(system, device, unit)
        try:
            if group.default_domain is None:
                self.set_default(system, group, None)
        except IommuError:
            self.leave(system, device)
            raise
        self.set_up_device(system, device)

    # ---- ownership ---------------------------------------------------------------------------------------------------

    def without_default_domain(self, group: Group) -> None:
        """A driver waits until its group has a default domain; groups that never get one are the platform's."""
        if not all(device.dma_ops is DmaOps.PLATFORM for device in group.devices):
            raise IommuError("EPROBE_DEFER", f"group {group.id} has no default domain")

    def claim(self, system: System, group: Group, owner: object) -> None:
        """Into the blocking domain, all or none; never with a direct region."""
        self.require_claimable(group)
        domain = self.blocking_domain(system, group)
        for device in group.devices:
            self.refuse_direct(system, device)
        move_group(system, group, domain, revert=True)
        group.owner = owner
        group.owner_count = 1

    def release(self, system: System, group: Group) -> None:
        """Back into the default domain.  This may not fail: a device that refuses is warned of and left behind."""
        if not group.owner_count or group.owner is None:
            system.log("WARNING: at iommu_group_release_dma_owner")
            return
        group.owner_count = 0
        group.owner = None
        if group.default_domain is None:
            return
        for device in group.devices:
            try:
                system.attach(device, group.default_domain)
            except IommuError:
                system.log("WARNING: at __iommu_group_set_domain_internal")
        group.domain = group.default_domain

    # ---- sysfs -------------------------------------------------------------------------------------------------------

    def change_type(self, system: System, group: Group, keyword: str) -> None:
        """The flush-queue shortcut first, without any check; then emptiness and ownership, then the group's decision."""
        wanted = KEYWORDS[keyword]
        current = group.default_domain
        if wanted is DomainType.DMA_FQ and current is not None and current.type is DomainType.DMA:
            if not group.devices or not start_flush_queue(current, group.devices[0]):
                raise IommuError("ENOMEM")
            current.type = DomainType.DMA_FQ
            return
        if not group.devices or group.owner_count:
            raise IommuError("EPERM")
        self.set_default(system, group, wanted)
        self.set_up_dma(system, group)


class Linux72(Linux612):
    """7.2.13: page tables from the generic library, firmware read when the IOMMU probes."""

    name = "7.2"
    off_is_final = True
    summary = "7.2 (generic page tables)"
    era = Era.V7_2
    version = (7, 2)

    def dma_domain(self, device: Device) -> Domain | None:
        """The default domain, even while another is attached."""
        return device.group.default_domain if device.group else None
