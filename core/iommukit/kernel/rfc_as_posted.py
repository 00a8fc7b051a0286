"""The patch of December 2022 as posted, with every hole kept, on the stable 6.1 that it was observed on.

The names H1 to H30 are those of ``docs/rfc-holes.md``.  ``RfcAsPosted`` has drivers converted to answer policies;
``RfcUnconverted`` has drivers left as they were, so that their answers are read as other numbers than they meant.
"""

from __future__ import annotations

from iommukit.device import Device
from iommukit.dma.setup import start_flush_queue
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.boot import PostedPolicyDefault, SystemDefault
from iommukit.kernel.kernel import device_answer, platform_dma
from iommukit.kernel.linux_6_1 import Linux61Stable
from iommukit.kernel.system import System
from iommukit.policy import SYSFS_POLICY, DmaApiPolicy, Era

CONFLICT_LINE = "{device}: IOMMU driver is requesting different DMA API policies for devices in the same group (null)."
LAZY_FALLBACK_LINE = "iommu: Failed to allocate default lazy IOMMU domain for group (null) - Falling back to strict"
ALLOC_WARNING = "WARNING: at iommu_alloc_default_domain"

DOMAIN_OF_POLICY: dict[int, DomainType] = {
    DmaApiPolicy.IDENTITY: DomainType.IDENTITY,
    DmaApiPolicy.STRICT: DomainType.DMA,
    DmaApiPolicy.LAZY: DomainType.DMA,  # H4: the type that starts no queue
}


class RfcAsPosted(Linux61Stable):
    """The posted patch, drivers converted."""

    name = "rfc-as-posted"
    summary = "the posted patch, every hole kept; drivers answer policies"
    era = Era.RFC
    lazy_by_default = ("x86_64", "s390x")
    reads_answer: dict[DmaApiPolicy, int] = {policy: int(policy) for policy in DmaApiPolicy}
    """The number that the core sees for a driver's answer."""
    drivers_offer_queues = True
    """Drivers set ``prefer_dma_api_fq``."""

    # ---- boot --------------------------------------------------------------------------------------------------------

    def new_default(self) -> SystemDefault:
        """A policy that can never become lazy (H1)."""
        return PostedPolicyDefault()

    def device_mandatory(self, device: Device) -> int:
        """A device's mandatory policy as a number; a driver without the operation has no opinion."""
        if device.untrusted:
            return DmaApiPolicy.STRICT
        if "def_domain_type" not in device.system.vendor.ops.implemented:
            return DmaApiPolicy.ANY
        return self.reads_answer[device_answer(device)]

    def group_mandatory(self, system: System, group: Group) -> int:
        """The group's: of different opinions the lower number wins, which is identity (H10)."""
        mandatory: int = DmaApiPolicy.ANY
        for device in group.devices:
            policy = self.device_mandatory(device)
            if policy in (DmaApiPolicy.ANY, mandatory):
                continue
            if mandatory == DmaApiPolicy.ANY:
                mandatory = policy
                continue
            system.log(CONFLICT_LINE.format(device=device.log_name))
            mandatory = min(mandatory, policy)
        return mandatory

    def alloc_boot_default(self, system: System, group: Group) -> None:
        """The whole group's mandatory policy; a failure is ignored and leaves the group without a domain (H6)."""
        self.alloc_policy(system, group, self.group_mandatory(system, group))

    def alloc_hotplug_default(self, system: System, group: Group, device: Device) -> None:
        """The joining device's own mandatory policy (H12)."""
        self.alloc_policy(system, group, self.device_mandatory(device))

    def alloc_policy(self, system: System, group: Group, policy: int) -> bool:
        """``iommu_alloc_default_domain``: no fallback, no queue.  False: nothing was allocated."""
        if group.default_domain is not None:
            return True
        device = group.devices[0]
        if device.unit is not None and not device.unit.default_domains:
            platform_dma(system, group)
            return False
        if policy == DmaApiPolicy.ANY:
            policy = system.boot.default.policy()
        kind = DOMAIN_OF_POLICY.get(policy)
        if kind is None:
            system.log(ALLOC_WARNING)  # H8
            return False
        domain = self.try_alloc(system, device, kind)
        if domain is None:
            return False
        if policy == DmaApiPolicy.LAZY and not self.queue_offered(device):
            system.log(LAZY_FALLBACK_LINE)  # H5: a warning, nothing else
        group.default_domain = domain
        if group.domain is None:
            group.domain = domain
        return True

    def queue_offered(self, device: Device) -> bool:
        """Whether the driver's operations carry ``prefer_dma_api_fq``."""
        return self.drivers_offer_queues and bool(device.system.vendor.ops.prefer_dma_api_fq(device=device))

    # ---- sysfs -------------------------------------------------------------------------------------------------------

    def change_type(self, system: System, group: Group, keyword: str) -> None:
        """Claim, change, release: whatever happens in between, the release's failure is not reported (H18)."""
        token = object()
        self.claim(system, group, token)
        try:
            self.change_policy(system, group, SYSFS_POLICY[keyword])
        finally:
            self.release(system, group)

    def change_policy(self, system: System, group: Group, policy: DmaApiPolicy) -> None:
        """``iommu_change_group_dma_api_policy``: while the group sits in its blocking domain."""
        mandatory = self.group_mandatory(system, group)
        if mandatory not in (DmaApiPolicy.ANY, policy):
            raise IommuError("EINVAL")  # H7: auto is ANY, which differs from any requirement
        previous = group.default_domain
        assert previous is not None
        if policy is DmaApiPolicy.LAZY and previous.type is DomainType.DMA and start_flush_queue(previous, group.devices[0]):
            previous.type = DomainType.DMA_FQ
            return
        group.default_domain = None
        if not self.alloc_policy(system, group, policy):
            group.default_domain = previous
            raise IommuError("ENOMEM")
        fresh: Domain | None = group.default_domain
        self.map_direct_ignoring_errors(system, group.devices, fresh)  # H17
        # H15: the drivers finish while the group is attached to its blocking domain.
        self.finalize(system, group)
        system.free(previous)


class RfcUnconverted(RfcAsPosted):
    """The posted patch with not one driver changed (H8)."""

    name = "rfc-unconverted"
    summary = "the posted patch, every hole kept; drivers answer domain types, read as policies"
    reads_answer = {
        DmaApiPolicy.ANY: 0,
        DmaApiPolicy.STRICT: DomainType.DMA.value,
        DmaApiPolicy.IDENTITY: DomainType.IDENTITY.value,
        DmaApiPolicy.LAZY: DomainType.DMA_FQ.value,
    }
    drivers_offer_queues = False
