"""A running system: one machine under one kernel with one vendor's driver."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

from iommukit.device import Device, DmaOps, PciBus, Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.kernel.boot import BootState
from iommukit.kernel.trust import is_untrusted
from iommukit.machine.model import Machine
from iommukit.machine.topology import Topology
from iommukit.regions import RegionType, ReservedRegion, merge_regions
from iommukit.vendors import Vendor

if TYPE_CHECKING:
    from iommukit.hw.platform import Platform
    from iommukit.kernel.kernel import Kernel


class System:
    """The nouns of a running kernel and the primitive moves on them; what a kernel decides is in its profile.

    ``machine`` is realised: roles replaced, firmware parsed.  ``assume_acs`` answers for devices whose ACS bits the machine
    file does not know.  ``log`` collects kernel lines; ``attaches`` counts successful attachments.
    """

    def __init__(
        self,
        kernel: Kernel,
        vendor: Vendor,
        machine: Machine,
        topology: Topology,
        boot: BootState,
        *,
        assume_acs: bool = True,
    ) -> None:
        self.kernel = kernel
        self.vendor = vendor
        self.machine = machine
        self.boot = boot
        self.assume_acs = assume_acs
        self.aliased_buses = set(topology.aliased_buses)
        self.devices: dict[str, Device] = {}
        self.buses: dict[tuple[int, int], PciBus] = {}
        self.groups: dict[int, Group] = {}
        self.units: list[Unit] = []
        self.lines: list[str] = []
        self.attaches = 0
        self.platform: Platform | None = None
        """The hardware that the kernel runs on; ``None`` where only policy is asked for."""
        self._free_ids: list[int] = []
        self._next_id = 0
        self._build(topology)

    def power_on(self, platform: Platform) -> None:
        """Put hardware below the discovered units and let the driver bring it up.

        Where the vendor models none the system stays one of policy alone.  Raises the driver's ``IommuError``.
        """
        ops = self.vendor.ops
        if "map_pages" not in ops.implemented or not platform.install(self.units, ops):
            return
        self.platform = platform
        for unit in self.units:
            unit.bus = platform.bus
            ops.start_unit(unit=unit)

    # ---- the machine -------------------------------------------------------------------------------------------------

    def _build(self, topology: Topology) -> None:
        built: list[Device] = []
        for placed in topology.devices:
            device = Device(placed.facts, self, dma_aliases=placed.facts.dma_aliases)
            built.append(device)
            self.devices[placed.facts.name] = device
        for device, placed in zip(built, topology.devices, strict=True):
            address = device.facts.pci
            if placed.parent is not None:
                device.parent = built[placed.parent]
            if address is not None:
                device.bus = self.buses.setdefault((address.segment, address.bus), PciBus(address.segment, address.bus))
                if placed.secondary is not None:
                    key = (address.segment, placed.secondary)
                    device.secondary = self.buses.setdefault(key, PciBus(*key))
                    device.secondary.bridge = device
        waiting = [device for device in built if device.facts.present]
        self._scan(waiting)

    def _scan(self, devices: list[Device]) -> None:
        """Enumerate at boot: parents before children, so that trust can be inherited."""
        # A slot is only scanned beyond function 0 if that says so, and the scan marks the later functions itself.
        shared = {(a.segment, a.bus, a.slot) for device in devices if (a := device.facts.pci) and a.function}
        for device in devices:
            chain = []
            at: Device | None = device
            while at is not None and not at.present:
                chain.append(at)
                at = at.parent
            for member in reversed(chain):
                a = member.facts.pci
                marked = a is not None and (a.segment, a.bus, a.slot) in shared
                self.plug(member, multifunction=member.facts.multifunction or marked)

    def plug(self, device: Device, *, multifunction: bool) -> None:
        """Make a device present on its bus (``pci_device_add``), before any driver or IOMMU knows of it."""
        device.present = True
        device.multifunction = multifunction
        device.untrusted = is_untrusted(device, self.kernel.trust_rule, self.boot.arch)
        if device.bus is not None and device.facts.pci is not None:
            device.bus.slots.setdefault(device.facts.pci.slot, []).append(device)

    def unplug(self, device: Device) -> None:
        """Take a device off its bus."""
        device.present = False
        if device.bus is not None and device.facts.pci is not None:
            device.bus.slots[device.facts.pci.slot].remove(device)
        device.driver = None
        device.driver_managed_dma = False
        device.unit = None
        device.attached = None
        device.dma_ops = DmaOps.DIRECT
        device.attach_deferred = device.require_direct = device.refused = False
        device.vendor_state = None

    def present_devices(self) -> list[Device]:
        """The devices there, in the order of enumeration."""
        return [device for device in self.devices.values() if device.present]

    def below(self, device: Device) -> list[Device]:
        """The present devices behind a bridge, nearest first."""
        found: list[Device] = []
        buses = [device.secondary] if device.secondary else []
        while buses:
            bus = buses.pop(0)
            for member in bus.devices():
                found.append(member)
                if member.secondary:
                    buses.append(member.secondary)
        return found

    # ---- the log -----------------------------------------------------------------------------------------------------

    def log(self, line: str) -> None:
        """Print a kernel line."""
        self.lines.append(line)

    def take_lines(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines

    # ---- groups ------------------------------------------------------------------------------------------------------

    def new_group(self) -> Group:
        """An empty group with the lowest free number."""
        if self._free_ids:
            number = heapq.heappop(self._free_ids)
        else:
            number = self._next_id
            self._next_id += 1
        group = Group(number)
        self.groups[number] = group
        return group

    def drop_group(self, group: Group) -> None:
        """Forget an empty group and its domains; its number is free again."""
        for domain in (group.default_domain, group.blocking_domain):
            if domain is not None:
                self.free(domain)
        group.default_domain = group.domain = group.blocking_domain = None
        if self.groups.get(group.id) is group:
            del self.groups[group.id]
            heapq.heappush(self._free_ids, group.id)

    # ---- domains -----------------------------------------------------------------------------------------------------

    def alloc(self, device: Device, kind: DomainType) -> Domain | None:
        """Ask the driver for a domain; ``None`` where it has no such type.  Raises the driver's ``IommuError``."""
        domain: Domain | None = self.vendor.ops.domain_alloc(device=device, type=kind)
        if domain is not None:
            domain.ops = self.vendor.ops
        return domain

    def free(self, domain: Domain) -> None:
        """Give a domain back; a static one stays."""
        if not domain.static and not domain.freed:
            domain.freed = True
            self.vendor.ops.domain_free(domain=domain)

    def attach(self, device: Device, domain: Domain) -> None:
        """Put a device into a domain.  Raises the driver's ``IommuError`` with the device where it was."""
        self.vendor.ops.attach_dev(domain=domain, device=device)
        if "attach_dev" not in self.vendor.ops.implemented:
            device.attached = domain
        self.attaches += 1

    def detach(self, device: Device) -> None:
        """Leave a device without any domain."""
        if not self.vendor.ops.set_dev_blocked(device=device):
            device.attached = None

    def deferred(self, device: Device) -> bool:
        """Whether attaching the device waits for its driver."""
        device.attach_deferred = bool(self.vendor.ops.is_attach_deferred(device=device))
        return device.attach_deferred

    # ---- reserved regions --------------------------------------------------------------------------------------------

    def regions(self, device: Device) -> list[ReservedRegion]:
        """A device's reserved regions as its driver reports them."""
        return list(self.vendor.ops.get_resv_regions(device=device))

    def group_regions(self, group: Group) -> list[ReservedRegion]:
        """A group's reserved regions, sorted and merged (``iommu_get_group_resv_regions``)."""
        return merge_regions(region for device in group.devices for region in self.regions(device))

    def map_direct(self, device: Device, domain: Domain) -> None:
        """Map a device's direct regions 1:1 into a translated domain (``iommu_create_device_direct_mappings``).

        Raises ``IommuError("EFAULT")`` for a region outside the domain's aperture, and what the driver raises.
        """
        regions = self.regions(device)
        device.require_direct = any(region.type is RegionType.DIRECT for region in regions)
        if not domain.type.uses_dma_api:
            return
        for region in regions:
            if not region.type.is_direct:
                continue
            if not domain.covers(region.start, region.end):
                raise IommuError("EFAULT", f"{region.sysfs} lies outside the domain")
            if device.unit is not None and device.unit.bus is not None:
                from iommukit.dma.mapping import map_one_to_one  # numpy is slow to import, and policy needs none of it

                map_one_to_one(domain, region.start, region.end)
            domain.direct.add((region.start, region.end))

    # ---- queries -----------------------------------------------------------------------------------------------------

    def snapshot(self, show: Callable[[Group], bool] = lambda _: True) -> list[tuple[int, str, tuple[str, ...]]]:
        """Number, sysfs type and members (``dev_name``) of each group, by number."""
        return [
            (number, group.sysfs_type, tuple(device.label for device in group.devices))
            for number, group in sorted(self.groups.items())
            if show(group)
        ]
