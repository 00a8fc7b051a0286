"""Reading the table at boot: what is printed, and what makes the driver give up (``detect_intel_iommu``, ``dmar_table_init``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from iommukit.device import DeviceFacts, DeviceKind
from iommukit.errors import InputError
from iommukit.kernel.boot import BootState
from iommukit.machine.model import Machine
from iommukit.machine.topology import build_topology
from iommukit_intel_vtd.capabilities import IRQ_AUDIT, WIDTHS, Capabilities, audit
from iommukit_intel_vtd.firmware import Andd, Atsr, Dmar, Drhd, Remapping, Rhsa, Rmrr, Satc
from iommukit_intel_vtd.hardware import VtdHardware, read_hardware
from iommukit_intel_vtd.options import vtd_options
from iommukit_intel_vtd.remapping import Platform, RemappingUnit
from iommukit_intel_vtd.scope import PciNode, nodes_of
from iommukit_intel_vtd.synthetic import table_of

FIRMWARE_BUG = "DMAR: [Firmware Bug]: "
PAGE = 1 << 12
SMALLEST_WIDTH = 12
FIRST_AUDIT, LAST_AUDIT = (5, 12), (6, 12)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a machine file says, whatever the kernel: the table, each unit's words, the devices at boot."""

    machine: Machine
    """Kept, so that no other machine gets its ``id``."""
    hardware: VtdHardware
    table: Dmar
    words: tuple[Capabilities, ...]
    nodes: tuple[PciNode, ...]
    others: tuple[DeviceFacts, ...]


_known: dict[int, _Facts] = {}
_KNOWN_LIMIT = 256


def _facts_of(machine: Machine) -> _Facts:
    """The machine's facts; a machine that is booted many times is looked at once."""
    known = _known.get(id(machine))
    if known is None:
        topology = build_topology(machine)
        hardware = read_hardware(machine)
        table = table_of(machine, hardware, topology)
        present = (placed.facts for placed in topology.devices if placed.facts.present)
        others = tuple(facts for facts in present if facts.kind is DeviceKind.PLATFORM)
        words = tuple(_words(machine, table, hardware))
        if len(_known) >= _KNOWN_LIMIT:
            _known.clear()
        known = _known[id(machine)] = _Facts(machine, hardware, table, words, tuple(nodes_of(topology)), others)
    return known


def read_platform(machine: Machine, boot: BootState) -> Platform:
    """Read and print the table, and start the driver's lists.

    Raises ``InputError`` for options that do not fit the table, ``NotApplicable`` for reserved regions that VT-d cannot have.
    """
    facts = _facts_of(machine)
    synthetic, options = "DMAR" not in machine.firmware, vtd_options(boot)
    platform = Platform(facts.table, synthetic, facts.hardware, options, facts.nodes, facts.others, boot.era)
    platform.valid = _validate(facts.table, facts.words, boot.log)
    platform.parsed = _Parser(platform, facts.words, boot.log).run()
    if audits(boot):
        boot.log.extend(audit([unit.capabilities for unit in platform.active()], IRQ_AUDIT))
    return platform


def audits(boot: BootState) -> bool:
    """Whether the kernel compares its units' capabilities (``cap_audit.c``)."""
    return FIRST_AUDIT <= boot.release <= LAST_AUDIT


def _words(machine: Machine, table: Dmar, hardware: VtdHardware) -> list[Capabilities]:
    """Each unit's words, in the table's order."""
    count = len(table.drhds)
    if hardware.units is None:
        # First-stage tables have four levels at least; a unit with both stages must offer that depth in the second, too.
        needed = max(table.address_bits, 48 if hardware.first_stage else 0)
        width = next((width for width in WIDTHS if width >= needed), WIDTHS[-1])
        return [hardware.apply(Capabilities().with_width(width))] * count
    if len(hardware.units) != count:
        message = f"{len(hardware.units)} units are described, but there are {count}"
        raise InputError(message, source=machine.source, place="hardware.units")
    return [hardware.apply(unit.capabilities()) for unit in hardware.units]


def _validate(table: Dmar, words: Sequence[Capabilities], log: list[str]) -> bool:
    """Look at every unit before anything else (``dmar_validate_one_drhd``); one impossible unit keeps the driver from starting."""
    for drhd, unit in zip(table.drhds, words, strict=True):
        if drhd.broken or unit.absent:
            silence = "" if drhd.broken else " returns all ones"
            log.append(f"{FIRMWARE_BUG}Your BIOS is broken; DMAR reported at address {drhd.address:x}{silence}!")
            return False
    return True


class _Unusable(Exception):
    """The table cannot be used; lines that say why have been printed."""


class _Parser:
    """One pass over the structures, in the table's order (``parse_dmar_table``)."""

    def __init__(self, platform: Platform, words: Sequence[Capabilities], log: list[str]) -> None:
        self.platform = platform
        self.words: Iterator[Capabilities] = iter(words)
        self.log = log
        self.in_scope: list[RemappingUnit] = []
        self.take_all: list[RemappingUnit] = []

    def run(self) -> bool:
        """Fill the platform.  False: the table is unusable."""
        width = self.platform.table.address_bits
        try:
            if width < SMALLEST_WIDTH:
                self.log.append("DMAR: Invalid DMAR haw")
                raise _Unusable
            self.log.append(f"DMAR: Host address width {width}")
            for structure in self.platform.table.structures:
                for line in self.enter(structure):
                    self.log.append(line)
        except _Unusable:
            self.log.append("DMAR: Parse DMAR table failure.")
            return False
        self.platform.units = [*reversed(self.in_scope), *self.take_all]
        if not self.platform.units:
            self.log.extend((f"{FIRMWARE_BUG}No DRHD structure found in DMAR table", "DMAR: No DMAR devices found"))
        return bool(self.platform.units)

    def enter(self, structure: Remapping) -> Iterator[str]:
        """Take one structure up, yielding what is printed.  Raises ``_Unusable``."""
        match structure:
            case Drhd():
                yield f"DMAR: DRHD base: {structure.address:#016x} flags: {structure.flags:#x}"
                yield from self.enter_unit(structure, next(self.words))
            case Rmrr():
                yield f"DMAR: RMRR base: {structure.base:#016x} end: {structure.end:#016x}"
                if structure.base % PAGE or (structure.end + 1) % PAGE or structure.end <= structure.base:
                    yield f"{FIRMWARE_BUG}Your BIOS is broken; bad RMRR [{structure.base:#018x}-{structure.end:#018x}]"
                self.platform.rmrrs.append(structure)
            case Atsr():
                yield f"DMAR: ATSR flags: {structure.flags:#x}"
                self.platform.atsrs.append(structure)
            case Rhsa():
                yield f"DMAR: RHSA base: {structure.address:#016x} proximity domain: {structure.proximity_domain:#x}"
            case Satc():
                yield f"DMAR: SATC flags: {structure.flags:#x}"
                self.platform.satcs.append(structure)
            case Andd():
                yield f"DMAR: ANDD device: {structure.device_number:x} name: {structure.name}"
                self.platform.andds.append(structure)

    def enter_unit(self, drhd: Drhd, words: Capabilities) -> Iterator[str]:
        """Take up one unit (``dmar_parse_one_drhd``, ``alloc_iommu``); a second one at the same place is passed over."""
        taken = [*self.in_scope, *self.take_all]
        if any((unit.drhd.segment, unit.drhd.address) == (drhd.segment, drhd.address) for unit in taken):
            return
        name = f"dmar{len(taken)}"
        if drhd.broken:
            raise _Unusable
        if words.absent:
            yield f"DMAR: Failed to map {name}"
            raise _Unusable
        options = self.platform.options
        width = words.address_width(options.scalable)
        unit = RemappingUnit(name, drhd, words, self.platform, width or 0, words.scalable(options.scalable))
        unit.pre_enabled = bool(self.platform.hardware.translation_pre_enabled)
        if not words.translates():
            yield f"DMAR: {name}: No supported address widths. Not attempting DMA translation."
            unit.ignored = True
        elif width is None:
            yield f"DMAR: Cannot get a valid agaw for iommu (seq_id = {len(taken)})"
            unit.ignored = True
        if self.platform.words_known:
            major, minor = words.version
            yield f"DMAR: {name}: reg_base_addr {drhd.address:x} ver {major}:{minor} cap {words.cap:x} ecap {words.ecap:x}"
        (self.take_all if drhd.include_pci_all else self.in_scope).append(unit)
