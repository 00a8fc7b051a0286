"""``rfc``: this project's own system, the posted patch with its holes resolved.

One policy for boot, probe and sysfs.  Precedence: untrusted, a driver's requirement, root's write, strict mode, the command
line, a driver's wish, the build option.
"""

from __future__ import annotations

from iommukit.device import Device, DmaOps, Unit
from iommukit.dma.setup import iommu_setup_dma_ops, start_flush_queue
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.boot import PolicyDefault, SystemDefault
from iommukit.kernel.kernel import Kernel, device_answer, move_group, platform_dma
from iommukit.kernel.linux_6_1 import FALLBACK_LINE
from iommukit.kernel.system import System
from iommukit.kernel.trust import TrustRule
from iommukit.policy import SYSFS_POLICY, DmaApiPolicy, Era

DOMAIN_OF_POLICY = {
    DmaApiPolicy.IDENTITY: DomainType.IDENTITY,
    DmaApiPolicy.STRICT: DomainType.DMA,
    DmaApiPolicy.LAZY: DomainType.DMA_FQ,
}
POLICY_OF_DOMAIN = {type: policy for policy, type in DOMAIN_OF_POLICY.items()}


class Rfc(Kernel):
    """The posted patch, resolved."""

    name = "rfc"
    summary = "the posted patch with its holes resolved (the project's own system)"
    era = Era.RFC
    version = (6, 1)
    trust_rule = TrustRule.BELOW_EXTERNAL_PORT
    off_is_final = False

    # ---- boot --------------------------------------------------------------------------------------------------------

    def new_default(self) -> SystemDefault:
        """One policy (H1, H2, H22)."""
        return PolicyDefault()

    def probe_batch(self, system: System, batch: list[tuple[Device, Unit]]) -> None:
        """All devices, then each new group as a whole; a group that must not be is refused, others go on."""
        groups: dict[Group, None] = {}
        joining: list[Device] = []
        for device, unit in batch:
            try:
                group = self.join(system, device, unit)
            except IommuError as error:
                self.give_up(system, device, error)
                continue
            if group.default_domain is None:
                groups[group] = None
            else:
                joining.append(device)
        for group in groups:
            try:
                self.set_up_group(system, group)
            except IommuError:
                self.refuse_group(system, group)
        for device in joining:
            try:
                self.admit(system, device)
            except IommuError as error:
                self.leave(system, device)
                self.give_up(system, device, error)

    def set_up_group(self, system: System, group: Group) -> None:
        """Decide a new group's policy and attach it."""
        if group.devices[0].unit is not None and not group.devices[0].unit.default_domains:
            platform_dma(system, group)
            return
        mandatory = self.mandatory(system, group)
        self.install(system, group, self.alloc(system, group, mandatory))

    def refuse_group(self, system: System, group: Group) -> None:
        """Leave a group without a default domain and its devices without DMA."""
        group.default_domain = group.domain = None
        for device in group.devices:
            system.detach(device)

    # ---- decisions ---------------------------------------------------------------------------------------------------

    def mandatory(self, system: System, group: Group) -> DmaApiPolicy:
        """What the group must be, ANY for nothing in particular.

        Among trusted devices' requirements the lower policy wins.  An untrusted device is a floor: with it, identity is refused
        (``EINVAL``), and everything else is strict (H10).
        """
        required = DmaApiPolicy.ANY
        for device in group.devices:
            wanted = device_answer(device)
            # A wish for a queue is a preference, not a requirement (H9).
            if wanted in (DmaApiPolicy.ANY, DmaApiPolicy.LAZY, required):
                continue
            if required is not DmaApiPolicy.ANY:
                system.log(
                    f"{device.log_name}: IOMMU driver is requesting different DMA API policies for devices in the same group"
                    f" {group.id}."
                )
            required = min(required, wanted)
        untrusted = next((device for device in group.devices if device.untrusted), None)
        if untrusted is None:
            return required
        if required is DmaApiPolicy.IDENTITY:
            system.log(f"{untrusted.log_name}: Device is not trusted, but group {group.id} requires identity, refusing to probe.")
            raise IommuError("EINVAL")
        return DmaApiPolicy.STRICT

    def wish(self, system: System, group: Group) -> DmaApiPolicy:
        """The system's policy for a group without requirements.

        A driver's wish for a queue ranks above a build option that says identity; strict mode and the command line outrank it (H9).
        """
        default = system.boot.default
        policy = default.policy()
        may_wish = policy is DmaApiPolicy.IDENTITY and not default.chosen_by_cmdline and not default.strict
        if may_wish and any(device_answer(device) is DmaApiPolicy.LAZY for device in group.devices):
            return DmaApiPolicy.LAZY
        return policy

    def alloc(self, system: System, group: Group, policy: DmaApiPolicy) -> Domain:
        """A domain for a policy.

        A requirement or a request is allocated or refused (``EOPNOTSUPP`` for a type that the driver lacks); only the system
        default falls back from identity to translation, with a line that says so (H6).
        """
        if policy is not DmaApiPolicy.ANY:
            return self.alloc_policy(system, group, policy)
        policy = self.wish(system, group)
        try:
            return self.alloc_policy(system, group, policy)
        except IommuError:
            if policy is not DmaApiPolicy.IDENTITY:
                raise
        strict = system.boot.default.strict
        domain = self.alloc_policy(system, group, DmaApiPolicy.STRICT if strict else DmaApiPolicy.LAZY)
        system.log(FALLBACK_LINE.format(type=DomainType.IDENTITY.value, group=group.id))
        return domain

    def alloc_policy(self, system: System, group: Group, policy: DmaApiPolicy) -> Domain:
        """LAZY is a translated domain with a queue to come; without the driver's support it is strict, and said so (H4, H5)."""
        device = group.devices[0]
        kind = DOMAIN_OF_POLICY[policy]
        domain = system.alloc(device, DomainType.DMA if kind is DomainType.DMA_FQ else kind)
        if domain is None:
            raise IommuError("EOPNOTSUPP", f"the driver has no {kind.sysfs} domains")
        if kind is DomainType.DMA_FQ:
            if self.queue_offered(system, group):
                domain.type = kind
            else:
                self.warn_strict(system, group)
        return domain

    @staticmethod
    def queue_offered(system: System, group: Group) -> bool:
        """Whether every device of the group can do with a queue."""
        return all(system.vendor.ops.prefer_dma_api_fq(device=device) for device in group.devices)

    @staticmethod
    def warn_strict(system: System, group: Group) -> None:
        """Say that a lazy domain became a strict one."""
        system.log(f"iommu: Failed to allocate default lazy IOMMU domain for group {group.id} - Falling back to strict")

    # ---- domains -----------------------------------------------------------------------------------------------------

    def install(self, system: System, group: Group, fresh: Domain) -> None:
        """Make a domain the group's default: direct regions first, then old to new without a gap, all devices or none.

        A refusal frees the new domain and changes nothing (H14, H17, H27).  A device whose attachment waits for its driver
        is left alone (H26).
        """
        previous = group.default_domain
        try:
            for device in group.devices:
                system.map_direct(device, fresh)
            move_group(system, group, fresh, revert=True, skip=system.deferred)
        except IommuError:
            system.free(fresh)
            raise
        group.default_domain = fresh
        for device in group.devices:
            self.set_up_device(system, device)
        if previous is not None and previous is not fresh:
            system.free(previous)

    def set_up_device(self, system: System, device: Device) -> None:
        """Point mapping calls at the default domain, whatever is attached at the moment (H15, H16, H29)."""
        system.vendor.ops.probe_finalize(device=device)
        if device.dma_ops is not DmaOps.PLATFORM and device.group is not None:
            iommu_setup_dma_ops(device, device.group.default_domain)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def probe_one(self, system: System, device: Device, unit: Unit) -> None:
        """A first device decides; a joining one is held against what the group is (H12)."""
        group = self.join(system, device, unit)
        try:
            if group.default_domain is None:
                self.set_up_group(system, group)
            else:
                self.admit(system, device)
        except IommuError:
            self.leave(system, device)
            raise

    def admit(self, system: System, device: Device) -> None:
        """Let a device join a group that has its domain.

        Raises ``EINVAL`` where the device, untrusted, would share a group that is not strict, or where a direct region would be
        blocked; a mere requirement that is not met is logged, and the group's type stays.
        """
        group = device.group
        assert group is not None and group.default_domain is not None
        default = group.default_domain
        if device.untrusted and default.type is not DomainType.DMA:
            system.log(
                f"{device.log_name}: Device is not trusted, but group {group.id} is {default.type.sysfs}, refusing to probe."
            )
            raise IommuError("EINVAL")
        wanted = device_answer(device)
        if wanted in (DmaApiPolicy.IDENTITY, DmaApiPolicy.STRICT) and POLICY_OF_DOMAIN.get(default.type) is not wanted:
            system.log(
                f"{device.log_name}: Device requires DMA API policy {wanted.name.lower()}, but group {group.id} is"
                f" {default.type.sysfs}."
            )
        system.map_direct(device, default)
        if device.require_direct and group.domain is not None and group.domain is group.blocking_domain:
            system.log(f"{device.log_name}: Firmware requires a 1:1 mapping, but group {group.id} is blocked.")
            raise IommuError("EINVAL")
        if group.domain is not None and not system.deferred(device):
            system.attach(device, group.domain)
        self.set_up_device(system, device)

    def setup_at_bind(self, system: System, device: Device) -> None:
        """arm64 sets up the DMA API at each bind; the default domain is what it finds."""
        if system.boot.arch == "aarch64" and device.group is not None:
            iommu_setup_dma_ops(device, device.group.default_domain)

    # ---- ownership ---------------------------------------------------------------------------------------------------

    def without_default_domain(self, group: Group) -> None:
        """No driver binds in a group that was refused."""
        if not all(device.dma_ops is DmaOps.PLATFORM for device in group.devices):
            raise IommuError("EPROBE_DEFER", f"group {group.id} has no default domain")

    def claim(self, system: System, group: Group, owner: object) -> None:
        """Into the blocking domain, all or none; a direct region excludes it."""
        self.require_claimable(group)
        for device in group.devices:
            if device.require_direct:
                system.log(f"{device.log_name}: Firmware requires a 1:1 mapping, so group {group.id} cannot be blocked.")
                raise IommuError("EINVAL")
        domain = self.blocking_domain(system, group)
        move_group(system, group, domain, revert=True, skip=system.deferred)
        group.owner = owner
        group.owner_count = 1

    def release(self, system: System, group: Group) -> None:
        """Back into the default domain; where that is refused the group stays blocked, and the refusal is reported (H18)."""
        if not group.owner_count or group.owner is None:
            raise IommuError("EINVAL", "nobody owns the group")
        group.owner_count = 0
        group.owner = None
        if group.default_domain is not None:
            move_group(system, group, group.default_domain, revert=True, skip=system.deferred)

    # ---- sysfs -------------------------------------------------------------------------------------------------------

    def change_type(self, system: System, group: Group, keyword: str) -> None:
        """Check everything first, under one lock; then nothing, a live queue, or a new domain for the whole group."""
        if not group.devices:
            raise IommuError("EPERM", "the group is empty")  # H24
        current = group.default_domain
        assert current is not None
        requested = SYSFS_POLICY[keyword]
        mandatory = self.mandatory(system, group)
        if requested is not DmaApiPolicy.ANY and mandatory not in (DmaApiPolicy.ANY, requested):
            raise IommuError("EINVAL", "the device requires another policy")  # H18: before any claim
        if group.owner is not None or group.domain is not current:
            raise IommuError("EPERM", "the group is owned")
        target = mandatory if requested is DmaApiPolicy.ANY else requested
        present = POLICY_OF_DOMAIN.get(current.type)
        live = target is DmaApiPolicy.LAZY and present is DmaApiPolicy.STRICT
        if group.owner_count and target not in (present, DmaApiPolicy.ANY) and not live:
            raise IommuError("EPERM", "a driver is bound")
        fresh = self.alloc(system, group, target) if target is not present else current
        if fresh.type is current.type:  # H19
            if fresh is not current:
                system.free(fresh)
            return
        if fresh.type is DomainType.DMA_FQ and current.type is DomainType.DMA:
            system.free(fresh)
            self.start_queue(group, current)
            return
        if group.owner_count:
            system.free(fresh)
            raise IommuError("EPERM", "a driver is bound")
        self.install(system, group, fresh)

    @staticmethod
    def start_queue(group: Group, domain: Domain) -> None:
        """Turn a strict domain lazy while drivers use it (H13)."""
        if not start_flush_queue(domain, group.devices[0]):
            raise IommuError("ENOMEM", "the flush queue did not start")  # H21
        domain.type = DomainType.DMA_FQ
