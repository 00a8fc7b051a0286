"""The DMAR table of a machine, or the one that it would have.

A machine file without a table gets one unit for each segment, which takes all its devices; the first is where QEMU has its unit.
Regions that the machine file reserves for a device become reserved-memory structures, with a table or without.
"""

from __future__ import annotations

from collections.abc import Iterator

from iommukit.device import DeviceFacts
from iommukit.errors import NotApplicable
from iommukit.machine.acpi import DeviceFunction
from iommukit.machine.model import Machine
from iommukit.machine.topology import Topology
from iommukit.regions import RegionType, ReservedRegion
from iommukit_intel_vtd.firmware import Atsr, AtsrFlags, DeviceScope, Dmar, DmarFlags, Drhd, DrhdFlags, Rmrr, ScopeKind
from iommukit_intel_vtd.hardware import VtdHardware
from iommukit_intel_vtd.quirks import rmrr_is_relaxable
from iommukit_intel_vtd.scope import PciNode, nodes_of

DEFAULT_BASE = 0xFED9_0000
UNIT_SPACING = 0x1000
INTERRUPTS = ReservedRegion(0xFEE0_0000, 0xFEEF_FFFF, RegionType.MSI)
"""The interrupt window, which is never translated (VT-d specification 3.14)."""


def table_of(machine: Machine, hardware: VtdHardware, topology: Topology) -> Dmar:
    """The machine's table.  Raises ``NotApplicable`` for regions that VT-d could not have."""
    reserved = tuple(_reserved(topology))
    if "DMAR" in machine.firmware:
        dmar = machine.firmware["DMAR"]
        assert isinstance(dmar, Dmar)
        return dmar.model_copy(update={"structures": (*dmar.structures, *reserved)}) if reserved else dmar
    flags = DmarFlags(0)
    if hardware.interrupt_remapping is not False:
        flags |= DmarFlags.INTR_REMAP
    if hardware.platform_opt_in:
        flags |= DmarFlags.DMA_CTRL_PLATFORM_OPT_IN
    segments = sorted({placed.facts.pci.segment for placed in topology.devices if placed.facts.pci}) or [0]
    units = tuple(
        Drhd(address=DEFAULT_BASE + UNIT_SPACING * number, flags=DrhdFlags.INCLUDE_PCI_ALL, segment=segment)
        for number, segment in enumerate(segments)
    )
    ports = tuple(Atsr(flags=AtsrFlags.ALL_PORTS, segment=segment) for segment in segments if hardware.device_tlb)
    return Dmar(host_address_width=hardware.width - 1, flags=flags, structures=(*units, *reserved, *ports))


def _reserved(topology: Topology) -> Iterator[Rmrr]:
    """Reserved memory for the regions of the machine file's devices, there or not yet."""
    for placed in topology.devices:
        if placed.facts.reserved and placed.facts.pci is None:
            raise NotApplicable(f"{placed.facts.name}: VT-d reserves memory for PCI devices only")
    for node in nodes_of(topology, absent=True):
        for region in node.facts.reserved:
            if _is_rmrr(node.facts, region):
                yield Rmrr(base=region.start, end=region.end, segment=node.segment, scopes=(_scope(node),))


def _is_rmrr(facts: DeviceFacts, region: ReservedRegion) -> bool:
    """Whether a region comes from an RMRR; the interrupt window is there anyhow.

    The driver tells direct from relaxable by the device's class; a machine file that says otherwise is no VT-d machine.
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


def _scope(node: PciNode) -> DeviceScope:
    kind = ScopeKind.BRIDGE if node.facts.kind.is_bridge else ScopeKind.ENDPOINT
    path = tuple(DeviceFunction(slot, function) for _, slot, function in node.way)
    return DeviceScope(kind=kind, start_bus=node.way[0][0], path=path)
