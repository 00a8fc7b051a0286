"""The reference driver: complete, honest and of no vendor.

It is the suite's control: it must pass every case.  It is also what an author may read first, and what the wrong drivers
are made of, each with one mistake.  Its hardware translates for everything on the PCI bus, 39 bits wide: ``reference_unit.py``
is the hardware, ``reference_tables.py`` what the driver writes for it, ``reference_layout.py`` the bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iommukit.device import Device, Unit
from iommukit.dma.setup import iommu_setup_dma_ops
from iommukit.domain import Domain, DomainType
from iommukit.errors import InputError, IommuError
from iommukit.group import Group
from iommukit.hookspecs import ExampleDevice, FlushQueueOptions, Gather, Mistake, VendorDeclaration, hookimpl
from iommukit.hw.bus import ModelBus
from iommukit.hw.fault import Fault
from iommukit.hw.platform import Addresses, UnitModel
from iommukit.hw.radix import Partial
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict
from iommukit.kernel.grouping import generic_device_group, pci_device_group
from iommukit.machine.acpi import TableFormat
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import RegionType, ReservedRegion
from iommukit_conformance.reference_layout import ADDRESS_BITS
from iommukit_conformance.reference_table import TOYT, SharedMemory, Toyt
from iommukit_conformance.reference_tables import ENTRY_BLOCKED, Control, ReferenceDomain
from iommukit_conformance.reference_unit import ReferenceHardware

NAME = "reference"
OPTION = "reference_iommu"
OFF = "reference.off"

LAST_ADDRESS = (1 << ADDRESS_BITS) - 1
PAGE_SIZES = 1 << 12 | 1 << 21 | 1 << 30
INTERRUPTS = ReservedRegion(0xFEE0_0000, 0xFEEF_FFFF, RegionType.MSI)

TRACER = (0x1234, 0x0001)
"""Traces into physical memory: it needs identity."""
HALF_WIRED = (0x1234, 0x0002)
"""Cannot pass requests through: it needs translation."""
BURSTY = (0x1234, 0x0003)
"""Unmaps so often that it wishes for a queue."""
FLUSHED = (0x1234, 0x0004)
"""Caches translations: each unmap must be flushed at once."""


def _example(ids: tuple[int, int], **more: Any) -> ExampleDevice:
    return ExampleDevice({"id": f"{ids[0]:04x}:{ids[1]:04x}", "class": "ff0000", "kind": "endpoint", **more})


EXAMPLES: Mapping[str, ExampleDevice] = {
    "identity-required": _example(TRACER),
    "strict-required": _example(HALF_WIRED),
    "lazy-preferred": _example(BURSTY),
    "no-lazy": _example(FLUSHED),
    "direct-region": _example((0x1234, 0x0005), reserved=[{"start": 0x1FF0_0000, "end": 0x1FF0_FFFF, "type": "direct"}]),
    "relaxable-region": _example(
        (0x1234, 0x0006), reserved=[{"start": 0x1FF1_0000, "end": 0x1FF1_FFFF, "type": "direct-relaxable"}]
    ),
}


@dataclass(slots=True)
class ReferenceUnit:
    """What the driver knows of its unit; it lives as long as the system does."""

    pass_through: bool
    table: Toyt | None
    emulated: bool = False
    identity: Domain = field(default_factory=lambda: ReferenceDomain(DomainType.IDENTITY, page_sizes=PAGE_SIZES, static=True))
    blocked: Domain = field(default_factory=lambda: ReferenceDomain(DomainType.BLOCKED, static=True))
    control: Control | None = None
    """The hardware, where the kernel runs on a platform."""


def unit_of(device: Device) -> ReferenceUnit:
    """The unit that translates for a device."""
    assert device.unit is not None
    state: ReferenceUnit = device.unit.state
    return state


@dataclass(slots=True, eq=False)
class PagedDomain(ReferenceDomain):
    """A domain of a unit."""

    unit: ReferenceUnit | None = None

    @property
    def control(self) -> Control:
        """The unit's hardware: page tables are only asked for where there is some."""
        assert self.unit is not None and self.unit.control is not None
        return self.unit.control


def move(device: Device, entry: int) -> None:
    """Write a device's entry, where there is hardware."""
    control = unit_of(device).control
    if control is not None:
        assert device.facts.pci is not None
        control.set_entry(device.facts.pci.rid, entry)


class Reference:
    """The driver: a plugin is any object with hooks."""

    # ---- declaration -------------------------------------------------------------------------------------------------

    @hookimpl
    def declare(self) -> VendorDeclaration:
        """Declare the vendor."""
        return VendorDeclaration(
            title="the suite's reference driver",
            arch=("x86_64",),
            capabilities=frozenset(
                {
                    "identity",
                    "lazy",
                    "pci",
                    "trust",
                    "identity-required",
                    "strict-required",
                    "lazy-preferred",
                    "no-lazy",
                    "direct-regions",
                    "relaxable-regions",
                    "superpages",
                    "write-only",
                    "resv-firmware",
                    "legacy-strict-option",
                }
            ),
            hardware_options={
                "pass_through": "the unit can let requests through untranslated",
                "emulated": "a hypervisor emulates the unit, and each flush is an exit: translation is strict",
            },
            hardware_variants={"emulated": {"emulated": True}},
        )

    @hookimpl
    def firmware_formats(self) -> Sequence[TableFormat[Any]]:
        """The table ``TOYT``."""
        return (TOYT,)

    @hookimpl
    def kernel_options(self, boot: BootState) -> Sequence[KernelOption]:
        """``reference_iommu=off|strict``."""
        return (KernelOption(OPTION, Stage.SETUP, self.apply_option, "off; strict (as iommu.strict=1)"),)

    def apply_option(self, value: str | None, boot: BootState) -> Iterable[OptionReport]:
        """Carry out the option's comma list."""
        for word in (value or "").split(","):
            shown = OPTION if value is None else f"{OPTION}={word}"
            if word == "strict":
                boot.set_dma_strict()
                yield OptionReport(shown, Verdict.EFFECTIVE, "translated domains are strict")
            elif word == "off":
                boot.options[OFF] = True
                yield OptionReport(shown, Verdict.EFFECTIVE, "the units stay off")
            else:
                yield OptionReport(shown, Verdict.INVALID, "off or strict was expected; nothing changed")

    @hookimpl
    def example_device(self, role: str, boot: BootState) -> ExampleDevice | None:
        """One device for each quirk."""
        return EXAMPLES.get(role)

    # ---- hardware ----------------------------------------------------------------------------------------------------

    @hookimpl
    def discover(self, machine: Machine, boot: BootState) -> Sequence[Unit]:
        """One unit, unless it was switched off."""
        for name, value in machine.hardware.items():
            if not isinstance(value, bool):
                raise InputError(f"true or false was expected, got {value!r}", source=machine.source, place=f"hardware.{name}")
        if boot.no_iommu or boot.options.get(OFF):
            return ()
        boot.log.append("reference-iommu: 1 unit found")
        if machine.hardware.get("emulated"):
            boot.log.append("reference-iommu: emulated, using strict mode")
            boot.set_dma_strict()
        passes, emulated = bool(machine.hardware.get("pass_through", True)), bool(machine.hardware.get("emulated"))
        return (Unit("reference0", NAME, state=ReferenceUnit(passes, machine.firmware.get("TOYT"), emulated)),)

    @hookimpl
    def create_unit(self, bus: ModelBus, unit: Unit) -> UnitModel:
        """The hardware; an emulated unit keeps absent translations too."""
        return ReferenceHardware(bus, keeps_absent=unit.state.emulated)

    @hookimpl
    def start_unit(self, unit: Unit) -> None:
        """Tables, queue, translation on: nobody's requests pass until a device is attached."""
        assert unit.bus is not None
        unit.state.control = Control.start(unit.bus)

    @hookimpl
    def take_faults(self, unit: Unit) -> Sequence[Fault]:
        """What the unit holds."""
        control: Control = unit.state.control
        return control.take_faults()

    @hookimpl
    def mistakes(self) -> Sequence[Mistake]:
        """Mistakes in using this hardware, for the suite to be tested with."""
        from iommukit_conformance.wrong.reference_mistakes import MISTAKES

        return MISTAKES

    # ---- devices -----------------------------------------------------------------------------------------------------

    @hookimpl
    def probe_device(self, device: Device, units: Sequence[Unit]) -> Unit | None:
        """The unit, for whatever is on the PCI bus."""
        return units[0] if units and device.facts.pci is not None else None

    @hookimpl
    def probe_finalize(self, device: Device) -> None:
        """Before 6.12, point the mapping calls at the domain."""
        if device.system.boot.era < Era.V6_12:
            iommu_setup_dma_ops(device)

    @hookimpl
    def release_device(self, device: Device) -> None:
        """Detach it, and let none of its requests through."""
        move(device, ENTRY_BLOCKED)
        device.attached = None

    @hookimpl
    def device_group(self, device: Device) -> Group:
        """By topology."""
        return pci_device_group(device) if device.facts.pci is not None else generic_device_group(device)

    @hookimpl
    def get_resv_regions(self, device: Device) -> Sequence[ReservedRegion]:
        """What firmware reserves, and the interrupt window."""
        return [*device.facts.reserved, *self.regions_of_table(device), INTERRUPTS]

    def regions_of_table(self, device: Device) -> Sequence[ReservedRegion]:
        """The table's regions for a device."""
        table, address = unit_of(device).table, device.facts.pci
        if table is None or address is None:
            return ()
        return [
            ReservedRegion(entry.start, entry.end, RegionType.DIRECT)
            for entry in table.entries
            if isinstance(entry, SharedMemory) and (entry.segment, entry.bdf) == (address.segment, address.rid)
        ]

    @hookimpl
    def is_attach_deferred(self, device: Device) -> bool:
        """Never: the hardware starts switched off."""
        return False

    # ---- policy ------------------------------------------------------------------------------------------------------

    @hookimpl
    def def_domain_type(self, device: Device) -> DmaApiPolicy:
        """What the hardware or a quirk leaves no choice about; ids count for nothing where the device is untrusted."""
        if not unit_of(device).pass_through or device.facts.ids == HALF_WIRED:
            return DmaApiPolicy.STRICT
        if device.untrusted:
            return DmaApiPolicy.ANY
        if device.facts.ids == TRACER:
            return DmaApiPolicy.IDENTITY
        return DmaApiPolicy.LAZY if device.facts.ids == BURSTY else DmaApiPolicy.ANY

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        """A queue works unless the device caches translations."""
        return device.facts.ids != FLUSHED

    @hookimpl
    def flush_queue_options(self, device: Device) -> FlushQueueOptions:
        """The usual size."""
        return FlushQueueOptions()

    @hookimpl
    def capable(self, device: Device, capability: str) -> bool:
        """Coherent, isolating interrupts, and since 6.3 with a queue."""
        if capability == "deferred_flush":
            return device.system.boot.era >= Era.V6_12 and device.facts.ids != FLUSHED
        return capability in ("cache_coherency", "interrupt_remapping")

    # ---- domains -----------------------------------------------------------------------------------------------------

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """Translated domains; identity where requests can pass; since 6.12 both others are static."""
        unit, era = unit_of(device), device.system.boot.era
        if type is DomainType.IDENTITY and unit.pass_through:
            return unit.identity if era >= Era.V6_12 else ReferenceDomain(type, page_sizes=PAGE_SIZES)
        if type is DomainType.BLOCKED and era >= Era.V6_12:
            return unit.blocked
        if type is DomainType.DMA_FQ and not self.prefer_dma_api_fq(device):
            return None
        if type.uses_dma_api or type is DomainType.UNMANAGED:
            domain = PagedDomain(type, aperture=(0, LAST_ADDRESS), page_sizes=PAGE_SIZES, unit=unit)
            if unit.control is not None:
                unit.control.equip(domain)
            return domain
        return None

    @hookimpl
    def domain_free(self, domain: Domain) -> None:
        """Its tables and its number, where there is hardware."""
        if isinstance(domain, PagedDomain) and domain.table is not None:
            domain.control.strip(domain)

    @hookimpl
    def attach_dev(self, domain: Domain, device: Device) -> None:
        """Refuse what the unit's 48 bits do not reach, then move the device."""
        if domain.aperture[0] > LAST_ADDRESS:
            raise IommuError("EINVAL", "the domain lies beyond the unit's addresses")
        assert isinstance(domain, ReferenceDomain)
        move(device, domain.entry)
        device.attached = domain

    @hookimpl
    def set_dev_blocked(self, device: Device) -> bool:
        """Since 6.12 the hardware drops a leaving device's requests."""
        if device.system.boot.era < Era.V6_12:
            return False
        move(device, ENTRY_BLOCKED)
        device.attached = None
        return True

    # ---- page tables and the TLB -------------------------------------------------------------------------------------

    @hookimpl
    def map_pages(self, domain: PagedDomain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int) -> int:
        """The engine does it; a table that a large page takes the place of goes once the unit has forgotten it."""
        assert domain.table is not None
        freed: list[tuple[int, int]] = []
        done = domain.table.map(iova, paddr, pgsize, pgcount, prot, freed)
        if freed:
            domain.control.sync(domain, Gather(iova, iova + done - 1, pgsize, freed=freed))
        return done

    @hookimpl
    def unmap_pages(self, domain: PagedDomain, iova: int, pgsize: int, pgcount: int, gather: Gather) -> int:
        """A large page goes as a whole or stays."""
        assert domain.table is not None
        done = domain.table.unmap(iova, pgsize, pgcount, partial=Partial.REFUSE, freed=gather.freed)
        if done:
            gather.add(iova, done, pgsize)
        return done

    @hookimpl
    def iova_to_phys(self, domain: PagedDomain, iova: Addresses) -> Addresses:
        """By the tables."""
        assert domain.table is not None
        return domain.table.lookup_many(iova)

    @hookimpl
    def flush_iotlb_all(self, domain: PagedDomain) -> None:
        """The whole domain."""
        domain.control.forget_domain(domain)

    @hookimpl
    def iotlb_sync(self, domain: PagedDomain, gather: Gather) -> None:
        """What was gathered."""
        domain.control.sync(domain, gather)

    @hookimpl
    def iotlb_sync_map(self, domain: PagedDomain, iova: int, size: int) -> None:
        """An emulated unit has kept that there was nothing."""
        if domain.unit is not None and domain.unit.emulated:
            domain.control.forget_pages(domain, iova, iova + size - 1)


driver = Reference()
