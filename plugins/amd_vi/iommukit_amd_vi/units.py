"""From the firmware table to IOMMUs: who translates for which requester id, aliases, special devices, unity maps.

The tables are the driver's own (``struct amd_iommu_pci_seg``): a lookup from requester id to IOMMU, an alias table and a list of unity
maps for each PCI segment, and one list of ACPI devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from iommukit.device import Device
from iommukit.errors import NotApplicable
from iommukit.machine.model import Machine
from iommukit.regions import RegionType, ReservedRegion
from iommukit_amd_vi.firmware import Ivrs
from iommukit_amd_vi.hardware import Hardware, check_units, read_hardware
from iommukit_amd_vi.layout import EMULATED_EFR, GA_SUP, SOUTHBRIDGE_IOAPIC

ALL_DEVICES = 0xFFFF
PAGE = 0x1000


@dataclass(slots=True, eq=False)
class Iommu:
    """One IOMMU (``struct amd_iommu``); ``devid`` is its own 16-bit requester id.

    ``efr`` is the register; ``table_efr`` what the driver takes from the firmware table before it can read the register, 0 where
    the table does not tell.  ``efr_known``: the register's value is not an assumption.
    """

    index: int
    segment: int
    devid: int
    cap_offset: int = 0x40
    np_cache: bool = False
    efr: int = EMULATED_EFR
    efr2: int = 0
    table_efr: int = 0
    table_efr2: int = 0
    efr_known: bool = True

    @property
    def name(self) -> str:
        """The name in sysfs."""
        return f"ivhd{self.index}"

    @property
    def label(self) -> str:
        """Its own PCI address."""
        return f"{self.segment:04x}:{self.devid >> 8:02x}:{self.devid >> 3 & 0x1F:02x}.{self.devid & 7:x}"


@dataclass(frozen=True, slots=True)
class UnityMap:
    """A region of the requester ids ``first``..``last`` (``struct unity_map_entry``)."""

    first: int
    last: int
    region: ReservedRegion


@dataclass(frozen=True, slots=True)
class AcpiDevice:
    """An ACPI device that masters the bus under a PCI requester id (``struct acpihid_map_entry``)."""

    hid: str
    uid: str
    segment: int
    devid: int


@dataclass(slots=True)
class Segment:
    """The tables of one PCI segment.  Later entries overrule earlier ones."""

    last_devid: int = -1
    owners: list[tuple[int, int, Iommu | None]] = field(default_factory=list)
    aliases: list[tuple[int, int, int]] = field(default_factory=list)
    unity_maps: list[UnityMap] = field(default_factory=list)

    def iommu_of(self, devid: int) -> Iommu | None:
        """Who translates for a requester id (``rlookup_table``)."""
        if devid > self.last_devid:
            return None
        return next((iommu for first, last, iommu in reversed(self.owners) if first <= devid <= last), None)

    def alias_of(self, devid: int) -> int:
        """Under which requester id a device's requests arrive (``alias_table``)."""
        return next((alias for first, last, alias in reversed(self.aliases) if first <= devid <= last), devid)

    def take_over(self, devid: int, iommu: Iommu) -> None:
        """Let an IOMMU translate for a requester id that one of its devices uses as well (``clone_alias``)."""
        if self.iommu_of(devid) is not iommu:
            self.owners.append((devid, devid, iommu))


@dataclass(slots=True)
class Platform:
    """All that firmware and hardware say.

    ``synthetic``: the machine carries no table; one IOMMU translates for every PCI function that is no IOMMU.
    """

    hardware: Hardware
    iommus: list[Iommu]
    segments: dict[int, Segment]
    acpi_devices: list[AcpiDevice]
    southbridge_ioapic: bool
    pre_boot_protection: bool
    synthetic: bool

    def segment(self, number: int) -> Segment:
        """The tables of a segment; empty ones where no IOMMU serves it."""
        if number not in self.segments:
            everything = [(0, ALL_DEVICES, self.iommus[0])] if self.synthetic else []
            self.segments[number] = Segment(ALL_DEVICES if self.synthetic else -1, everything)
        return self.segments[number]


def read_platform(machine: Machine) -> Platform:
    """What a realised machine says of its IOMMUs.

    Raises ``NotApplicable`` for a machine whose firmware describes another vendor's IOMMU, ``InputError`` for values of ``hardware`` that
    cannot be.
    """
    hardware = read_hardware(machine)
    if not machine.firmware:
        return _synthetic(machine, hardware)
    table = machine.firmware.get("IVRS")
    if table is None:
        raise NotApplicable("the machine's firmware has no IVRS table")
    return _described(machine, hardware, table)


def _synthetic(machine: Machine, hardware: Hardware) -> Platform:
    efr_sup = hardware.names_features if hardware.efr_sup is None else hardware.efr_sup
    segment, devid = _own_function(machine)
    iommu = Iommu(0, segment, devid)
    _set_registers(iommu, hardware, EMULATED_EFR, usable=efr_sup)
    check_units(hardware, 1, machine)
    return Platform(
        hardware,
        [iommu],
        {},
        [],
        southbridge_ioapic=hardware.interrupt_remapping is not False,
        pre_boot_protection=bool(hardware.dma_remap),
        synthetic=True,
    )


def _own_function(machine: Machine) -> tuple[int, int]:
    """The IOMMU's own place: a function of its class, if the machine has one with an address, else 00:00.2 as on hardware."""
    for spec in machine.devices:
        if is_iommu_class(int(spec.class_code or "0", 16)) and (numbers := spec.pci_numbers()):
            segment, bus, slot, function = numbers
            return segment, bus << 8 | slot << 3 | function
    return 0, 0x0002


def is_iommu_class(class_code: int) -> bool:
    """Base class 08h, subclass 06h: an IOMMU (PCI Code and ID Assignment 1.9)."""
    return class_code >> 8 == 0x0806


def _set_registers(iommu: Iommu, hardware: Hardware, image: int | None, *, usable: bool, image2: int = 0) -> None:
    """Settle an IOMMU's registers from what is said of it and the table's copy; ``usable``: the driver takes the copy."""
    said = hardware.unit(iommu.index)
    register = said.efr if said.efr is not None else hardware.efr if hardware.efr is not None else image
    iommu.efr_known = register is not None
    iommu.efr = hardware.features(EMULATED_EFR if register is None else register)
    iommu.efr2 = said.efr2 if said.efr2 is not None else hardware.efr2 or image2
    iommu.np_cache = hardware.np_cache if said.np_cache is None else said.np_cache
    if usable and image is not None:
        iommu.table_efr, iommu.table_efr2 = hardware.features(image), image2
