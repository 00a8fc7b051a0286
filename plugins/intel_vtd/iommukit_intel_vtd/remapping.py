"""The driver's own view of the platform: its units, its regions and which device belongs to which (``dmar.c``).

Filled in two moves, as in the kernel: the table is read and printed early, for interrupt remapping (``parse.py``); devices are
bound to its structures, and units left out, when DMA remapping is about to be switched on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.device import Device, DeviceFacts, DeviceKind
from iommukit.domain import Domain, DomainType
from iommukit.kernel.aliases import dma_aliases, real_dma_device
from iommukit.policy import Era
from iommukit_intel_vtd.capabilities import Capabilities
from iommukit_intel_vtd.firmware import Andd, Atsr, Dmar, Drhd, Rmrr, Satc, ScopeKind
from iommukit_intel_vtd.hardware import VtdHardware
from iommukit_intel_vtd.options import VtdOptions
from iommukit_intel_vtd.quirks import Quirks, is_display
from iommukit_intel_vtd.scope import PciNode, ScopeMismatch, names, node_of, upward

if TYPE_CHECKING:
    from iommukit_intel_vtd.running import RunningUnit
    from iommukit_intel_vtd.space import AddressSpace


@dataclass(slots=True, eq=False)
class RemappingUnit:
    """One remapping unit as the driver keeps it (``struct dmar_drhd_unit`` and ``struct intel_iommu``)."""

    name: str
    drhd: Drhd
    capabilities: Capabilities
    platform: Platform
    width: int
    """Bits of I/O virtual address."""
    scalable: bool
    """Runs in scalable mode."""
    pre_enabled: bool = False
    """A predecessor kernel left translation on."""
    ignored: bool = False
    """Left out: it has no devices, or only graphics that shall not be translated, or no usable tables."""
    running: RunningUnit | None = None
    """The unit at work, where the kernel runs on hardware."""

    @property
    def levels(self) -> int:
        """How many levels its tables have."""
        levels = self.capabilities.levels(self.platform.options.scalable)
        assert levels is not None
        return levels


@dataclass(slots=True)
class Binding:
    """What the table says of one device: its unit, and the memory reserved for it."""

    unit: RemappingUnit | None = None
    rmrrs: list[Rmrr] = field(default_factory=list)
    requester: int | None = None
    """The requester id of a device outside PCI."""


@dataclass(slots=True, eq=False)
class Platform:
    """VT-d on one machine under one kernel.

    ``units`` stand in the order of the driver's list: those with scopes in reverse order of the table, then those that take
    all the rest, in order.  Devices meet their units, and units register (since 6.1), in this order.
    """

    table: Dmar
    synthetic: bool
    """The machine file carries no table."""
    hardware: VtdHardware
    options: VtdOptions
    devices: tuple[PciNode, ...]
    others: tuple[DeviceFacts, ...]
    """Platform devices."""
    era: Era
    """The generation of the driver."""
    valid: bool = True
    """Firmware names no impossible unit, so that the driver starts at all."""
    parsed: bool = False
    units: list[RemappingUnit] = field(default_factory=list)
    rmrrs: list[Rmrr] = field(default_factory=list)
    atsrs: list[Atsr] = field(default_factory=list)
    satcs: list[Satc] = field(default_factory=list)
    andds: list[Andd] = field(default_factory=list)
    bindings: dict[str, Binding] = field(default_factory=dict)
    quirks: Quirks = field(default_factory=Quirks)
    identity: Domain = field(default_factory=lambda: Domain(DomainType.IDENTITY, static=True))
    blocked: Domain = field(default_factory=lambda: Domain(DomainType.BLOCKED, static=True))
    one_to_one: AddressSpace | None = None
    """The tables of the identity domain, where there must be some (``si_domain``)."""

    @property
    def words_known(self) -> bool:
        """Whether somebody says what the registers hold: the machine file, or this plugin for a machine without a table."""
        return self.hardware.units is not None or self.synthetic

    def active(self) -> list[RemappingUnit]:
        """The units in use, in the driver's order."""
        return [unit for unit in self.units if not unit.ignored]

    # ---- binding devices ---------------------------------------------------------------------------------------------

    def bind(self, node: PciNode, log: list[str]) -> bool:
        """Enter a PCI function where the table names it (``dmar_pci_bus_add_dev``).

        False where a scope and the function do not fit together; at boot this keeps remapping off.
        """
        binding = self.bindings[node.facts.name] = Binding()
        try:
            for unit in self.units:
                drhd = unit.drhd
                if drhd.segment == node.segment and not drhd.include_pci_all and names(node, drhd.segment, drhd.scopes, log):
                    binding.unit = unit
                    break
            binding.rmrrs.extend(rmrr for rmrr in self.rmrrs if names(node, rmrr.segment, rmrr.scopes, log))
            # Matched for what it prints and for its errors; who may use device TLBs decides nothing here.
            any(names(node, atsr.segment, atsr.scopes, log) for atsr in self.atsrs if not atsr.all_ports)
            any(names(node, satc.segment, satc.scopes, log) for satc in self.satcs)
        except ScopeMismatch as mismatch:
            log.append(str(mismatch))
            return False
        return True

    def bind_named(self, facts: DeviceFacts, log: list[str]) -> None:
        """Enter a platform device that the table knows by its ACPI name (``dmar_acpi_insert_dev_scope``)."""
        path = facts.attributes.get("acpi_path")
        number = next((andd.device_number for andd in self.andds if andd.name == path), None)
        if path is None or number is None:
            return
        for unit in self.units:
            for scope in unit.drhd.scopes:
                if scope.kind == ScopeKind.NAMESPACE and scope.enumeration_id == number:
                    (slot, function), *_ = scope.path
                    log.append(
                        f'DMAR: ACPI device "{facts.label}" under DMAR at {unit.drhd.address:x} as'
                        f" {scope.start_bus:02x}:{slot:02x}.{function}"
                    )
                    requester = scope.start_bus << 8 | slot << 3 | function
                    self.bindings[facts.name] = Binding(unit, requester=requester)
                    return
        log.append(f"DMAR: No IOMMU scope found for ANDD enumeration ID {number} ({facts.label})")

    def bind_all(self, log: list[str]) -> bool:
        """Enter everything that is there at boot (``dmar_dev_scope_init``).  False: remapping must stay off."""
        for facts in self.others:
            self.bind_named(facts, log)
        fits = [self.bind(node, log) for node in self.devices]
        return all(fits)

    def leave_out(self) -> None:
        """Ignore units without devices, and those for graphics alone where graphics are not translated."""
        translated = self.options.map_graphics and not self.quirks.broken_graphics
        present = {node.facts.name: node.facts for node in self.devices} | {facts.name: facts for facts in self.others}
        for unit in self.units:
            if unit.drhd.include_pci_all or unit.ignored:
                continue
            members = [present[name] for name, binding in self.bindings.items() if binding.unit is unit]
            unit.ignored = not members or (not translated and all(is_display(facts) for facts in members))

    # ---- looking devices up ------------------------------------------------------------------------------------------

    def meet(self, device: Device) -> None:
        """Enter a device that was plugged in after boot."""
        if device.name in self.bindings or device.facts.pci is None:
            return
        lines: list[str] = []
        self.bind(node_of(device), lines)
        for line in lines:
            device.system.log(line)

    def lookup(self, device: Device) -> RemappingUnit | None:
        """The unit that translates for a device, ``None`` also where that unit is ignored (``device_lookup_iommu``)."""
        if device.facts.kind is DeviceKind.PLATFORM:
            binding = self.bindings.get(device.name)
            unit = binding.unit if binding else None
        else:
            unit = self._lookup_pci(real_dma_device(device))
        return unit if unit is not None and not unit.ignored else None

    def _lookup_pci(self, device: Device) -> RemappingUnit | None:
        assert device.facts.pci is not None
        bound = {id(self.bindings[member.name].unit) for member in upward(device) if member.name in self.bindings}
        for unit in self.units:
            if unit.drhd.segment == device.facts.pci.segment and (unit.drhd.include_pci_all or id(unit) in bound):
                return unit
        return None

    def requesters_of(self, device: Device) -> tuple[int, ...]:
        """The ids that a device's requests may carry; the last is that which they carry here, behind a bridge the bridge's."""
        if device.facts.pci is None:
            requester = self.bindings[device.name].requester
            assert requester is not None
            return (requester,)
        return tuple(dict.fromkeys(requester for _, requester in dma_aliases(device)))

    def rmrrs_of(self, device: Device) -> list[Rmrr]:
        """The memory that firmware reserves for a device, by its own scope or that of a bridge above."""
        found: list[Rmrr] = []
        for member in upward(device):
            if member.name in self.bindings:
                found.extend(self.bindings[member.name].rmrrs)
        return found
