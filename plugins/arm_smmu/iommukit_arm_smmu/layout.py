"""The bits of SMMUv3 (IHI 0070) and of its table descriptors (DDI 0487, the Arm architecture reference manual).

Only positions and numbers: what the hardware does with them is in ``unit.py`` and its neighbours, what the driver writes in
``commands.py``, ``entries.py`` and ``tables.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """``width`` bits of a word, from bit ``low`` on."""

    low: int
    width: int = 1

    @property
    def mask(self) -> int:
        """The field's bits in their place."""
        return ((1 << self.width) - 1) << self.low

    def of(self, word: int) -> int:
        """The field's value in a word."""
        return word >> self.low & ((1 << self.width) - 1)

    def put(self, value: int) -> int:
        """A word with the field set and all else zero; ``value`` must fit."""
        if value >> self.width:
            raise ValueError(f"{value:#x} does not fit {self.width} bits")
        return value << self.low


# ---- registers (6.1, 6.3) --------------------------------------------------------------------------------------------

REGISTERS_SIZE = 0x2_0000
"""Two pages of 64 KiB (6.1)."""
PAGE_1 = 0x1_0000
"""The second page, which has the event queue's indices (6.2)."""

IDR0, IDR1, IDR2, IDR3, IDR4, IDR5 = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14
IIDR, AIDR = 0x18, 0x1C
CR0, CR0ACK, CR1, CR2 = 0x20, 0x24, 0x28, 0x2C
STATUSR, GBPA, AGBPA = 0x40, 0x44, 0x48
IRQ_CTRL, IRQ_CTRLACK = 0x50, 0x54
GERROR, GERRORN = 0x60, 0x64
GERROR_IRQ_CFG0 = 0x68
STRTAB_BASE, STRTAB_BASE_CFG = 0x80, 0x88
CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0xA8, 0xAC
EVENTQ_IRQ_CFG0 = 0xB0

# IDR0 (6.3.1)
IDR0_S2P, IDR0_S1P = Field(0), Field(1)
IDR0_TTF = Field(2, 2)
TTF_AARCH64 = 0b10
IDR0_COHACC = Field(4)
IDR0_HTTU = Field(6, 2)
IDR0_HYP = Field(9)
IDR0_ATS = Field(10)
IDR0_ASID16 = Field(12)
IDR0_PRI = Field(16)
IDR0_VMID16 = Field(18)
IDR0_TTENDIAN = Field(21, 2)
TTENDIAN_LITTLE = 0b10
IDR0_STALL_MODEL = Field(24, 2)
STALL_NONE = 0b01
IDR0_TERM_MODEL = Field(26)
IDR0_ST_LEVEL = Field(27, 2)
TWO_LEVELS = 0b01
# IDR1 (6.3.2)
IDR1_SIDSIZE, IDR1_SSIDSIZE = Field(0, 6), Field(6, 5)
IDR1_EVENTQS, IDR1_CMDQS = Field(16, 5), Field(21, 5)
# IDR3 (6.3.4)
IDR3_HAD, IDR3_RIL, IDR3_BBML = Field(2), Field(10), Field(11, 2)
# IDR5 (6.3.6)
IDR5_OAS = Field(0, 3)
IDR5_GRANULES = {"4K": Field(4), "16K": Field(5), "64K": Field(6)}
IDR5_VAX = Field(10, 2)
ADDRESS_SIZES = (32, 36, 40, 42, 44, 48, 52)
"""Bits of the sizes that OAS, IPS and S2PS number (6.3.6, 5.4, 5.2)."""

# CR0 and CR0ACK (6.3.9)
CR0_SMMUEN, CR0_EVENTQEN, CR0_CMDQEN = Field(0), Field(2), Field(3)
CR0_KNOWN = 0x1DF
# CR1 (6.3.11): how tables and queues are read: inner shareable, write-back
CR1_WRITE_BACK = 0xD75
# CR2 (6.3.12)
CR2_E2H, CR2_RECINVSID, CR2_PTM = Field(0), Field(1), Field(2)
# GBPA (6.3.14)
GBPA_ABORT, GBPA_UPDATE = Field(20), Field(31)
# GERROR and GERRORN (6.3.17)
GERROR_CMDQ, GERROR_EVENTQ_ABT = Field(0), Field(2)
# IRQ_CTRL (6.3.15)
IRQ_GERROR, IRQ_EVENTQ = Field(0), Field(2)

# STRTAB_BASE, STRTAB_BASE_CFG (6.3.23, 6.3.24)
BASE_ADDRESS = ((1 << 52) - 1) & ~0x3F
BASE_RA = Field(62)
STRTAB_LOG2SIZE, STRTAB_SPLIT, STRTAB_FMT = Field(0, 6), Field(6, 5), Field(16, 2)
FMT_LINEAR, FMT_TWO_LEVEL = 0b00, 0b01
SPLITS = (6, 8, 10)
# the queues (6.3.25 to 6.3.31; 3.5.1)
QUEUE_ADDRESS = ((1 << 52) - 1) & ~0x1F
QUEUE_LOG2SIZE = Field(0, 5)
QUEUE_BITS = 19
"""Log2 of the most entries that a queue has here (IDR1.CMDQS, IDR1.EVENTQS); a larger LOG2SIZE means this."""
QUEUE_RWA = Field(62)
CMDQ_ERR = Field(24, 7)
EVENTQ_OVERFLOW = Field(31)
"""OVFLG in PROD, OVACKFLG in CONS."""
CERROR_NONE, CERROR_ILL, CERROR_ABT = 0, 1, 2

# ---- the stream table (5.1, 5.2) -------------------------------------------------------------------------------------

L1STD_SIZE = 8
L1STD_SPAN, L1STD_L2PTR = Field(0, 5), ((1 << 52) - 1) & ~0x3F
STE_SIZE, STE_WORDS = 64, 8
# word 0
STE_V, STE_CONFIG = Field(0), Field(1, 3)
CONFIG_ABORT, CONFIG_BYPASS, CONFIG_S1, CONFIG_S2, CONFIG_NESTED = 0b000, 0b100, 0b101, 0b110, 0b111
STE_S1FMT, STE_S1CDMAX = Field(4, 2), Field(59, 5)
STE_S1CONTEXTPTR = ((1 << 52) - 1) & ~0x3F
# word 1
STE_S1DSS, STE_S1CIR, STE_S1COR, STE_S1CSH = Field(0, 2), Field(2, 2), Field(4, 2), Field(6, 2)
S1DSS_TERMINATE, S1DSS_BYPASS, S1DSS_SUBSTREAM_0 = 0b00, 0b01, 0b10
STE_MEV, STE_S1STALLD, STE_EATS, STE_STRW = Field(19), Field(27), Field(28, 2), Field(30, 2)
STE_SHCFG = Field(44, 2)
SHCFG_INCOMING = 0b01
# word 2
STE_S2VMID = Field(0, 16)
STE_S2T0SZ, STE_S2SL0 = Field(32, 6), Field(38, 2)
STE_S2IR0, STE_S2OR0, STE_S2SH0 = Field(40, 2), Field(42, 2), Field(44, 2)
STE_S2TG, STE_S2PS = Field(46, 2), Field(48, 3)
STE_S2AA64, STE_S2ENDI, STE_S2AFFD, STE_S2PTW = Field(51), Field(52), Field(53), Field(54)
STE_S2HD, STE_S2HA, STE_S2S, STE_S2R = Field(55), Field(56), Field(57), Field(58)
# word 3
STE_S2TTB = ((1 << 52) - 1) & ~0xF

# ---- context descriptors (5.4) ---------------------------------------------------------------------------------------

CD_SIZE, CD_WORDS = 64, 8
# word 0; the second of a pair is for TTB1
CD_TSZ, CD_TG = (Field(0, 6), Field(16, 6)), (Field(6, 2), Field(22, 2))
CD_IR, CD_OR, CD_SH = (Field(8, 2), Field(24, 2)), (Field(10, 2), Field(26, 2)), (Field(12, 2), Field(28, 2))
CD_EPD = (Field(14), Field(30))
CD_ENDI, CD_V, CD_IPS, CD_AFFD = Field(15), Field(31), Field(32, 3), Field(35)
CD_AA64, CD_HD, CD_HA = Field(41), Field(42), Field(43)
CD_S, CD_R, CD_A, CD_ASET, CD_ASID = Field(44), Field(45), Field(46), Field(47), Field(48, 16)
# words 1 and 2
CD_HAD = Field(1)
CD_TTB = ((1 << 52) - 1) & ~0xF
# word 3: MAIR

TG0 = {0b00: 12, 0b10: 14, 0b01: 16}
"""Granule sizes (log2 of bytes) by CD.TG0 and STE.S2TG (5.4)."""
TG1 = {0b10: 12, 0b01: 14, 0b11: 16}
"""The same by CD.TG1."""
INNER_SHAREABLE = 0b11
WRITE_BACK = 0b01

# ---- commands (4) ----------------------------------------------------------------------------------------------------

COMMAND_SIZE = 16
OPCODE = Field(0, 8)
PREFETCH_CONFIG, PREFETCH_ADDR = 0x01, 0x02
CFGI_STE, CFGI_STE_RANGE, CFGI_CD, CFGI_CD_ALL = 0x03, 0x04, 0x05, 0x06
TLBI_NH_ALL, TLBI_NH_ASID, TLBI_NH_VA, TLBI_NH_VAA = 0x10, 0x11, 0x12, 0x13
TLBI_EL3_ALL, TLBI_EL3_VA = 0x18, 0x1A
TLBI_EL2_ALL, TLBI_EL2_ASID, TLBI_EL2_VA, TLBI_EL2_VAA = 0x20, 0x21, 0x22, 0x23
TLBI_S12_VMALL, TLBI_S2_IPA, TLBI_NSNH_ALL = 0x28, 0x2A, 0x30
ATC_INV, PRI_RESP, RESUME, STALL_TERM, SYNC = 0x40, 0x41, 0x44, 0x45, 0x46
# word 0 of CFGI, PREFETCH and ATC commands (4.2, 4.3)
COMMAND_SSEC, COMMAND_SSV, COMMAND_SSID, COMMAND_SID = Field(10), Field(11), Field(12, 20), Field(32, 32)
# word 1
CFGI_LEAF, CFGI_RANGE = Field(0), Field(0, 5)
CFGI_RANGE_ALL = 31
# TLBI (4.4): word 0
TLBI_NUM, TLBI_SCALE, TLBI_VMID, TLBI_ASID = Field(12, 5), Field(20, 5), Field(32, 16), Field(48, 16)
# word 1
TLBI_LEAF, TLBI_TTL, TLBI_TG = Field(0), Field(8, 2), Field(10, 2)
TLBI_ADDRESS = ((1 << 64) - 1) & ~0xFFF
# CMD_SYNC (4.7.3)
SYNC_CS = Field(12, 2)
SYNC_NONE, SYNC_IRQ, SYNC_SEV = 0b00, 0b01, 0b10

# ---- events (7.3) ----------------------------------------------------------------------------------------------------

EVENT_SIZE = 32
C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE, F_STREAM_DISABLED = 0x02, 0x03, 0x04, 0x06
C_BAD_SUBSTREAMID, F_CD_FETCH, C_BAD_CD, F_WALK_EABT = 0x08, 0x09, 0x0A, 0x0B
F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION = 0x10, 0x11, 0x12, 0x13
# word 0
EVENT_TYPE, EVENT_SSV, EVENT_SSID, EVENT_SID = Field(0, 8), Field(11), Field(12, 20), Field(32, 32)
# word 1
EVENT_READ, EVENT_S2, EVENT_CLASS = Field(35), Field(39), Field(40, 2)
CLASS_CD, CLASS_TABLE, CLASS_INPUT = 0b00, 0b01, 0b10
# word 2 is the input address; word 3 the address that a fetch or a walk wanted, or the intermediate address
EVENT_ADDRESS = ((1 << 52) - 1) & ~0x7
EVENT_IPA = ((1 << 52) - 1) & ~0xFFF

# ---- table descriptors (DDI 0487 D8.3) -------------------------------------------------------------------------------

PTE_VALID, PTE_TABLE = Field(0), Field(1)
"""Bit 1 is set in a table descriptor and, at level 3, in a page descriptor; a block has it clear."""
PTE_ATTRINDX, PTE_AP, PTE_SH, PTE_AF, PTE_NG = Field(2, 3), Field(6, 2), Field(8, 2), Field(10), Field(11)
PTE_PXN, PTE_XN = Field(53), Field(54)
AP_UNPRIVILEGED, AP_READ_ONLY = 0b01, 0b10
OUTER_SHAREABLE = 0b10
TABLE_AP = Field(61, 2)
"""APTable: 0b01 takes unprivileged access away, 0b10 writing, for all below (D8.4.3)."""
S2_MEMATTR, S2_AP = Field(2, 4), Field(6, 2)
S2AP_READ, S2AP_WRITE = 0b01, 0b10
PTE_ADDRESS = (1 << 48) - 1
"""Output and table addresses, down to the granule."""
PTE_HIGH_ADDRESS = Field(12, 4)
"""Address bits 51 to 48, with 64 KiB granules and 52-bit addresses (D8.3.1)."""
