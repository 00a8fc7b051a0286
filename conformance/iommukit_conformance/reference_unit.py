"""The reference's hardware: a device table, three levels of page tables, a TLB, a command queue and eight faults.

This is the smallest example of a hardware model.  It keeps what it has read, a device's entry and translations, until a command
says otherwise; as an emulated unit it keeps absent translations too.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from iommukit.hw.bus import ABSENT as NOTHING
from iommukit.hw.bus import ModelBus
from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit.hw.tlb import Tlb
from iommukit_conformance.reference_layout import (
    ABSENT,
    ADDRESS,
    ADDRESS_BITS,
    BASE,
    COMMAND_ID_SHIFT,
    COMMAND_SIZE,
    COMMAND_SIZE_SHIFT,
    ENTRY_DOMAIN_SHIFT,
    ENTRY_PASS,
    ENTRY_TABLE,
    ENTRY_VALID,
    FAULT,
    FAULT_ADDRESS,
    FAULT_LOST,
    FAULT_PENDING,
    FAULT_REASON_SHIFT,
    FAULT_ROOM,
    FAULT_WRITE,
    FORGET_DEVICE,
    FORGET_DOMAIN,
    FORGET_PAGES,
    INDEX_BITS,
    LARGE,
    LEVELS,
    NO_ENTRY,
    NOT_ALLOWED,
    OUT_OF_RANGE,
    PAGE_SHIFT,
    QUEUE,
    QUEUE_SIZE,
    READ,
    ROOT,
    SIZE,
    TAIL,
    TRANSLATE,
    WRITE,
)

INDEX = (1 << INDEX_BITS) - 1


class ReferenceHardware:
    """One unit: its registers, and what becomes of requests."""

    def __init__(self, bus: ModelBus, *, keeps_absent: bool) -> None:
        self._memory = bus.memory
        self._keeps_absent = keeps_absent
        self._registers = {ROOT: 0, QUEUE: 0, TAIL: 0}
        self._entries: dict[int, int] = {}
        """Entries of the device table that were read, by requester."""
        self._tlb = Tlb()
        self._faults: deque[tuple[int, int]] = deque()
        self._lost = False
        bus.attach(BASE, SIZE, self)

    # ---- registers ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        if offset == FAULT_ADDRESS:
            return self._faults[0][0] if self._faults else 0
        if offset == FAULT:
            return (self._faults[0][1] if self._faults else 0) | FAULT_LOST * self._lost
        return self._registers.get(offset, NOTHING)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        if offset == FAULT:
            if self._faults:
                self._faults.popleft()
            self._lost = False
        elif offset == TAIL:
            at = self._registers[TAIL]
            while at != value % QUEUE_SIZE:
                command = self._registers[QUEUE] + at
                self._carry_out(self._memory.word(command), self._memory.word(command + 8))
                at = (at + COMMAND_SIZE) % QUEUE_SIZE
            self._registers[TAIL] = at
        elif offset in self._registers:
            self._registers[offset] = value

    def _carry_out(self, command: int, address: int) -> None:
        code, number = command & 0xFF, command >> COMMAND_ID_SHIFT & 0xFFFF
        if code == FORGET_DEVICE:
            self._entries.pop(number, None)
        elif code == FORGET_DOMAIN:
            self._tlb.invalidate(number)
        elif code == FORGET_PAGES:
            size = 1 << (command >> COMMAND_SIZE_SHIFT & 0xFF)
            first = address & -size
            self._tlb.invalidate(number, first, first + size - 1)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _fault(self, requester: int, iova: int, write: bool, reason: int) -> None:
        if len(self._faults) == FAULT_ROOM:
            self._lost = True
        else:
            self._faults.append((iova, FAULT_PENDING | requester | FAULT_WRITE * write | reason << FAULT_REASON_SHIFT))

    def _entry(self, requester: int) -> int:
        if requester not in self._entries:
            self._entries[requester] = self._memory.word((self._registers[ROOT] & ADDRESS) + 8 * requester)
        return self._entries[requester]

    def _walk(self, table: int, iova: int) -> tuple[int, int, int]:
        """The page at an address: logarithm of its size, its physical address, what it allows (nothing: absent)."""
        for level in range(LEVELS - 1, -1, -1):
            shift = PAGE_SHIFT + level * INDEX_BITS
            entry = self._memory.word(table + 8 * (iova >> shift & INDEX))
            allowed = entry & (READ | WRITE)
            if not allowed or not level or entry & LARGE:
                return shift, entry & ADDRESS, allowed
            table = entry & ADDRESS
        raise AssertionError("the lowest level ends each walk")

    def translate(self, requester: int, iova: int, *, write: bool, pasid: int | None = None) -> int | None:
        """What becomes of a request."""
        if not self._registers[ROOT] & TRANSLATE:
            return iova
        entry = self._entry(requester)
        if not entry & ENTRY_VALID:
            self._fault(requester, iova, write, NO_ENTRY)
            return None
        if entry & ENTRY_PASS:
            return iova
        if iova >> ADDRESS_BITS:
            self._fault(requester, iova, write, OUT_OF_RANGE)
            return None
        domain = entry >> ENTRY_DOMAIN_SHIFT
        found = self._tlb.lookup(domain, iova)
        if found is None:
            shift, page, allowed = self._walk(entry & ENTRY_TABLE, iova)
            found = page + (iova & (1 << shift) - 1), allowed
            if allowed or self._keeps_absent:
                self._tlb.insert(domain, iova, shift, *found)
        physical, allowed = found
        if not allowed & (WRITE if write else READ):
            self._fault(requester, iova, write, NOT_ALLOWED if allowed else ABSENT)
            return None
        return physical

    def translate_many(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None = None) -> Addresses:
        """The same, one after the other."""
        answers = (self.translate(requester, iova, write=write) for iova in iovas.tolist())
        found = [int(UNMAPPED) if physical is None else physical for physical in answers]
        return np.array(found, dtype=np.uint64)
