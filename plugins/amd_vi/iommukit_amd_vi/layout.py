"""Registers and their fields, as far as the driver decides by them.

Names and sections are those of the AMD I/O Virtualization Technology (IOMMU) Specification, 48882.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """``width`` bits of a register from bit ``low``; ``name`` is the specification's."""

    name: str
    low: int
    width: int = 1

    @property
    def mask(self) -> int:
        """The field's bits in place."""
        return ((1 << self.width) - 1) << self.low

    def get(self, register: int) -> int:
        """The field's value."""
        return (register & self.mask) >> self.low

    def put(self, register: int, value: int) -> int:
        """The register with the field set to ``value``."""
        return register & ~self.mask | value << self.low & self.mask


# IOMMU Extended Feature Register (MMIO Offset 0030h).
PREF_SUP = Field("PreFSup", 0)
PPR_SUP = Field("PPRSup", 1)
XT_SUP = Field("XTSup", 2)
NX_SUP = Field("NXSup", 3)
GT_SUP = Field("GTSup", 4)
GAPPI_SUP = Field("GAPPISup", 5)
IA_SUP = Field("IASup", 6)
GA_SUP = Field("GASup", 7)
HE_SUP = Field("HESup", 8)
PC_SUP = Field("PCSup", 9)
HATS = Field("HATS", 10, 2)
GAM_SUP = Field("GAMSup", 21, 3)
SNP_SUP = Field("SNPSup", 43)
GIO_SUP = Field("GIoSup", 48)
HD_SUP = Field("HDSup", 52)

# Feature reporting of an IVHD of type 10h (5.2.2.1).
FEATURE_GA_SUP = Field("GASup", 6)

NO_HOST_TABLES = 3
"""``HATS``: no host page tables at all; 0, 1 and 2 mean up to 4, 5 and 6 levels."""

EMULATED_EFR = 0x29D3
"""What QEMU's ``amd-iommu`` has: PreF, PPR, GT, IA, GA, HE, host tables of up to 6 levels."""

# Ranges with special address controls: interrupts, and what HyperTransport keeps for itself.
MSI_WINDOW = (0xFEE0_0000, 0xFEEF_FFFF)
HT_WINDOW = (0xFD_0000_0000, 0xFF_FFFF_FFFF)

SOUTHBRIDGE_IOAPIC = 0x00A0
"""Requester id 00:14.0, where every AMD system has the I/O APIC that the system timer is wired to."""
