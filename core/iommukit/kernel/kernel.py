"""What all kernel profiles share: the course of events.  What a kernel decides is left to the profile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from iommukit.device import Device, DmaOps, Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.boot import SystemDefault
from iommukit.kernel.system import System
from iommukit.kernel.trust import TrustRule
from iommukit.policy import SYSFS_POLICY, DmaApiPolicy, Era

DRIVERS_MANAGING_DMA = frozenset({"pcieport", "pci-stub", "vfio-pci", "vfio-platform", "vfio-fsl-mc", "mlx5-vfio-pci"})
"""Drivers with ``driver_managed_dma``: bound, they do not count as users of the DMA API."""

HOST_BRIDGE = 0x0600
"""Base class and subclass of host bridges: no driver ever binds to one."""

KEYWORDS: dict[str, DomainType | None] = {
    keyword: next((kind for kind in DomainType if kind.sysfs == keyword), None) for keyword in SYSFS_POLICY
}
"""What may be written to ``type``, as domain types; ``auto`` is none."""


class Kernel(ABC):
    """A kernel profile.

    A profile is stateless; all state is in the ``System``.  Errors inside a step are ``IommuError``; the profile's public methods
    let them pass to the caller, who reports the errno.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    era: ClassVar[Era]
    version: ClassVar[tuple[int, int]]
    trust_rule: ClassVar[TrustRule] = TrustRule.REMOVABLE
    off_is_final: ClassVar[bool] = True
    """Whether ``iommu=off`` is the last word.  A platform's wish for protection overruled it until 2026: recordings of 6.1.176 and
    6.12.107 show that, and those of 6.1.192 and 7.2.13 that it does no more."""
    lazy_by_default: ClassVar[tuple[str, ...]] = ("x86_64", "s390x")
    unit_by_unit: bool = True
    """Devices are probed as each unit registers (since 6.1), not all at the end."""
    tells_leaving: ClassVar[bool] = True
    """Whether a line is printed when a device leaves its group (``iommu_release_device``; no more in 6.12)."""

    # ---- boot --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def new_default(self) -> SystemDefault:
        """The system-wide default before the command line."""

    def default_kconfig(self, arch: str) -> str:
        """The build option's own default: lazy on some architectures, else strict."""
        return "lazy" if arch in self.lazy_by_default else "strict"

    def start(self, system: System, *, drivers_loaded: bool) -> None:
        """Register the units and probe everything that is present; then bind the machine's drivers."""
        candidates: dict[Device, Unit] = {}
        for device in system.present_devices():
            unit = self._probe(system, device)
            if unit is not None:
                candidates[device] = unit
        at_boot = [(device, unit) for device, unit in candidates.items() if not unit.probes_at_bind]
        if self.unit_by_unit:
            batches: dict[Unit, list[tuple[Device, Unit]]] = {unit: [] for unit in system.units}
            for device, unit in at_boot:
                batches.setdefault(unit, []).append((device, unit))
            for batch in batches.values():
                self.probe_batch(system, batch)
        else:
            self.probe_batch(system, at_boot)
        for device in system.present_devices():
            if device.facts.driver:
                self.bind_at_boot(system, device, device.facts.driver)
            elif drivers_loaded and device in candidates and device.group is None and device.facts.class_code >> 8 != HOST_BRIDGE:
                self.configure(system, device)

    def bind_at_boot(self, system: System, device: Device, driver: str) -> None:
        """Bind a machine's own driver; one that cannot bind leaves a line and its device unbound."""
        try:
            self.bind(system, device, driver, managed=None)
        except IommuError as error:
            system.log(f"{device.log_name}: driver {driver} does not bind (-{error.name})")

    def _probe(self, system: System, device: Device) -> Unit | None:
        if not system.units:
            return None
        try:
            unit: Unit | None = system.vendor.ops.probe_device(device=device, units=system.units)
        except IommuError as error:
            device.refused = True
            if error.reason:
                system.log(f"{device.log_name}: {error.reason}")
            return None
        return unit

    @abstractmethod
    def probe_batch(self, system: System, batch: list[tuple[Device, Unit]]) -> None:
        """Give groups and default domains to the devices of one registration (``bus_iommu_probe``)."""

    def join(self, system: System, device: Device, unit: Unit) -> Group:
        """Put a device into its group's list, without any domain.  Raises ``IommuError``."""
        device.unit = unit
        try:
            group: Group = system.vendor.ops.device_group(device=device)
        except IommuError:
            device.unit = None
            raise
        device.group = group
        group.devices.append(device)
        system.log(f"{device.log_name}: Adding to iommu group {group.id}")
        return group

    def leave(self, system: System, device: Device) -> None:
        """Take a device out of its group; the last one takes the group along."""
        group = device.group
        if group is None:
            return
        if self.tells_leaving:
            system.log(f"{device.log_name}: Removing from iommu group {group.id}")
        system.vendor.ops.release_device(device=device)
        group.devices.remove(device)
        device.group = None
        device.unit = None
        device.attached = None
        if not group.devices:
            system.drop_group(group)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def add(self, system: System, device: Device) -> None:
        """Plug a device in while the system runs.  The slot's multifunction mark comes too late for the IOMMU core."""
        if device.present:
            raise IommuError("EEXIST", f"{device.name} is there already")
        if device.parent is not None and not device.parent.present:
            raise IommuError("ENODEV", f"{device.parent.name} is not there")
        system.plug(device, multifunction=device.facts.multifunction)
        unit = self._probe(system, device)
        if unit is not None and not unit.probes_at_bind:
            self._probe_one_or_give_up(system, device, unit)
        if device.facts.pci is not None and device.facts.pci.function:
            device.multifunction = True

    def _probe_one_or_give_up(self, system: System, device: Device, unit: Unit) -> None:
        try:
            self.probe_one(system, device, unit)
        except IommuError as error:
            self.give_up(system, device, error)

    @staticmethod
    def give_up(system: System, device: Device, error: IommuError) -> None:
        """Leave a device without its IOMMU, which then lets none of its DMA through."""
        device.refused = True
        system.log(f"{device.log_name}: cannot be given to its IOMMU (-{error.name})")

    @abstractmethod
    def probe_one(self, system: System, device: Device, unit: Unit) -> None:
        """Probe one device outside boot (``iommu_probe_device``).  Raises ``IommuError`` with the device without an IOMMU."""

    def remove(self, system: System, device: Device) -> None:
        """Unplug a device and what is below it."""
        if not device.present:
            raise IommuError("ENODEV", f"{device.name} is not there")
        for member in [*reversed(system.below(device)), device]:
            if member.driver is not None:
                self.unbind(system, member)
            self.release_from_iommu(system, member)
            system.unplug(member)

    def release_from_iommu(self, system: System, device: Device) -> None:
        """What the core does when a device leaves (``iommu_release_device``)."""
        self.leave(system, device)

    # ---- drivers -----------------------------------------------------------------------------------------------------

    def configure(self, system: System, device: Device) -> None:
        """What happens to a device's DMA set-up when a driver is about to bind (``dma_configure``)."""
        if device.group is None:
            unit = self._probe(system, device)
            if unit is not None and unit.probes_at_bind:
                self._probe_one_or_give_up(system, device, unit)
        self.setup_at_bind(system, device)

    def setup_at_bind(self, system: System, device: Device) -> None:  # noqa: B027 - most kernels do nothing here
        """Set up the DMA API where the architecture does so at each bind (``arch_setup_dma_ops`` of arm64, before 6.12)."""

    def bind(self, system: System, device: Device, driver: str, *, managed: bool | None) -> None:
        """Bind a driver.  ``managed``: it manages DMA itself; ``None``: as known of the driver's name."""
        if not device.present:
            raise IommuError("ENODEV", f"{device.name} is not there")
        if device.driver is not None:
            raise IommuError("EBUSY", f"{device.name} is bound to {device.driver}")
        device.driver = driver
        device.driver_managed_dma = driver in DRIVERS_MANAGING_DMA if managed is None else managed
        try:
            self.configure(system, device)
            if not device.driver_managed_dma:
                self.use_default_domain(device)
        except IommuError:
            device.driver = None
            device.driver_managed_dma = False
            raise

    def unbind(self, system: System, device: Device) -> None:
        """Unbind a device's driver."""
        if device.driver is None:
            raise IommuError("ENODEV", f"{device.name} is bound to no driver")
        if not device.driver_managed_dma and device.group is not None and device.group.owner_count:
            device.group.owner_count -= 1
        device.driver = None
        device.driver_managed_dma = False

    def use_default_domain(self, device: Device) -> None:
        """Count a user of the DMA API (``iommu_device_use_default_domain``)."""
        group = device.group
        if group is None:
            return
        if group.default_domain is None:
            self.without_default_domain(group)
        if group.owner_count and (group.owner is not None or not self.is_default_domain(group)):
            raise IommuError("EBUSY", f"group {group.id} is owned")
        group.owner_count += 1

    def without_default_domain(self, group: Group) -> None:  # noqa: B027 - 6.1 does nothing here
        """A driver binds in a group without a default domain: nobody objects in 6.1."""

    def is_default_domain(self, group: Group) -> bool:
        """Whether the group is attached to its default domain."""
        return group.domain is group.default_domain

    # ---- ownership ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def claim(self, system: System, group: Group, owner: object) -> None:
        """Take a group away from the DMA API (``iommu_group_claim_dma_owner``)."""

    @abstractmethod
    def release(self, system: System, group: Group) -> None:
        """Give a group back (``iommu_group_release_dma_owner``)."""

    def ask(self, system: System, device: Device, kind: DomainType) -> Domain | None:
        """Ask the driver for a domain; its errno passes."""
        return system.alloc(device, kind)

    @staticmethod
    def require_claimable(group: Group) -> None:
        """Raise ``EPERM`` for a group that is empty or in use, ``EBUSY`` for one outside its default domain."""
        if not group.devices:
            raise IommuError("EPERM", "the group is empty")
        if group.owner_count:
            raise IommuError("EPERM", "the group is in use")
        if group.domain is not None and group.domain is not group.default_domain:
            raise IommuError("EBUSY", "the group is not in its default domain")

    def blocking_domain(self, system: System, group: Group) -> Domain:
        """The group's blocking domain: the driver's, or an unmanaged one that stays empty.  Raises ``IommuError``."""
        if group.blocking_domain is None:
            device = group.devices[0]
            domain = self.ask(system, device, DomainType.BLOCKED) or self.ask(system, device, DomainType.UNMANAGED)
            if domain is None:
                raise IommuError("EINVAL", "the driver can neither block nor translate")
            group.blocking_domain = domain
        return group.blocking_domain

    # ---- sysfs -------------------------------------------------------------------------------------------------------

    def write_type(self, system: System, group: Group, keyword: str, *, privileged: bool = True) -> None:
        """Write to a group's ``type`` file (``iommu_group_store_type``).  Raises ``IommuError``."""
        if not privileged:
            raise IommuError("EACCES")
        if group.default_domain is None:
            raise IommuError("EINVAL", "no default domain")
        # sysfs_streq: a text ends at a NUL, and one newline may follow it.
        keyword = keyword.partition("\0")[0].removesuffix("\n")
        if keyword not in KEYWORDS:
            raise IommuError("EINVAL", f"no type {keyword!r}")
        self.change_type(system, group, keyword)

    @abstractmethod
    def change_type(self, system: System, group: Group, keyword: str) -> None:
        """Change a group's type; permission, existence and spelling have been checked."""


def move_group(
    system: System, group: Group, domain: Domain, *, revert: bool, skip: Callable[[Device], bool] = lambda _: False
) -> None:
    """Attach every device of a group to a domain, in order.

    At the first refusal the devices already moved go back if ``revert``; else they stay where they are, as in 6.1.  Raises that
    refusal; one that cannot go back is warned of and left behind.  On success the group's domain is the new one.
    """
    moved: list[tuple[Device, Domain | None]] = []
    for device in group.devices:
        if skip(device):
            continue
        before = device.attached
        try:
            system.attach(device, domain)
        except IommuError:
            if revert:
                for other, old in reversed(moved):
                    if old is None:
                        system.detach(other)
                        continue
                    try:
                        system.attach(other, old)
                    except IommuError as error:
                        system.log(f"{other.log_name}: WARNING: cannot go back to its domain (-{error.name})")
            raise
        moved.append((device, before))
    group.domain = domain


def device_answer(device: Device) -> DmaApiPolicy:
    """What the driver says that the device requires."""
    answer: DmaApiPolicy = device.system.vendor.ops.def_domain_type(device=device)
    return answer


def platform_dma(system: System, group: Group) -> None:
    """Leave a group's devices to the architecture's own DMA code."""
    for device in group.devices:
        device.dma_ops = DmaOps.PLATFORM
