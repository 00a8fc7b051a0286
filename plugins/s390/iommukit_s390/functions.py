"""What CLP tells of a PCI function, and the range of DMA addresses that Linux makes of it.

CLP (call logical processor) is the instruction by which the machine describes its PCI functions: Query PCI Function gives the
function type and the DMA range, Query PCI Function Group says whether new translations need a refresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from iommukit.device import DeviceKind, PciAddress
from iommukit.domain import UNBOUNDED, Domain, DomainType
from iommukit.errors import InputError, NotApplicable
from iommukit.machine.documents import validate_document
from iommukit.machine.model import DeviceSpec, Machine, Number, Strict
from iommukit.policy import Era
from iommukit.regions import RegionType, ReservedRegion
from iommukit_s390.firmware import CLP, ClpConfiguration

if TYPE_CHECKING:
    from iommukit.hw.bus import PciInstructions
    from iommukit.hw.fault import Fault
    from iommukit.hw.memory import PhysicalMemory

PAGE = 0x1000
SIZE_RT = 1 << 42
"""Bytes that a region-third table spans (``ZPCI_TABLE_SIZE_RT``)."""
SIZE_RS = 1 << 53
"""Bytes that a region-second table spans."""

DT_RS = 2 << 2
DT_RF = 3 << 2
"""How the kernel reads the designation-type mask: these are codes of the I/O translation anchor, used as bits."""

FUNCTION_KINDS = frozenset({DeviceKind.ZPCI, DeviceKind.ENDPOINT, DeviceKind.CONVENTIONAL, DeviceKind.INTEGRATED_ENDPOINT})
"""What a machine file may call a function; s390 shows no topology, so the words mean the same here."""


class FunctionAttributes(Strict):
    """What CLP answers for a function; the defaults are QEMU's for an emulated one."""

    tlb_refresh: bool = Field(True, description="new translations need RPCIT too: z/VM, KVM (CLP group: refresh)")
    pft: int = Field(0, ge=0, le=0xFF, description="PCI function type; 5 is ISM, which has no flush queue")
    rtr: bool = Field(False, description="relaxed translation: identity domains from 7.2 on")
    start_dma: Number = Field(0x1_0000_0000, description="first DMA address of a function (CLP: SDMA)")
    end_dma: Number = Field(0x1FF_FFFF_FFFF_FFFF, description="last DMA address of a function (CLP: EDMA)")
    dtsm: int = Field(0x40, ge=0, le=0xFF, description="designation types supported, a mask: chooses the table type in 7.2")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_dma < self.start_dma:
            raise ValueError(f"end_dma {self.end_dma:#x} lies before start_dma {self.start_dma:#x}")
        return self


class Hardware(FunctionAttributes):
    """The keys of a machine file's ``hardware``: the machine's, and the functions' unless a function has its own."""

    memory_size: Number = Field(512 << 20, description="bytes of memory; times s390_iommu_aperture it bounds the DMA range")


class Identified(FunctionAttributes):
    """A function's own attributes: what CLP answers, and the function id."""

    fid: int = Field(0, ge=0, le=0xFFFF_FFFF)


@dataclass(frozen=True, slots=True)
class StaticDomains:
    """The driver's two domains that are never allocated."""

    identity: Domain
    blocked: Domain

    @classmethod
    def fresh(cls) -> StaticDomains:
        """A pair for one running kernel."""
        return cls(Domain(DomainType.IDENTITY, static=True), Domain(DomainType.BLOCKED, static=True))


@dataclass(slots=True)
class Hardwired:
    """A function as the kernel uses it, where it runs on a platform."""

    instructions: PciInstructions
    memory: PhysicalMemory
    handle: int
    domain: Domain | None = None
    """The domain whose translation is registered; ``None`` while no request gets through."""


@dataclass(slots=True, eq=False)
class Function:
    """One function and its IOMMU (``struct zpci_dev``); addresses are bytes, inclusive.

    ``end_dma`` shrinks to what tables and aperture allow: when the function is found, or, in 7.2, when a paging domain is
    allocated.
    """

    name: str
    fid: int
    tlb_refresh: bool
    pft: int
    rtr: bool
    dtsm: int
    start_dma: int
    end_dma: int
    aperture: int
    """Bytes: memory times the aperture factor, or no limit."""
    domains: StaticDomains
    sdma: int
    edma: int
    """The range as CLP tells it."""
    vendor_id: int = 0
    device_id: int = 0
    siblings: list[Function] = field(default_factory=list, repr=False)
    """All functions of the machine, this one too: events of all come by one instruction."""
    hardware: Hardwired | None = None
    """``None``: the kernel decides policy and writes nothing."""
    faults: list[Fault] = field(default_factory=list)
    """What was read of the hardware's events and not yet asked for."""

    @property
    def size(self) -> int:
        """Bytes of the DMA range as 64-bit arithmetic has it."""
        return (self.end_dma - self.start_dma + 1) & UNBOUNDED

    def fit_region_third(self) -> None:
        """Align the range and cut it to one region-third table (``zpci_dma_init_device``, ``zpci_init_iommu``)."""
        self.start_dma = -(-self.start_dma // PAGE) * PAGE
        usable = min(self.aperture, (SIZE_RT - self.start_dma) & UNBOUNDED, self.size)
        self.end_dma = self.start_dma + usable - 1

    def table_for_domain(self) -> tuple[int, int]:
        """Choose the table of a paging domain and cut the range to it (7.2, ``s390_domain_alloc_paging``).

        Returns the first and last address that the table translates.
        """
        usable = min(self.aperture, self.size)
        if usable <= SIZE_RT - self.start_dma:
            last = SIZE_RT - 1
        elif usable <= SIZE_RS - self.start_dma and self.dtsm & DT_RS:
            last = SIZE_RS - 1
        elif self.dtsm & DT_RF:
            last = UNBOUNDED
        else:
            last = SIZE_RT - 1
            usable = SIZE_RT - self.start_dma
        self.end_dma = self.start_dma + usable - 1
        return 0, last

    def accepted(self, era: Era) -> bool:
        """Whether the driver takes the function (``s390_iommu_probe_device``); 6.1 does not look."""
        if era is Era.V6_1:
            return True
        in_table = era >= Era.V7_2 or self.start_dma < SIZE_RT
        return self.start_dma <= self.end_dma and in_table

    def reserved(self, attached: Domain | None, era: Era) -> list[ReservedRegion]:
        """What lies outside the range (``s390_iommu_get_resv_regions``); 6.1 reports nothing.

        In 7.2 the upper part is known only while a table is attached, since its type decides where addresses end.
        """
        if era is Era.V6_1:
            return []
        regions = []
        if self.start_dma:
            regions.append(ReservedRegion(0, self.start_dma - 1, RegionType.RESERVED))
        last = SIZE_RT - 1
        if era >= Era.V7_2:
            if attached is None or attached.type in (DomainType.BLOCKED, DomainType.IDENTITY):
                return regions
            last = attached.aperture[1]
        if self.end_dma < last:
            regions.append(ReservedRegion(self.end_dma + 1, last, RegionType.RESERVED))
        return regions


def find_functions(machine: Machine, *, factor: int, era: Era) -> list[Function]:
    """The functions of a machine in its order (``clp_scan_pci_devices``).

    A device's own attributes come first, then what its CLP configuration answers, then the machine's hardware options.
    ``factor`` is ``s390_iommu_aperture``, 0 for no limit.

    Raises ``NotApplicable`` for a machine with ports or bridges, ``InputError`` for an attribute that cannot be and for a
    device that the CLP configuration does not have.
    """
    configuration: ClpConfiguration | None = machine.firmware.get(CLP.signature)
    hardware = validate_document(Hardware, machine.hardware, text=None, source=f"{machine.source}: hardware")
    defaults = hardware.model_dump(exclude={"memory_size"})
    aperture = (hardware.memory_size * factor & UNBOUNDED) if factor else UNBOUNDED
    domains = StaticDomains.fresh()
    functions: list[Function] = []
    for spec in _function_specs(machine.devices):
        own = {key: value for key, value in spec.attributes.items() if key in Identified.model_fields}
        answers = clp_attributes(configuration, spec, machine.source) if configuration else {}
        known = {"fid": len(functions) + 1, **defaults, **answers, **own}
        source = f"{machine.source}: {spec.name}: attributes"
        facts = validate_document(Identified, known, text=None, source=source)
        vendor_id, device_id = (int(part, 16) for part in (spec.id or "0:0").split(":"))
        function = Function(
            name=spec.name,
            aperture=aperture,
            domains=domains,
            sdma=facts.start_dma,
            edma=facts.end_dma,
            vendor_id=vendor_id,
            device_id=device_id,
            siblings=functions,
            **facts.model_dump(),
        )
        if era < Era.V7_2:
            function.fit_region_third()
        functions.append(function)
    return functions


def _function_specs(devices: Sequence[DeviceSpec]) -> list[DeviceSpec]:
    found = []
    for spec in devices:
        if spec.kind is DeviceKind.PLATFORM:
            continue
        if spec.kind not in FUNCTION_KINDS or spec.parent is not None:
            raise NotApplicable("s390 shows functions, not bridges")
        if spec.reserved:
            raise NotApplicable(f"{spec.name}: s390's firmware reserves nothing but what lies outside a function's DMA range")
        found.append(spec)
    return found


def clp_attributes(configuration: ClpConfiguration, spec: DeviceSpec, source: str) -> dict[str, Any]:
    """What CLP answers for a device, which it knows by the attribute ``fid`` or by its PCI address.

    Raises ``InputError`` where the configuration has no such function.
    """
    fid = spec.attributes.get("fid")
    numbers = spec.pci_numbers()
    address = str(PciAddress(*numbers)) if numbers else None
    for function in configuration.functions:
        if function.fid == fid if fid is not None else configuration.pci_address(function) == address:
            break
    else:
        wanted = f"fid {fid}" if fid is not None else f"address {address}" if address else "neither fid nor address"
        raise InputError(f"the CLP configuration has no function for {wanted}", source=source, place=f"device {spec.name}")
    return {
        "fid": function.fid,
        "pft": function.pft,
        "start_dma": function.sdma,
        "end_dma": function.edma,
        "tlb_refresh": configuration.tlb_refresh(function),
        "rtr": configuration.relaxed_translation(function),
        "dtsm": configuration.group(function).dtsm,
    }
