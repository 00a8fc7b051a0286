"""The reference driver's side of its hardware: page tables, the device table, and the command queue."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from iommukit.domain import Domain, DomainType, Prot
from iommukit.hookspecs import Gather
from iommukit.hw.bus import Bus
from iommukit.hw.fault import Fault, FaultKind
from iommukit.hw.format import Entry, Format, Level
from iommukit.hw.radix import PageTable
from iommukit_conformance import reference_layout as layout

KINDS = {
    layout.NO_ENTRY: FaultKind.BLOCKED,
    layout.OUT_OF_RANGE: FaultKind.OUT_OF_RANGE,
    layout.ABSENT: FaultKind.NOT_MAPPED,
    layout.NOT_ALLOWED: FaultKind.PERMISSION,
}
ENTRY_BLOCKED = 0


class TableFormat(Format):
    """How the page tables look."""

    levels = tuple(Level(layout.PAGE_SHIFT + level * layout.INDEX_BITS, layout.INDEX_BITS) for level in range(layout.LEVELS))

    def present(self, entry: Entry, level: int) -> Entry:
        """Something may be done with it."""
        return entry & (layout.READ | layout.WRITE) != 0

    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """A large page."""
        return entry & layout.LARGE != 0

    def address(self, entry: Entry, level: int) -> Entry:
        """The bits in the middle."""
        return entry & layout.ADDRESS

    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """The two permissions, and whether the page is a large one."""
        allowed = layout.READ * bool(prot & Prot.READ) | layout.WRITE * bool(prot & Prot.WRITE)
        return allowed | layout.LARGE * bool(level)

    def table(self, level: int) -> int:
        """Permissions are the leaf's business."""
        return layout.READ | layout.WRITE


FORMAT = TableFormat()


@dataclass(slots=True, eq=False)
class ReferenceDomain(Domain):
    """A domain with page tables; without hardware it has none."""

    table: PageTable | None = None
    number: int = 0

    @property
    def entry(self) -> int:
        """What the entry of a device in this domain says."""
        if self.type is DomainType.IDENTITY:
            return layout.ENTRY_VALID | layout.ENTRY_PASS
        if self.table is None:
            return ENTRY_BLOCKED
        return layout.ENTRY_VALID | self.table.root | self.number << layout.ENTRY_DOMAIN_SHIFT


@dataclass(slots=True)
class Control:
    """The unit's memory and its command queue, once it has been started."""

    bus: Bus
    devices: int
    """The device table's address (physical)."""
    queue: int
    tail: int = 0
    free_numbers: list[int] = field(default_factory=lambda: list(range(1, 1 << 16)))

    @classmethod
    def start(cls, bus: Bus) -> Control:
        """Make the tables, tell the unit, switch translation on."""
        pages = bus.memory.pages
        control = cls(bus, pages.alloc(8 * layout.DEVICES), pages.alloc(layout.QUEUE_SIZE))
        bus.write(layout.BASE + layout.QUEUE, 8, control.queue)
        bus.write(layout.BASE + layout.ROOT, 8, control.devices | layout.TRANSLATE)
        return control

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _command(self, code: int, number: int, size: int = 0, address: int = 0) -> None:
        memory = self.bus.memory
        memory.set_word(self.queue + self.tail, code | number << layout.COMMAND_ID_SHIFT | size << layout.COMMAND_SIZE_SHIFT)
        memory.set_word(self.queue + self.tail + 8, address)
        self.tail = (self.tail + layout.COMMAND_SIZE) % layout.QUEUE_SIZE
        self.bus.write(layout.BASE + layout.TAIL, 8, self.tail)

    def forget_domain(self, domain: ReferenceDomain) -> None:
        """Invalidate everything cached of a domain."""
        self._command(layout.FORGET_DOMAIN, domain.number)

    def forget_pages(self, domain: ReferenceDomain, start: int, end: int) -> None:
        """Invalidate the bytes ``start``..``end``: the smallest naturally aligned block around them."""
        size = max(layout.PAGE_SHIFT, (start ^ end).bit_length())
        self._command(layout.FORGET_PAGES, domain.number, size, start & -(1 << size))

    # ---- devices -----------------------------------------------------------------------------------------------------

    def set_entry(self, requester: int, entry: int) -> None:
        """Write a device's entry, and let the unit read it again."""
        self.bus.memory.set_word(self.devices + 8 * requester, entry)
        self._command(layout.FORGET_DEVICE, requester)

    # ---- domains -----------------------------------------------------------------------------------------------------

    def equip(self, domain: ReferenceDomain) -> None:
        """Give a domain page tables and a number.  Raises ``ENOMEM``."""
        domain.table = PageTable(FORMAT, self.bus.memory)
        domain.number = heapq.heappop(self.free_numbers)

    def strip(self, domain: ReferenceDomain) -> None:
        """Take both back, once nothing of them is cached."""
        if domain.table is not None:
            self.forget_domain(domain)
            domain.table.free()
            domain.table = None
            heapq.heappush(self.free_numbers, domain.number)

    def sync(self, domain: ReferenceDomain, gather: Gather) -> None:
        """Invalidate what was gathered, then free the tables that nothing leads to any more."""
        if not gather.empty:
            self.forget_pages(domain, gather.start, gather.end)
        for address, size in gather.freed:
            self.bus.memory.pages.free(address, size)
        gather.freed.clear()

    # ---- faults ------------------------------------------------------------------------------------------------------

    def take_faults(self) -> list[Fault]:
        """Read the faults that the unit holds."""
        found = []
        while (record := self.bus.read(layout.BASE + layout.FAULT, 8)) & layout.FAULT_PENDING:
            reason = record >> layout.FAULT_REASON_SHIFT & 0xFF
            address = self.bus.read(layout.BASE + layout.FAULT_ADDRESS, 8)
            found.append(Fault(KINDS[reason], record & 0xFFFF, address, bool(record & layout.FAULT_WRITE), reason))
            self.bus.write(layout.BASE + layout.FAULT, 8, 0)
        return found
