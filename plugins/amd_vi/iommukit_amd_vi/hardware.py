"""What a machine file says of the IOMMU: the keys of ``hardware``, by the specification's names.

Where a machine carries an IVRS table, these keys say what the table does not: registers.  Where it carries none, they
describe an IOMMU like QEMU's, but without its cache of absent entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field as Key
from pydantic import StrictBool

from iommukit.errors import InputError
from iommukit.machine.documents import validate_document
from iommukit.machine.model import Machine, Number, Strict
from iommukit_amd_vi.layout import GIO_SUP, GT_SUP, HATS, HD_SUP, PPR_SUP, SNP_SUP, Field

OPTIONS: dict[str, str] = {
    "np_cache": "NpCache of the capability header: the IOMMU caches absent entries, as emulated ones do",
    "efr": "the Extended Feature Register as a number",
    "efr2": "the second Extended Feature Register as a number",
    "ppr": "EFR PPRSup: peripheral page requests",
    "guest_translation": "EFR GTSup: guest page tables, so that devices can have PASIDs",
    "gio_sup": "EFR GIoSup: guest page tables for requests without a PASID (page-table format 2 of the DMA API)",
    "hats": "EFR HATS: host page tables of up to 4 (0), 5 (1) or 6 (2) levels, or none (3)",
    "hd_sup": "EFR HDSup: the hardware sets dirty bits in host page tables",
    "snp": "EFR SNPSup, on a host that runs with SEV-SNP",
    "efr_sup": "IVinfo EFRSup: the firmware table carries the EFR (without a table: true as soon as a feature is named)",
    "dma_remap": "IVinfo DmaRemapSup: firmware protected memory from DMA before the kernel started",
    "interrupt_remapping": "the firmware table lists the south bridge's I/O APIC, without which interrupts are not remapped",
    "irt_cache_dis": "the IRTCacheDis control bit can be set",
    "translation_pre_enabled": "the IOMMUs translate already: a kdump kernel after a crash",
    "units": "a list with efr, efr2 or np_cache for each IOMMU, in the order of the firmware table",
}
"""The keys, each with one line."""

VARIANTS: dict[str, Mapping[str, Any]] = {"no NpCache": {"np_cache": False}}
"""Hardware unlike QEMU's, on which the driver invalidates otherwise."""


class UnitHardware(Strict):
    """Registers of one IOMMU."""

    efr: Number | None = None
    efr2: Number | None = None
    np_cache: StrictBool | None = None


class Hardware(Strict):
    """``hardware`` of a machine; ``None`` where nothing is said."""

    np_cache: StrictBool = False
    efr: Number | None = None
    efr2: Number = 0
    ppr: StrictBool | None = None
    guest_translation: StrictBool | None = None
    gio_sup: StrictBool | None = None
    hats: Annotated[int, Key(ge=0, le=3)] | None = None
    hd_sup: StrictBool | None = None
    snp: StrictBool = False
    efr_sup: StrictBool | None = None
    dma_remap: StrictBool | None = None
    interrupt_remapping: StrictBool | None = None
    irt_cache_dis: StrictBool = True
    translation_pre_enabled: StrictBool = False
    units: tuple[UnitHardware, ...] = ()

    def unit(self, index: int) -> UnitHardware:
        """What is said of one IOMMU in particular."""
        return self.units[index] if index < len(self.units) else UnitHardware()

    def _named(self) -> list[tuple[Field, int]]:
        fields = (
            (PPR_SUP, self.ppr),
            (GT_SUP, self.guest_translation),
            (GIO_SUP, self.gio_sup),
            (HATS, self.hats),
            (HD_SUP, self.hd_sup),
            (SNP_SUP, self.snp or None),
        )
        return [(field, int(value)) for field, value in fields if value is not None]

    def features(self, register: int) -> int:
        """An EFR with the features put in that are named one by one."""
        for field, value in self._named():
            register = field.put(register, value)
        return register

    @property
    def names_features(self) -> bool:
        """Whether anything is said of the EFR."""
        return self.efr is not None or bool(self._named())


def read_hardware(machine: Machine) -> Hardware:
    """The machine's ``hardware``.  Raises ``InputError`` for a value that cannot be."""
    if not machine.hardware:
        return _NOTHING
    return validate_document(Hardware, dict(machine.hardware), text=None, source=f"{machine.source}, hardware")


def check_units(hardware: Hardware, found: int, machine: Machine) -> None:
    """Raise ``InputError`` where more IOMMUs are described than the machine has."""
    if len(hardware.units) > found:
        message = f"{len(hardware.units)} IOMMUs are described, the machine has {found}"
        raise InputError(message, source=f"{machine.source}, hardware", place="units")


_NOTHING = Hardware()
