"""Bits of z/Architecture's PCI: table entries, the translation anchor, instruction blocks, status and event codes.

IBM has not published this part of the architecture.  The facts are those of its public users: ``pci_dma.h``, ``pci_insn.h``,
``pci_clp.h`` and ``pci_event.c`` of Linux (``arch/s390``), ``s390-pci-bus.h``, ``s390-pci-inst.h`` and ``s390-pci-clp.h`` of QEMU.
The tables follow dynamic address translation (Principles of Operation, chapter 3).  All words are big-endian; masks are of 64-bit
entries unless they say otherwise.  Constants are all that the driver and the hardware model have in common.
"""

from __future__ import annotations

import enum

# ---- region, segment and page tables (pci_dma.h; Principles of Operation, Region-Table, Segment-Table, Page-Table Entries) ----

PAGE_SHIFT = 12
SEGMENT_SHIFT = 20
REGION_THIRD_SHIFT = 31
REGION_SECOND_SHIFT = 42
REGION_FIRST_SHIFT = 53
PAGE_BITS = 8
"""A page table has 256 entries."""
TABLE_BITS = 11
"""Region and segment tables have 2048."""

TABLE_ORIGIN = 0xFFFF_FFFF_FFFF_F000
"""Region-table entry, and the anchor: where the next table lies."""
PAGE_TABLE_ORIGIN = 0xFFFF_FFFF_FFFF_F800
"""Segment-table entry."""
SEGMENT_FRAME = 0xFFFF_FFFF_FFF0_0000
"""Segment-table entry with FC: a frame of 1 MiB."""
PAGE_FRAME = 0xFFFF_FFFF_FFFF_F000

PROTECT = 0x200
"""P, at every level: the device may not write."""
FORMAT_CONTROL = 0x400
"""FC of a segment-table entry: it names a frame, not a page table."""
TABLE_OFFSET = 0xC0
"""TF of a region-table entry: how many quarters of the next table are missing at its start."""
INVALID = 0x20
"""I of a region- or segment-table entry."""
PAGE_INVALID = 0x400
"""I of a page-table entry."""
TABLE_TYPE = 0x0C
"""TT: which kind of table the entry lies in."""
TABLE_LENGTH = 0x03
"""TL of a region-table entry: the last quarter that the next table has."""


class TableType(enum.IntEnum):
    """Kinds of tables, as TT and as the anchor's designation type number them."""

    SEGMENT = 0
    REGION_THIRD = 1
    REGION_SECOND = 2
    REGION_FIRST = 3


SHIFT = {
    TableType.SEGMENT: SEGMENT_SHIFT,
    TableType.REGION_THIRD: REGION_THIRD_SHIFT,
    TableType.REGION_SECOND: REGION_SECOND_SHIFT,
    TableType.REGION_FIRST: REGION_FIRST_SHIFT,
}
"""How many address bits lie below each table's index."""

# ---- I/O translation anchor (pci_dma.h) ----

IOTA_ORIGIN = 0xFFFF_FFFF_FFFF_C000
"""Where a table of 16 KiB lies."""
IOTA_TRANSLATE = 0x800
"""T: translate; without it the function's DMA is relaxed and reaches memory as it is, if the group allows it (rtr)."""
IOTA_TYPE = 0x1C
IOTA_TYPE_SHIFT = 2
"""DT: a ``TableType``; above 3 frames are designated without any table."""

# ---- function handles (s390-pci-bus.h) ----

HANDLE_ENABLED = 1 << 31

# ---- instructions: condition codes, status codes, interruptions (pci_insn.h, s390-pci-inst.h) ----

CC_DONE, CC_ERROR, CC_BUSY, CC_HANDLE = 0, 1, 2, 3
"""Done; an error that the status tells; busy: once more; the handle names no enabled function."""

OPERAND_EXCEPTION = 0x15
"""Program interruption: an operand that cannot be."""

CONFIGURATION_SPACE = 15
"""PCILG and PCISTG: the address space of the function's configuration."""


class Status(enum.IntEnum):
    """The status byte of an instruction that ends with condition code 1."""

    NOT_ENABLED = 4
    IN_ERROR = 8
    BLOCKED = 12
    RESOURCES = 16
    """RPCIT: the hypervisor cannot shadow any more."""
    ADDRESS_SPACE = 20
    SEQUENCE = 24
    DMA_ADDRESS_SPACE = 28
    RECOVERY = 40


class Control(enum.IntEnum):
    """Operation controls of Modify PCI Function Controls."""

    REGISTER_INTERRUPTIONS = 2
    DEREGISTER_INTERRUPTIONS = 3
    REGISTER_TRANSLATION = 4
    DEREGISTER_TRANSLATION = 5
    REREGISTER_TRANSLATION = 6
    RESET_ERROR = 7
    RESET_BLOCK = 9
    SET_MEASUREMENT = 10


# ---- function information block, 80 bytes (struct zpci_fib) ----

FIB_SIZE = 80
FIB_FORMAT = 0
FIB_BASE, FIB_LIMIT, FIB_IOTA, FIB_MEASUREMENT = 16, 24, 32, 64
"""Offsets: PBA and PAL (first and last address), the anchor, the measurement block."""
MEASUREMENT_KEY = 0xF
"""Bits of the measurement block's address that have to be zero."""

# ---- Call Logical Processor (clp.h, pci_clp.h): offsets into requests and responses ----


class Command(enum.IntEnum):
    """Commands of CLP."""

    LIST = 2
    QUERY_FUNCTION = 3
    QUERY_GROUP = 4
    SET_FUNCTION = 5


CLP_REQUEST = 32
"""The size of every request (bytes)."""
CLP_HEADER = 16
CLP_ARGUMENT = 16
"""Where a request has its handle, group or resume token, and where a response begins after its header."""
REQUEST_GROUP, REQUEST_OPERATION, REQUEST_SPACES = 19, 22, 23
SET_ENABLE, SET_DISABLE = 0, 1

LIST_TOKEN, LIST_MOST, LIST_FLAGS, LIST_ENTRY_SIZE, LIST_ENTRIES = 16, 28, 30, 31, 32
LIST_ENTRY = 16
"""Device id, vendor id (16 bits each), configuration state, function id, handle (32 bits each)."""
CONFIGURED = 1 << 31

FUNCTION_GROUP, FUNCTION_ID, FUNCTION_TYPE, FUNCTION_SDMA, FUNCTION_EDMA = 19, 20, 63, 64, 72
GROUP_FLAGS, GROUP_STORE_BLOCK, GROUP_INTERVAL, GROUP_TYPES, GROUP_MASK, GROUP_MSI = 19, 20, 22, 24, 32, 40
GROUP_INTERRUPTIONS = 16
GROUP_REFRESH, GROUP_FRAME, GROUP_RELAXED = 0x01, 0x02, 0x20
"""Flags of a group: new translations need RPCIT; frames larger than a page; translation may be relaxed."""

DTSM_BIT = 0x80
"""Designation types supported, a mask from the left: ``DTSM_BIT >> type``."""


class Response(enum.IntEnum):
    """Response codes of CLP."""

    OK = 0x0010
    COMMAND = 0x0020
    FORMAT = 0x0040
    LENGTH = 0x0050
    ROOM = 0x0060
    """The response block is too short for the command."""
    RESERVED = 0x0070
    HANDLE = 0x0101
    OPERATION = 0x0102
    DMA_SPACES = 0x0103
    RESOURCES = 0x0104
    ERROR_STATE = 0x0106
    TOKEN = 0x010A
    GROUP = 0x010B


# ---- events: CHSC Store Event Information, notification type 2 (css.h, pci_event.c) ----

SEI_HEADER = 64
SEI_TYPE, SEI_CONTENT = 7, 11
CONTENT_ERROR, CONTENT_AVAILABILITY = 1, 2
CCDF_SIZE = 32
CCDF_HANDLE, CCDF_FUNCTION, CCDF_QUALIFIER, CCDF_ADDRESS, CCDF_CODE = 4, 8, 12, 16, 30
"""Offsets into an error event: handle, function id, qualifying bits (32 each), the address (64), the event code (16)."""
QUALIFIED, QUALIFIER_WRITE = 0x2, 0x1
"""Of the qualifying bits: whether the direction is told, and that the request was a write."""


class EventCode(enum.IntEnum):
    """PCI event codes (PEC) of errors; the function is in the error state after each but those of measurement."""

    ADDRESS_SPACE = 0x01
    """No translation is registered for the function's requests."""
    OUT_OF_RANGE = 0x02
    """Below PBA, above PAL, or beyond what the tables can hold."""
    DESIGNATION = 0x03
    """The anchor designates what cannot be."""
    TRANSLATION = 0x04
    """An invalid entry, an entry that was never refreshed, or a write to a protected page."""
    TABLE_ENTRY = 0x07
    """An entry that cannot be."""
    TABLE_LENGTH = 0x08
    """An index outside the table's offset and length."""
    TABLE_TYPE = 0x09
    """An entry of another kind of table."""
    MEASUREMENT = 0x2C
    """The measurement block cannot lie there."""
