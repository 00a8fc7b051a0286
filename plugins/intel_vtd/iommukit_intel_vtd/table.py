"""What the DMAR table tells the driver, or what it would tell on a machine without one (VT-d specification 8).

The driver works on the records of this module; the table's bytes are ``firmware.py``'s.  A machine file without a table gets one
unit that takes all devices, where QEMU has its unit, and a reserved-memory structure for each region that it reserves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iommukit.device import DeviceFacts
from iommukit.errors import NotApplicable
from iommukit.machine.model import Machine
from iommukit.machine.topology import Topology
from iommukit.regions import RegionType, ReservedRegion
from iommukit_intel_vtd.hardware import VtdHardware
from iommukit_intel_vtd.quirks import rmrr_is_relaxable
from iommukit_intel_vtd.scope import PciNode, Scope, ScopeKind, nodes_of

INTERRUPTS = ReservedRegion(0xFEE0_0000, 0xFEEF_FFFF, RegionType.MSI)
"""The interrupt window, which is never translated (VT-d specification 3.14)."""
DEFAULT_BASE = 0xFED9_0000

INTR_REMAP = 1 << 0
OPT_IN = 1 << 2
"""Flags of the table: interrupts can be remapped; the platform wants DMA remapping on."""
INCLUDE_PCI_ALL = 1 << 0
ALL_PORTS = 1 << 0


@dataclass(frozen=True, slots=True)
class Drhd:
    """A remapping unit: its registers' address and the devices it translates for (8.3)."""

    base: int
    segment: int = 0
    flags: int = 0
    scopes: tuple[Scope, ...] = ()

    @property
    def include_all(self) -> bool:
        """It takes every PCI device of its segment that no other unit names."""
        return bool(self.flags & INCLUDE_PCI_ALL)


@dataclass(frozen=True, slots=True)
class Rmrr:
    """Memory (bytes ``base``..``end``) that firmware and a device share (8.4)."""

    base: int
    end: int
    segment: int = 0
    scopes: tuple[Scope, ...] = ()


@dataclass(frozen=True, slots=True)
class Atsr:
    """Root ports whose devices may cache translations (8.5)."""

    flags: int
    segment: int = 0
    scopes: tuple[Scope, ...] = ()

    @property
    def all_ports(self) -> bool:
        """Every root port of the segment."""
        return bool(self.flags & ALL_PORTS)


@dataclass(frozen=True, slots=True)
class Rhsa:
    """The memory node nearest to a unit (8.6)."""

    base: int
    proximity_domain: int


@dataclass(frozen=True, slots=True)
class Andd:
    """A device outside PCI, by its name in the ACPI name space (8.7)."""

    device_number: int
    name: str


@dataclass(frozen=True, slots=True)
class Satc:
    """Integrated devices with a translation cache (8.8)."""

    flags: int
    segment: int = 0
    scopes: tuple[Scope, ...] = ()


Structure = Drhd | Rmrr | Atsr | Rhsa | Andd | Satc


@dataclass(frozen=True, slots=True)
class Table:
    """The table: ``width`` in bits, flags, structures in order.  ``synthetic``: the machine file carries none."""

    width: int
    flags: int
    structures: tuple[Structure, ...]
    synthetic: bool = False

    @property
    def remaps_interrupts(self) -> bool:
        """The platform can remap interrupts."""
        return bool(self.flags & INTR_REMAP)

    @property
    def opts_in(self) -> bool:
        """The platform asks for DMA remapping (``DMA_CTRL_PLATFORM_OPT_IN_FLAG``)."""
        return bool(self.flags & OPT_IN)


def table_of(machine: Machine, hardware: VtdHardware, topology: Topology) -> Table:
    """The machine's table, with a structure for each region that the machine file itself reserves.

    Raises ``NotApplicable`` for regions that VT-d could not have.
    """
    reserved = tuple(_reserved(topology))
    if (dmar := machine.firmware.get("DMAR")) is not None:
        from iommukit_intel_vtd.firmware import records

        table = records(dmar)
        return Table(table.width, table.flags, (*table.structures, *reserved))
    if machine.firmware:
        raise NotApplicable("the machine's firmware has no DMAR table")
    unit = Drhd(DEFAULT_BASE, flags=INCLUDE_PCI_ALL)
    ports = (Atsr(ALL_PORTS),) if hardware.device_tlb else ()
    flags = INTR_REMAP * (hardware.interrupt_remapping is not False) | OPT_IN * bool(hardware.platform_opt_in)
    return Table(hardware.width, flags, (unit, *reserved, *ports), synthetic=True)


def _reserved(topology: Topology) -> Iterator[Rmrr]:
    """Reserved memory for the regions that devices of the machine file have, there or not yet."""
    for node in nodes_of(topology, absent=True):
        for region in node.facts.reserved:
            if _is_rmrr(node.facts, region):
                yield Rmrr(region.start, region.end, node.segment, (_scope(node),))
    for placed in topology.devices:
        if placed.facts.pci is None and placed.facts.reserved:
            raise NotApplicable(f"{placed.facts.name}: VT-d reserves memory for PCI devices only")


def _is_rmrr(facts: DeviceFacts, region: ReservedRegion) -> bool:
    """Whether a region comes from an RMRR; the interrupt window is there anyhow.

    The driver tells direct from relaxable by the device's class; a machine file that says otherwise is not a VT-d machine.
    """
    if region == INTERRUPTS:
        return False
    if not region.type.is_direct:
        raise NotApplicable(f"{facts.name}: VT-d has no region of type {region.type.value} at {region.start:#x}")
    real = RegionType.DIRECT_RELAXABLE if rmrr_is_relaxable(facts) else RegionType.DIRECT
    if region.type is not real:
        reason = f"VT-d makes the reserved memory of class {facts.class_code:06x} {real.value}, not {region.type.value}"
        raise NotApplicable(f"{facts.name}: {reason}")
    return True


def _scope(node: PciNode) -> Scope:
    kind = ScopeKind.BRIDGE if node.facts.kind.is_bridge else ScopeKind.ENDPOINT
    return Scope(kind, node.way[0][0], tuple((slot, function) for _, slot, function in node.way))
