"""The reference unit's registers, device table, commands and page-table entries: what hardware and driver share.

Numbers only: how they are used is written twice, in ``reference_unit.py`` for the hardware and in ``reference_tables.py`` for the
driver, so that a mistake in one does not agree with itself.
"""

from __future__ import annotations

BASE = 0xFED0_0000
"""Where the registers are (physical address)."""
SIZE = 0x1000

# ---- registers: offsets, 8 bytes each ---------------------------------------------------------------------------------

ROOT = 0x00
"""The device table's address; bit 0: requests are translated."""
QUEUE = 0x08
"""The command queue's address."""
TAIL = 0x10
"""The doorbell: writing the offset behind the last command lets the unit work up to there."""
FAULT_ADDRESS = 0x18
"""The I/O virtual address of the oldest fault."""
FAULT = 0x20
"""The oldest fault.  Writing anything drops it."""

TRANSLATE = 1

FAULT_PENDING = 1 << 63
FAULT_LOST = 1 << 62
"""Further faults came when there was no room."""
FAULT_WRITE = 1 << 16
FAULT_REASON_SHIFT = 24
FAULT_ROOM = 8
"""Faults that the unit holds."""

NO_ENTRY, OUT_OF_RANGE, ABSENT, NOT_ALLOWED = 1, 2, 3, 4
"""Reasons."""

# ---- the device table: a word for each requester id ------------------------------------------------------------------

DEVICES = 1 << 16
ENTRY_VALID = 1
ENTRY_PASS = 2
"""Requests go through as they are."""
ENTRY_TABLE = 0x0000_FFFF_FFFF_F000
"""The root of the page tables."""
ENTRY_DOMAIN_SHIFT = 48

# ---- commands: two words each ----------------------------------------------------------------------------------------

QUEUE_SIZE = 0x1000
COMMAND_SIZE = 16
FORGET_DEVICE, FORGET_DOMAIN, FORGET_PAGES = 1, 2, 3
"""Bits 0-7 of the first word.  Bits 16-31 are the requester id or the domain; for pages bits 32-39 are the logarithm of the size
of a naturally aligned block, and the second word is its address."""
COMMAND_ID_SHIFT = 16
COMMAND_SIZE_SHIFT = 32

# ---- page tables: three levels of 512 entries -------------------------------------------------------------------------

LEVELS = 3
INDEX_BITS = 9
PAGE_SHIFT = 12
ADDRESS_BITS = PAGE_SHIFT + LEVELS * INDEX_BITS
READ, WRITE = 1, 2
"""An entry without both is absent; one above the lowest level needs both to name a table."""
LARGE = 1 << 7
"""An entry above the lowest level names a page."""
ADDRESS = 0x0000_FFFF_FFFF_F000
