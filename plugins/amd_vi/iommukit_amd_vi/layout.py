"""Registers, table entries, commands and events: where each bit is.

Names and sections are those of the AMD I/O Virtualization Technology (IOMMU) Specification, 48882.  The hardware model and the
driver share these names and nothing else.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Field:
    """``width`` bits of a register from bit ``low``; ``name`` is the specification's."""

    name: str
    low: int
    width: int = 1
    mask: int = field(init=False)
    """The field's bits in place."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", ((1 << self.width) - 1) << self.low)

    def get(self, register: int) -> int:
        """The field's value."""
        return (register & self.mask) >> self.low

    def put(self, register: int, value: int) -> int:
        """The register with the field set to ``value``."""
        return register & ~self.mask | value << self.low & self.mask

    def of(self, value: int) -> int:
        """A register with nothing but this field."""
        return value << self.low & self.mask


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
GLX_SUP = Field("GLXSup", 14, 2)
GAM_SUP = Field("GAMSup", 21, 3)
SNP_SUP = Field("SNPSup", 43)
GIO_SUP = Field("GIoSup", 48)
HD_SUP = Field("HDSup", 52)

# The second Extended Feature Register (MMIO Offset 01A0h).
HT_RANGE_IGNORE = Field("HtRangeIgnore", 11)

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

DEFAULT_BASE = 0xFED8_0000
"""Where the registers of an IOMMU are that no table describes: QEMU's place."""

REGISTERS_SIZE = 0x4000
"""Bytes of registers that an IOMMU without performance counters answers for (5.2.2.1)."""

PHYSICAL_BITS = 52
"""Width of every physical address in registers, tables and commands."""


class Register(enum.IntEnum):
    """Offsets of MMIO registers (3.4)."""

    DEVICE_TABLE_BASE = 0x0000
    COMMAND_BUFFER_BASE = 0x0008
    EVENT_LOG_BASE = 0x0010
    CONTROL = 0x0018
    EXCLUSION_BASE = 0x0020
    EXCLUSION_LIMIT = 0x0028
    EXTENDED_FEATURE = 0x0030
    EXTENDED_FEATURE_2 = 0x01A0
    COMMAND_HEAD = 0x2000
    COMMAND_TAIL = 0x2008
    EVENT_HEAD = 0x2010
    EVENT_TAIL = 0x2018
    STATUS = 0x2020


BASE_ADDRESS = Field("Base", 12, 40)
"""Bits 51:12 of every base register."""

# Device Table Base Address Register (MMIO Offset 0000h).
TABLE_SIZE = Field("Size", 0, 9)
"""Length of the device table in pages of 4 KiB, less one."""

# Command Buffer and Event Log Base Address Registers (MMIO Offset 0008h, 0010h): length as the power of two of entries.
RING_LENGTH = Field("Length", 56, 4)
RING_LENGTH_MIN = 8

# Head and tail registers (MMIO Offset 2000h to 2018h): an offset in bytes, of entries of 16 bytes.
RING_POINTER = Field("Ptr", 4, 15)
RING_ENTRY = 16

# Control Register (MMIO Offset 0018h).
IOMMU_EN = Field("IommuEn", 0)
EVENT_LOG_EN = Field("EventLogEn", 2)
EVENT_INT_EN = Field("EventIntEn", 3)
COHERENT = Field("Coherent", 10)
CMD_BUF_EN = Field("CmdBufEn", 12)
GT_EN = Field("GTEn", 16)

# Exclusion Base Register (MMIO Offset 0020h).
EXCLUSION_EN = Field("ExEn", 0)
EXCLUSION_ALLOW = Field("Allow", 1)

# Status Register (MMIO Offset 2020h); the first three are cleared by writing 1.
EVENT_OVERFLOW = Field("EventOverflow", 0)
EVENT_LOG_INT = Field("EventLogInt", 1)
COM_WAIT_INT = Field("ComWaitInt", 2)
EVENT_LOG_RUN = Field("EventLogRun", 3)
CMD_BUF_RUN = Field("CmdBufRun", 4)

# Device table entry (2.2.2.1): 256 bits, one number here.
DTE_SIZE = 32
DTE_V = Field("V", 0)
DTE_TV = Field("TV", 1)
DTE_HAD = Field("HAD", 7, 2)
DTE_MODE = Field("Mode", 9, 3)
DTE_HOST_ROOT = Field("HostPageTableRootPtr", 12, 40)
DTE_PPR = Field("PPR", 52)
DTE_GPRP = Field("GPRP", 53)
DTE_GIOV = Field("GIoV", 54)
DTE_GV = Field("GV", 55)
DTE_GLX = Field("GLX", 56, 2)
DTE_GCR3_14_12 = Field("GCR3TRP[14:12]", 58, 3)
DTE_IR = Field("IR", 61)
DTE_IW = Field("IW", 62)
DTE_DOMAIN = Field("DomainID", 64, 16)
DTE_GCR3_30_15 = Field("GCR3TRP[30:15]", 80, 16)
DTE_IOTLB = Field("I", 96)
DTE_SE = Field("SE", 97)
DTE_SA = Field("SA", 98)
DTE_EX = Field("EX", 103)
DTE_GCR3_51_31 = Field("GCR3TRP[51:31]", 107, 21)
DTE_IV = Field("IV", 128)
DTE_GUEST_PAGING_MODE = Field("GuestPagingMode", 182, 2)
DTE_ATTR_V = Field("AttrV", 246)

DTE_RESERVED = Field("reserved", 2, 5).mask | Field("reserved", 63).mask
"""Bits that must be zero in a valid entry, whatever the features."""

# Entry of a host page table (2.2.3): a directory entry and a translation differ by NextLevel.
PTE_PR = Field("PR", 0)
PTE_NEXT_LEVEL = Field("NextLevel", 9, 3)
PTE_ADDRESS = Field("Address", 12, 40)
PTE_RESERVED = Field("reserved", 52, 7)
PTE_U = Field("U", 59)
PTE_FC = Field("FC", 60)
PTE_IR = Field("IR", 61)
PTE_IW = Field("IW", 62)
NEXT_LEVEL_SIZED = 7
"""``NextLevel`` of a translation whose page size is coded in its address: the lowest zero from bit 12 on, at bit n, makes it
2^(n+1)."""

# Entry of a GCR3 table (2.2.6.3).
GCR3_V = Field("V", 0)
GCR3_ADDRESS = Field("Address", 12, 40)

# Entry of a guest page table (2.2.6.5): the processor's long-mode format.
GUEST_P = Field("P", 0)
GUEST_RW = Field("R/W", 1)
GUEST_US = Field("U/S", 2)
GUEST_A = Field("A", 5)
GUEST_D = Field("D", 6)
GUEST_PS = Field("PS", 7)
GUEST_ADDRESS = Field("Address", 12, 40)
GUEST_NX = Field("NX", 63)


class Command(enum.IntEnum):
    """Operation codes of commands (2.4): bits 63:60 of the first of two words."""

    COMPLETION_WAIT = 0x1
    INVALIDATE_DEVTAB_ENTRY = 0x2
    INVALIDATE_IOMMU_PAGES = 0x3
    INVALIDATE_IOTLB_PAGES = 0x4
    INVALIDATE_INTERRUPT_TABLE = 0x5
    PREFETCH_IOMMU_PAGES = 0x6
    COMPLETE_PPR_REQUEST = 0x7
    INVALIDATE_IOMMU_ALL = 0x8


# Fields of commands.  The first word:
OPCODE = Field("Opcode", 60, 4)
WAIT_STORE = Field("S", 0)
WAIT_INTERRUPT = Field("I", 1)
WAIT_FLUSH = Field("F", 2)
WAIT_ADDRESS = Field("Store Address", 3, 49)
COMMAND_DEVICE = Field("DeviceID", 0, 16)
COMMAND_PASID = Field("PASID", 0, 20)
COMMAND_DOMAIN = Field("DomainID", 32, 16)
# and the second:
PAGES_S = Field("S", 0)
PAGES_PDE = Field("PDE", 1)
PAGES_GN = Field("GN", 2)
PAGES_ADDRESS = Field("Address", 12, 52)
ALL_PAGES = 0x7FFF_FFFF_FFFF_F000
"""With S, an address that stands for all addresses."""


class Event(enum.IntEnum):
    """Codes of events (2.5): bits 63:60 of the first of two words."""

    ILLEGAL_DEV_TABLE_ENTRY = 0x1
    IO_PAGE_FAULT = 0x2
    DEV_TAB_HARDWARE_ERROR = 0x3
    PAGE_TAB_HARDWARE_ERROR = 0x4
    ILLEGAL_COMMAND_ERROR = 0x5
    COMMAND_HARDWARE_ERROR = 0x6


# Fields of an event's first word (2.5.3); the second is the address.
EVENT_CODE = Field("EventCode", 60, 4)
EVENT_DEVICE = Field("DeviceID", 0, 16)
EVENT_PASID_HIGH = Field("PASID[19:16]", 16, 4)
EVENT_DOMAIN = Field("DomainID or PASID[15:0]", 32, 16)
EVENT_GN = Field("GN", 48)
EVENT_US = Field("US", 50)
EVENT_I = Field("I", 51)
EVENT_PR = Field("PR", 52)
EVENT_RW = Field("RW", 53)
EVENT_PE = Field("PE", 54)
EVENT_RZ = Field("RZ", 55)
EVENT_TR = Field("TR", 56)
