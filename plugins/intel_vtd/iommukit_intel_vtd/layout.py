"""Names of bits: registers, queue descriptors and fault reasons (VT-d specification 6.5.2, 7.1, 11.4).

What the driver writes and what the hardware model reads are found by these names; how a table entry is put together and how it is
taken apart is each side's own business.
"""

from __future__ import annotations

import enum

PAGE = 0x1000
PAGE_BITS = 12
INTERRUPT_WINDOW = (0xFEE0_0000, 0xFEEF_FFFF)
"""Writes here are interrupts, never translated (3.14)."""
REGISTERS = 0x1000
"""Bytes of registers at a unit's base; the fault records and IOTLB registers lie where CAP.FRO and ECAP.IRO say."""


class Reg(enum.IntEnum):
    """Register offsets in bytes (11.4.1)."""

    VER = 0x00
    CAP = 0x08
    ECAP = 0x10
    GCMD = 0x18
    GSTS = 0x1C
    RTADDR = 0x20
    CCMD = 0x28
    FSTS = 0x34
    FECTL = 0x38
    FEDATA = 0x3C
    FEADDR = 0x40
    FEUADDR = 0x44
    PMEN = 0x64
    PLMBASE = 0x68
    PLMLIMIT = 0x6C
    PHMBASE = 0x70
    PHMLIMIT = 0x78
    IQH = 0x80
    IQT = 0x88
    IQA = 0x90
    ICS = 0x9C
    IECTL = 0xA0
    IEDATA = 0xA4
    IEADDR = 0xA8
    IEUADDR = 0xAC
    IQERCD = 0xB0
    IRTA = 0xB8


class Gcmd:
    """Global commands, and at the same places of GSTS what has been done (11.4.4)."""

    TE = 1 << 31
    SRTP = 1 << 30
    WBF = 1 << 27
    QIE = 1 << 26
    IRE = 1 << 25
    SIRTP = 1 << 24
    CFI = 1 << 23


ONE_SHOT = Gcmd.SRTP | Gcmd.SIRTP | Gcmd.WBF
"""Commands that are done once, rather than a state that is kept: they are written as 0 with the next command."""


class Fsts:
    """Fault status (11.4.7.1)."""

    PFO = 1 << 0
    PPF = 1 << 1
    IQE = 1 << 4
    ICE = 1 << 5
    ITE = 1 << 6


FSTS_FRI = 8
"""FSTS, lowest bit of the index of the first pending record."""
FECTL_IM = 1 << 31
FECTL_IP = 1 << 30
ICS_IWC = 1 << 0
"""ICS: an invalidation wait descriptor with IF is done (11.4.9.4)."""
EVENT_IM, EVENT_IP = FECTL_IM, FECTL_IP
"""IECTL has them where FECTL has them: the event's interrupt is masked; it is held back (11.4.9.5)."""
FSTS_CLEARED_BY_ONE = Fsts.PFO | Fsts.IQE | Fsts.ICE | Fsts.ITE

TTM_LEGACY, TTM_SCALABLE, TTM_ABORT = 0, 1, 3
RTADDR_TTM = 10
"""RTADDR, lowest bit of the translation table mode (11.4.5)."""

IQA_DW = 1 << 11
"""Descriptors have 256 bits (11.4.9.3)."""
IQA_QS = 7
"""IQA, mask of the queue size: 2**QS pages."""


class Granularity(enum.IntEnum):
    """How much an IOTLB or context-cache invalidation takes (6.5.1, 6.5.2.1, 6.5.2.3)."""

    GLOBAL = 1
    DOMAIN = 2
    SELECTIVE = 3
    """One device of a domain, or pages of a domain."""


class PasidGranularity(enum.IntEnum):
    """How much a PASID-cache invalidation takes (6.5.2.2)."""

    DOMAIN = 0
    PASID = 1
    GLOBAL = 3


class PasidIotlbGranularity(enum.IntEnum):
    """How much a PASID-based IOTLB invalidation takes (6.5.2.4)."""

    PASID = 2
    PAGES = 3


class Descriptor(enum.IntEnum):
    """Types of invalidation descriptors (6.5.2)."""

    CONTEXT = 1
    IOTLB = 2
    DEVICE_TLB = 3
    INTERRUPT_ENTRY = 4
    WAIT = 5
    PASID_IOTLB = 6
    PASID_CACHE = 7
    PASID_DEVICE_TLB = 8


WAIT_IF, WAIT_SW, WAIT_FN, WAIT_PD = 1 << 4, 1 << 5, 1 << 6, 1 << 7
"""Invalidation wait: raise an interrupt, write the status, hold later descriptors back, drain page requests (6.5.2.8)."""
IOTLB_DW, IOTLB_DR = 1 << 6, 1 << 7
"""IOTLB invalidation: drain writes, drain reads."""
IH = 1 << 6
"""Upper half: only leaf entries have changed, paging-structure caches may stay."""

CCMD_ICC, CCMD_CIRG, CCMD_CAIG = 1 << 63, 61, 59
IOTLB_IVT, IOTLB_IIRG, IOTLB_IAIG, IOTLB_DID = 1 << 63, 60, 57, 32
"""Register-based invalidation (11.4.6): the command bit, and lowest bits of granularity asked, done, and of the domain id."""

RECORD = 16
"""Bytes of a fault record (11.4.7.6).  The rest are bits of its upper half."""
FRCD_F = 1 << 63
FRCD_READ = 1 << 62
FRCD_PASID, FRCD_PP, FRCD_REASON = 40, 1 << 31, 32


class Reason(enum.IntEnum):
    """Why a request was stopped (7.1.3): legacy mode below 0x30, scalable mode from there."""

    ROOT_ABSENT = 0x1
    CONTEXT_ABSENT = 0x2
    CONTEXT_INVALID = 0x3
    BEYOND_WIDTH = 0x4
    NO_WRITE = 0x5
    NO_READ = 0x6
    TABLE_ACCESS = 0x7
    ROOT_ACCESS = 0x8
    CONTEXT_ACCESS = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    ENTRY_RESERVED = 0xC
    INTERRUPT_RANGE = 0xE
    SM_NO_PASID_IN_LEGACY = 0x31
    SM_ROOT_ACCESS = 0x38
    SM_ROOT_ABSENT = 0x39
    SM_ROOT_RESERVED = 0x3A
    SM_CONTEXT_ACCESS = 0x40
    SM_CONTEXT_ABSENT = 0x41
    SM_CONTEXT_RESERVED = 0x42
    SM_CONTEXT_INVALID = 0x43
    SM_PASID_DISABLED = 0x45
    SM_PASID_TOO_LARGE = 0x46
    SM_RID_PASID = 0x48
    SM_DIRECTORY_ACCESS = 0x50
    SM_DIRECTORY_ABSENT = 0x51
    SM_DIRECTORY_RESERVED = 0x52
    SM_PASID_ACCESS = 0x58
    SM_PASID_ABSENT = 0x59
    SM_PASID_RESERVED = 0x5A
    SM_PASID_INVALID = 0x5B
    FS_ACCESS = 0x70
    FS_ABSENT = 0x71
    FS_RESERVED = 0x72
    FS_ROOT_ACCESS = 0x73
    SS_ACCESS = 0x78
    SS_RESERVED = 0x7A
    SS_ROOT_ACCESS = 0x7B
    FS_NOT_CANONICAL = 0x80
    FS_SUPERVISOR = 0x81
    SM_BEYOND_WIDTH = 0x84
    SM_NO_WRITE = 0x85
    SM_NO_READ = 0x86
    SM_INTERRUPT_RANGE = 0x87
    FS_ACCESSED_UNSNOOPED = 0x90


SCALABLE_REASONS = 0x30
"""Reasons from here on are those of scalable mode."""
