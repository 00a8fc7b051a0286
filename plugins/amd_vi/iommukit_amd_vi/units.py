"""From the firmware table to IOMMUs: who translates for which requester id, aliases, special devices, unity maps.

The tables are the driver's own (``struct amd_iommu_pci_seg``): a lookup from requester id to IOMMU, an alias table and a
list of unity maps for each PCI segment, and one list of ACPI devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iommukit.errors import NotApplicable
from iommukit.machine.model import Machine, ReservedSpec
from iommukit.regions import RegionType, ReservedRegion
from iommukit_amd_vi.firmware import Ivhd, Ivhd10, Ivhd11, Ivhd40, Ivmd, Ivrs, MemoryFlags, UidFormat, Variety
from iommukit_amd_vi.firmware_entries import AcpiHid, AliasSelect, All, ExtendedSelect, RangeEnd, Select
from iommukit_amd_vi.hardware import Hardware, check_units, read_hardware
from iommukit_amd_vi.layout import DEFAULT_BASE, EMULATED_EFR, FEATURE_GA_SUP, GA_SUP, MSI_WINDOW, SOUTHBRIDGE_IOAPIC, XT_SUP

ALL_DEVICES = 0xFFFF
PAGE = 0x1000


@dataclass(slots=True, eq=False)
class Iommu:
    """One IOMMU (``struct amd_iommu``); ``devid`` is its own 16-bit requester id.

    ``efr`` is the register; ``table_efr`` what the driver takes from the firmware table before it can read the register,
    0 where the table does not tell.  ``efr_known``: the register's value is not an assumption.
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
    guest_interrupts: bool = True
    """GASup in the table: interrupt entries of 128 bits, which remapping for guests and x2APIC need."""
    x2apic: bool = False
    base: int = DEFAULT_BASE
    """The physical address of its registers."""

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
        if devid <= self.last_devid and self.iommu_of(devid) is not iommu:
            self.owners.append((devid, devid, iommu))


@dataclass(slots=True)
class Platform:
    """All that firmware and hardware say.

    ``synthetic``: the machine carries no table; one IOMMU translates for every PCI function that is no IOMMU.
    ``usable``: the driver gets through the table.
    """

    hardware: Hardware
    synthetic: bool
    usable: bool = True
    iommus: list[Iommu] = field(default_factory=list)
    segments: dict[int, Segment] = field(default_factory=dict)
    acpi_devices: list[AcpiDevice] = field(default_factory=list)
    southbridge_ioapic: bool = False
    pre_boot_protection: bool = False

    def segment(self, number: int) -> Segment:
        """The tables of a segment; empty ones where no IOMMU serves it."""
        if number not in self.segments:
            everything: list[tuple[int, int, Iommu | None]] = [(0, ALL_DEVICES, self.iommus[0])] if self.synthetic else []
            self.segments[number] = Segment(ALL_DEVICES if self.synthetic else -1, everything)
        return self.segments[number]


def read_platform(machine: Machine) -> Platform:
    """What a realised machine says of its IOMMUs.

    Raises ``NotApplicable`` for a machine whose firmware describes another vendor's IOMMU or that asks for regions which
    no IVRS table can express, ``InputError`` for values of ``hardware`` that cannot be.
    """
    hardware = read_hardware(machine)
    for spec in machine.devices:
        for region in spec.reserved:
            _reject_foreign_region(region)
    if not machine.firmware:
        platform = _synthetic(machine, hardware)
    elif (table := machine.firmware.get("IVRS")) is not None:
        platform = _described(table, hardware)
    else:
        raise NotApplicable("the machine's firmware has no IVRS table")
    check_units(hardware, len(platform.iommus), machine)
    return platform


_NO_SUCH_REGION = {
    "direct-relaxable": "AMD-Vi has no relaxable regions",
    "reserved": "AMD-Vi has no firmware regions that are never mapped: the driver maps exclusion ranges 1:1",
    "msi": "AMD-Vi's interrupt window is fixed",
}


def _reject_foreign_region(region: ReservedSpec) -> None:
    if region.type in _NO_SUCH_REGION and not (region.type == "msi" and (region.start, region.end) == MSI_WINDOW):
        raise NotApplicable(_NO_SUCH_REGION[region.type])


# ---- without a table -------------------------------------------------------------------------------------------------


def _synthetic(machine: Machine, hardware: Hardware) -> Platform:
    segment, devid = _own_function(machine)
    iommu = Iommu(0, segment, devid)
    said = hardware.unit(0)
    image = next((efr for efr in (said.efr, hardware.efr) if efr is not None), EMULATED_EFR)
    usable = hardware.names_features or said.efr is not None if hardware.efr_sup is None else hardware.efr_sup
    _set_registers(iommu, hardware, image, usable=usable)
    return Platform(
        hardware,
        synthetic=True,
        iommus=[iommu],
        southbridge_ioapic=hardware.interrupt_remapping is not False,
        pre_boot_protection=bool(hardware.dma_remap),
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
    register = next((efr for efr in (said.efr, hardware.efr, image) if efr is not None), None)
    iommu.efr_known = register is not None
    iommu.efr = hardware.features(EMULATED_EFR if register is None else register)
    iommu.efr2 = said.efr2 if said.efr2 is not None else hardware.efr2 or image2
    iommu.np_cache = hardware.np_cache if said.np_cache is None else said.np_cache
    if usable and image is not None:
        iommu.table_efr, iommu.table_efr2 = hardware.features(image), image2


# ---- with a table ----------------------------------------------------------------------------------------------------


def _described(table: Ivrs, hardware: Hardware) -> Platform:
    """``init_iommu_all`` and ``init_memory_definitions``."""
    platform = Platform(hardware, synthetic=False)
    efr_sup = table.efr_supported if hardware.efr_sup is None else hardware.efr_sup
    remapped = table.dma_remapped_before_boot if hardware.dma_remap is None else hardware.dma_remap
    for ivhd in table.units:
        iommu = _iommu(ivhd, len(platform.iommus), hardware, efr_sup)
        platform.iommus.append(iommu)
        platform.pre_boot_protection |= remapped and iommu.guest_interrupts and isinstance(ivhd, Ivhd11 | Ivhd40)
        # A special device of unknown kind, or no ordinary device at all, makes the driver give up.
        platform.usable &= all(special.variety.known for special in ivhd.special_devices) and _last_device(ivhd) >= 0
        platform.southbridge_ioapic |= any(
            special.variety == Variety.IOAPIC and special.source == SOUTHBRIDGE_IOAPIC for special in ivhd.special_devices
        )
        _enter(platform, iommu, ivhd)
    for iommu in platform.iommus:
        # Whatever the table says, no IOMMU translates for itself.
        platform.segment(iommu.segment).owners.append((iommu.devid, iommu.devid, None))
    for ivmd in table.ivmds:
        _enter_memory(platform, ivmd)
    if hardware.interrupt_remapping is not None:
        platform.southbridge_ioapic = hardware.interrupt_remapping
    return platform


def _iommu(ivhd: Ivhd, index: int, hardware: Hardware, efr_sup: bool) -> Iommu:
    iommu = Iommu(index, ivhd.segment, ivhd.device, ivhd.capability_offset, base=ivhd.address)
    if isinstance(ivhd, Ivhd10):
        iommu.guest_interrupts = bool(FEATURE_GA_SUP.get(ivhd.feature_reporting))
    if not isinstance(ivhd, Ivhd11 | Ivhd40):
        _set_registers(iommu, hardware, None, usable=False)
        return iommu
    # Without GASup the driver looks no further into the copy (init_iommu_one).
    iommu.guest_interrupts = bool(GA_SUP.get(ivhd.efr_image))
    iommu.x2apic = iommu.guest_interrupts and bool(XT_SUP.get(ivhd.efr_image))
    usable = efr_sup and iommu.guest_interrupts
    _set_registers(iommu, hardware, ivhd.efr_image or None, usable=usable, image2=ivhd.efr_image_2)
    return iommu


def _enter(platform: Platform, iommu: Iommu, ivhd: Ivhd) -> None:
    """Enter a block's device entries (``init_iommu_from_acpi``)."""
    segment = platform.segment(ivhd.segment)
    segment.last_devid = max(segment.last_devid, _last_device(ivhd))
    for covered in ivhd.ranges():
        if covered.alias is not None:
            segment.aliases.append((covered.first, covered.last, covered.alias))
            segment.owners.append((covered.alias, covered.alias, iommu))
        segment.owners.append((covered.first, covered.last, iommu))
    if isinstance(ivhd, Ivhd40):
        for acpi in ivhd.acpi_devices:
            if acpi.hid:
                platform.acpi_devices.append(AcpiDevice(acpi.hid, _uid(acpi), ivhd.segment, acpi.device))


def _last_device(ivhd: Ivhd) -> int:
    """The highest requester id that a block names, -1 for none (``find_last_devid_from_ivhd``).

    Special and ACPI devices do not count: the driver ignores one beyond the others.
    """
    if any(isinstance(entry, All) for entry in ivhd.entries):
        return ALL_DEVICES
    named = Select | RangeEnd | AliasSelect | ExtendedSelect
    return max((entry.device for entry in ivhd.entries if isinstance(entry, named)), default=-1)


def _uid(entry: AcpiHid) -> str:
    """The unique id as the driver keeps it: of a number, only the first byte."""
    if entry.uid_format == UidFormat.INTEGER:
        return str(entry.uid[0]) if entry.uid else "0"
    unique_id = entry.unique_id
    return unique_id if isinstance(unique_id, str) else ""


def _enter_memory(platform: Platform, ivmd: Ivmd) -> None:
    """A memory definition becomes a 1:1 region of its devices, an exclusion range as well (``init_unity_map_range``).

    Since 5.9 the driver treats exclusion ranges as readable and writable unity maps, because the hardware has one
    exclusion range for each IOMMU and firmware asks for several.
    """
    if not ivmd.flags & (MemoryFlags.UNITY | MemoryFlags.EXCLUSION):
        return
    region = unity_region(ivmd.start, ivmd.length_bytes)
    if region is not None:
        # The specification reserves these bytes; the driver reads the PCI segment from them.
        segment = platform.segment(ivmd.reserved & 0xFFFF)
        segment.unity_maps.append(UnityMap(*ivmd.devices, region))


def unity_region(start: int, length: int) -> ReservedRegion | None:
    """The direct region for ``length`` bytes from ``start``: both are rounded *up* to pages.  ``None`` if nothing is left."""
    first = -(-start // PAGE) * PAGE
    pages = -(-length // PAGE)
    return ReservedRegion(first, first + pages * PAGE - 1, RegionType.DIRECT) if pages else None
