"""Reading the table at boot: what is printed, and what makes the driver give up (``dmar.c:detect_intel_iommu``, ``dmar_table_init``)."""

from __future__ import annotations

from collections.abc import Iterator

from iommukit.device import DeviceKind
from iommukit.errors import InputError
from iommukit.kernel.boot import BootState
from iommukit.machine.model import Machine
from iommukit.machine.topology import build_topology
from iommukit_intel_vtd.capabilities import IRQ_AUDIT, WIDTHS, Capabilities, audit
from iommukit_intel_vtd.hardware import VtdHardware, read_hardware
from iommukit_intel_vtd.options import vtd_options
from iommukit_intel_vtd.remapping import Platform, RemappingUnit
from iommukit_intel_vtd.scope import nodes_of
from iommukit_intel_vtd.table import Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Structure, Table, table_of

FIRMWARE_BUG = "DMAR: [Firmware Bug]: "
PAGE = 1 << 12
SMALLEST_WIDTH = 12
FIRST_AUDIT, LAST_AUDIT = (5, 12), (6, 12)


def read_platform(machine: Machine, boot: BootState) -> Platform:
    """Read and print the table, and start the driver's lists.

    Raises ``InputError`` for options that do not fit the table, ``NotApplicable`` for reserved regions that VT-d cannot have.
    """
    topology = build_topology(machine)
    hardware = read_hardware(machine)
    table = table_of(machine, hardware, topology)
    words = _words(machine, table, hardware)
    platform = Platform(
        table,
        hardware,
        vtd_options(boot),
        list(nodes_of(topology)),
        [placed.facts for placed in topology.devices if placed.facts.kind is DeviceKind.PLATFORM and placed.facts.present],
    )
    platform.valid = _validate(table, words, boot.log)
    platform.parsed = _Parser(platform, words, boot.log).run()
    if platform.parsed and audits(boot):
        boot.log.extend(audit([unit.capabilities for unit in platform.active()], IRQ_AUDIT))
    return platform


def audits(boot: BootState) -> bool:
    """Whether the kernel compares its units' capabilities (``cap_audit.c``)."""
    return FIRST_AUDIT <= boot.release <= LAST_AUDIT


def _words(machine: Machine, table: Table, hardware: VtdHardware) -> list[Capabilities]:
    """Each unit's words, in the table's order."""
    count = sum(isinstance(structure, Drhd) for structure in table.structures)
    if hardware.units is None:
        width = next((width for width in WIDTHS if width >= table.width), WIDTHS[-1])
        return [hardware.apply(Capabilities().with_width(width))] * count
    if len(hardware.units) != count:
        message = f"{len(hardware.units)} units are described, but there are {count}"
        raise InputError(message, source=machine.machine, place="hardware.units")
    return [hardware.apply(unit.capabilities()) for unit in hardware.units]


def _validate(table: Table, words: list[Capabilities], log: list[str]) -> bool:
    """Look at every unit before anything else (``dmar_validate_one_drhd``); one impossible unit keeps the driver from starting."""
    drhds = (structure for structure in table.structures if isinstance(structure, Drhd))
    for drhd, unit in zip(drhds, words, strict=True):
        if drhd.base == 0 or unit.absent:
            silence = " returns all ones" if drhd.base else ""
            log.append(f"{FIRMWARE_BUG}Your BIOS is broken; DMAR reported at address {drhd.base:x}{silence}!")
            return False
    return True


class _Unusable(Exception):
    """The table cannot be used; lines that say why have been printed."""


class _Parser:
    """One pass over the structures, in the table's order (``parse_dmar_table``)."""

    def __init__(self, platform: Platform, words: list[Capabilities], log: list[str]) -> None:
        self.platform = platform
        self.words: Iterator[Capabilities] = iter(words)
        self.log = log
        self.in_scope: list[RemappingUnit] = []
        self.take_all: list[RemappingUnit] = []

    def run(self) -> bool:
        """Fill the platform.  False: the table is unusable."""
        width = self.platform.table.width
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

    def enter(self, structure: Structure) -> Iterator[str]:
        """Take one structure up, yielding what is printed.  Raises ``_Unusable``."""
        match structure:
            case Drhd():
                yield f"DMAR: DRHD base: {structure.base:#016x} flags: {structure.flags:#x}"
                yield from self.enter_unit(structure, next(self.words))
            case Rmrr():
                yield f"DMAR: RMRR base: {structure.base:#016x} end: {structure.end:#016x}"
                if structure.base % PAGE or (structure.end + 1) % PAGE or structure.end <= structure.base:
                    yield f"{FIRMWARE_BUG}Your BIOS is broken; bad RMRR [{structure.base:#018x}-{structure.end:#018x}]"
                self.platform.rmrrs.insert(0, structure)
            case Atsr():
                yield f"DMAR: ATSR flags: {structure.flags:#x}"
                self.platform.atsrs.insert(0, structure)
            case Rhsa():
                yield f"DMAR: RHSA base: {structure.base:#016x} proximity domain: {structure.proximity_domain:#x}"
            case Satc():
                yield f"DMAR: SATC flags: {structure.flags:#x}"
                self.platform.satcs.insert(0, structure)
            case Andd():
                yield f"DMAR: ANDD device: {structure.device_number:x} name: {structure.name}"
                self.platform.andds.append(structure)

    def enter_unit(self, drhd: Drhd, words: Capabilities) -> Iterator[str]:
        """Take up one unit (``dmar_parse_one_drhd``, ``alloc_iommu``); a second one at the same place is passed over."""
        taken = [*self.in_scope, *self.take_all]
        if any((unit.drhd.segment, unit.drhd.base) == (drhd.segment, drhd.base) for unit in taken):
            return
        name = f"dmar{len(taken)}"
        if drhd.base == 0:
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
            yield f"DMAR: {name}: reg_base_addr {drhd.base:x} ver {major}:{minor} cap {words.cap:x} ecap {words.ecap:x}"
        (self.take_all if drhd.include_all else self.in_scope).append(unit)
