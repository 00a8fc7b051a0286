"""Devices, the buses they sit on and the IOMMU units that translate for them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommukit.domain import Domain, DomainType
from iommukit.regions import ReservedRegion

if TYPE_CHECKING:
    from iommukit.group import Group
    from iommukit.hw.bus import Bus
    from iommukit.kernel.system import System


class DeviceKind(enum.Enum):
    """What a device is on its bus; the words of the machine file."""

    ROOT_PORT = "root_port"
    UPSTREAM_PORT = "upstream_port"
    DOWNSTREAM_PORT = "downstream_port"
    PCIE_TO_PCI_BRIDGE = "pcie_to_pci_bridge"
    PCI_TO_PCIE_BRIDGE = "pci_to_pcie_bridge"
    PCI_BRIDGE = "pci_bridge"
    ENDPOINT = "endpoint"
    INTEGRATED_ENDPOINT = "integrated_endpoint"
    EVENT_COLLECTOR = "event_collector"
    CONVENTIONAL = "conventional"
    PLATFORM = "platform"
    ZPCI = "zpci"

    __hash__ = object.__hash__  # members are single objects; the inherited hash is slow

    @property
    def is_pci(self) -> bool:
        """On a PCI bus as the kernel sees it (s390's functions too)."""
        return self is not DeviceKind.PLATFORM

    @property
    def is_pcie(self) -> bool:
        """Has the PCI Express capability."""
        return self in _PCIE

    @property
    def is_bridge(self) -> bool:
        """Has a secondary bus."""
        return self in _BRIDGES


_BRIDGES = frozenset(
    {
        DeviceKind.ROOT_PORT,
        DeviceKind.UPSTREAM_PORT,
        DeviceKind.DOWNSTREAM_PORT,
        DeviceKind.PCIE_TO_PCI_BRIDGE,
        DeviceKind.PCI_TO_PCIE_BRIDGE,
        DeviceKind.PCI_BRIDGE,
    }
)
_PCIE = frozenset(
    set(DeviceKind)
    - {DeviceKind.PCI_BRIDGE, DeviceKind.PCI_TO_PCIE_BRIDGE}
    - {DeviceKind.CONVENTIONAL, DeviceKind.PLATFORM, DeviceKind.ZPCI}
)


@dataclass(frozen=True, slots=True)
class PciAddress:
    """Segment, bus, device and function of a PCI function."""

    segment: int
    bus: int
    slot: int
    function: int

    @property
    def devfn(self) -> int:
        """Device and function as the kernel packs them."""
        return self.slot << 3 | self.function

    @property
    def rid(self) -> int:
        """The 16-bit requester id."""
        return self.bus << 8 | self.slot << 3 | self.function

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a machine says of one device; never changes while a kernel runs.

    ``acs`` is the set of enabled ACS bits, ``None`` where the device has no ACS capability.  ``acs_unknown`` says that the
    source of the machine file (a boot log, say) does not tell; ``acs`` is then ``None`` as well.  ``attributes`` holds the
    machine file's further keys for vendors: ``capabilities`` (``ats``, ``pri``, ``pasid``), ``registers`` (configuration
    space by offset), ``hid``, ``uid``, ``compatible``, s390's CLP attributes and so on.
    """

    name: str
    label: str
    """``dev_name()``: the PCI address or the platform device's name."""
    kind: DeviceKind
    pci: PciAddress | None = None
    vendor_id: int = 0
    device_id: int = 0
    class_code: int = 0
    """24 bits: base class, subclass, programming interface."""
    acs: frozenset[str] | None = None
    acs_unknown: bool = False
    multifunction: bool = False
    """The multifunction bit of the function's own header."""
    external_facing: bool = False
    usb4_host_interface: bool = False
    """Firmware says that what is below the port is tunnelled (``usb4-host-interface``)."""
    dma_aliases: tuple[int, ...] = ()
    """Other device-function numbers on the same bus that this function's DMA may carry."""
    real_dma_device: str | None = None
    role: str | None = None
    reserved: tuple[ReservedRegion, ...] = ()
    dma_mask: int = (1 << 64) - 1
    driver: str | None = None
    """The driver bound at the end of boot, if any."""
    present: bool = True
    """False: the device is only there once an ``add`` step plugs it in."""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base_class(self) -> int:
        """The upper 8 bits of the class code."""
        return self.class_code >> 16

    @property
    def ids(self) -> tuple[int, int]:
        """Vendor and device id."""
        return self.vendor_id, self.device_id


class DmaOps(enum.Enum):
    """Which functions a driver's mapping calls reach."""

    DIRECT = "direct"
    """None: the physical address goes to the device as it is."""
    IOMMU = "iommu"
    """The common DMA API over a domain."""
    PLATFORM = "platform"
    """The architecture's own code (s390 before its conversion)."""


@dataclass(slots=True, eq=False)
class PciBus:
    """One PCI bus of a running system, with the functions present on it."""

    segment: int
    number: int
    bridge: Device | None = None
    slots: dict[int, list[Device]] = field(default_factory=dict)

    def devices(self) -> list[Device]:
        """The functions present, by slot."""
        return [device for functions in self.slots.values() for device in functions]


@dataclass(slots=True, eq=False)
class Unit:
    """One IOMMU as a vendor's ``discover`` reports it (``struct iommu_device``)."""

    name: str
    vendor: str
    probes_at_bind: bool = False
    """Devices meet this unit only when a driver binds (Arm's firmware code before 7.2)."""
    default_domains: bool = True
    """False: the driver offers no domain for the DMA API (s390 in 6.1)."""
    state: Any = None
    """The vendor's own."""
    failed: bool = False
    """Registration was undone by the core."""
    bus: Bus | None = None
    """The hardware, where the kernel runs on a platform; ``None``: the driver decides policy and writes nothing."""


@dataclass(slots=True, eq=False)
class Device:
    """A device of a running system."""

    facts: DeviceFacts
    system: System
    parent: Device | None = None
    bus: PciBus | None = None
    secondary: PciBus | None = None
    multifunction: bool = False
    """``pdev->multifunction`` as it stands when the device is probed: the header bit, or a later function of a scanned slot."""
    untrusted: bool = False
    present: bool = False
    dma_aliases: tuple[int, ...] = ()
    """Device-function numbers that its DMA may carry: the machine's, and what drivers add (``add_dma_alias``)."""

    unit: Unit | None = None
    refused: bool = False
    """The core or the driver would not have it: no unit lets its DMA through."""
    group: Group | None = None
    driver: str | None = None
    driver_managed_dma: bool = False
    dma_ops: DmaOps = DmaOps.DIRECT
    attach_deferred: bool = False
    require_direct: bool = False
    """Firmware insists on a 1:1 region (tracked since 6.6)."""
    attached: Domain | None = None
    """The domain that the driver has put the device in; set by the driver's ``attach_dev`` and nowhere else."""
    vendor_state: Any = None

    @property
    def name(self) -> str:
        """The machine file's name of the device."""
        return self.facts.name

    @property
    def label(self) -> str:
        """``dev_name()``."""
        return self.facts.label

    @property
    def log_name(self) -> str:
        """How the kernel's device messages begin: driver or bus, then the device."""
        return f"{self.driver or ('pci' if self.facts.kind.is_pci else 'platform')} {self.facts.label}"

    @property
    def sysfs_type(self) -> str:
        """The ``type`` file of the device's group; ``none`` outside any group."""
        return self.group.sysfs_type if self.group else "none"

    def dma_works(self) -> bool | None:
        """Whether a driver's mapping reaches memory, as far as policy decides: ``None`` where page tables decide.

        False where the device sits in a domain that cannot hold its mapping: blocked, none at all, or translated while its
        mapping calls bypass the domain.
        """
        if self.dma_ops is DmaOps.PLATFORM:
            return None
        if self.unit is None:
            return not self.refused
        domain = self.attached
        if domain is None:
            # In a kdump kernel the first mapping attaches the device, if the DMA API makes it (iommu_deferred_attach).
            return None if self.attach_deferred and self.dma_ops is DmaOps.IOMMU else False
        if domain.type is DomainType.IDENTITY:
            return self.dma_ops is DmaOps.DIRECT
        if domain.type.uses_dma_api:
            ready = self.dma_ops is DmaOps.IOMMU and domain.iova_initialised
            return None if ready else False
        return False
