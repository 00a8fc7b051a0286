"""Realistic mistakes in using this hardware, each as a plugin of hook wrappers around the right driver.

Most sit between the driver and the bus: they change, or keep back, what the driver has put into the command buffer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from iommukit.device import Device, Unit
from iommukit.domain import Domain
from iommukit.hookspecs import Mistake, hookimpl
from iommukit.hw import passing as hw
from iommukit.hw.passing import MeddlingBus
from iommukit_amd_vi.attach import entry_bits, requester_ids, retarget
from iommukit_amd_vi.domains import AmdDomain
from iommukit_amd_vi.layout import (
    ALL_PAGES,
    COMMAND_DOMAIN,
    DTE_MODE,
    NEXT_LEVEL_SIZED,
    OPCODE,
    PAGES_ADDRESS,
    PAGES_PDE,
    PAGES_S,
    PTE_ADDRESS,
    PTE_IW,
    PTE_NEXT_LEVEL,
    RING_ENTRY,
    Command,
    Register,
)
from iommukit_amd_vi.queue import COMMAND, RING_BYTES, invalidate_entry

if TYPE_CHECKING:
    from iommukit.hw.bus import Bus

Steps = Generator[None, Any, Any]
"""A hook wrapper, as pluggy has it."""

NOTHING: COMMAND = (OPCODE.of(Command.COMPLETION_WAIT), 0)
"""A command without effect."""


class Meddler(MeddlingBus):
    """A bus that passes on what the driver does, but for what a mistake changes.

    ``alter`` sees each command that the driver rings for, and answers what is in the buffer instead.  While ``mute``, the tail
    register is not written at all.  ``dropped`` are registers that are never written.
    """

    def __init__(self, bus: Bus, base: int, alter: Callable[[int, int], COMMAND] | None, dropped: frozenset[int]) -> None:
        super().__init__(bus)
        self.alter = alter
        self._base = base
        self._dropped = dropped
        self._ring = 0
        self._tail = 0

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register, or do not."""
        register = address - self._base
        if register == Register.COMMAND_BUFFER_BASE:
            self._ring, self._tail = value & PTE_ADDRESS.mask, 0
        elif register == Register.COMMAND_TAIL:
            if self.mute:
                return
            self._change(value)
        elif register in self._dropped:
            return
        super().write(address, size, value)

    def _change(self, tail: int) -> None:
        """Go through the commands up to the new tail."""
        while self._tail != tail:
            address = self._ring + self._tail
            if self.alter is not None:
                first, second = self.alter(self.memory.word(address), self.memory.word(address + 8))
                self.memory.set_word(address, first)
                self.memory.set_word(address + 8, second)
            self._tail = self._tail + RING_ENTRY & RING_BYTES - 1


class OnTheBus(hw.OnTheBus):
    """A meddler between the driver and each unit's bus."""

    alter: Callable[[int, int], COMMAND] | None = None
    dropped: frozenset[int] = frozenset()

    def meddler(self, unit: Unit, bus: Bus) -> Meddler:
        """One that knows where the unit's registers are."""
        return Meddler(bus, unit.state.iommu.base, type(self).alter, self.dropped)


def _code(first: int) -> int:
    return OPCODE.get(first)


def _another_domain(first: int, second: int) -> COMMAND:
    """The id of the next domain."""
    if _code(first) == Command.INVALIDATE_IOMMU_PAGES:
        first = COMMAND_DOMAIN.put(first, COMMAND_DOMAIN.get(first) + 1)
    return first, second


def _no_entry_flush(first: int, second: int) -> COMMAND:
    return NOTHING if _code(first) == Command.INVALIDATE_DEVTAB_ENTRY else (first, second)


def _half_the_range(first: int, second: int) -> COMMAND:
    """The zero that codes the size one bit too low; of two pages only the first."""
    if _code(first) == Command.INVALIDATE_IOMMU_PAGES and second & PAGES_S.mask:
        pages = PAGES_ADDRESS.get(second)
        zero = ~pages & pages + 1
        second = PAGES_ADDRESS.put(second, pages & ~(zero >> 1)) if zero > 1 else second & ~PAGES_S.mask
    return first, second


def _one_page(first: int, second: int) -> COMMAND:
    if _code(first) == Command.INVALIDATE_IOMMU_PAGES and second & PAGES_ADDRESS.mask != ALL_PAGES:
        second &= ~PAGES_S.mask
    return first, second


def _no_directories(first: int, second: int) -> COMMAND:
    if _code(first) == Command.INVALIDATE_IOMMU_PAGES:
        second &= ~PAGES_PDE.mask
    return first, second


class WrongDomain(OnTheBus):
    """Off by one."""

    alter = staticmethod(_another_domain)


class StaleEntry(OnTheBus):
    """The device table is memory like any other."""

    alter = staticmethod(_no_entry_flush)


class HalfTheRange(OnTheBus):
    """An exponent one too small."""

    alter = staticmethod(_half_the_range)


class OnePage(OnTheBus):
    """Forgets S."""

    alter = staticmethod(_one_page)


class NoDirectories(OnTheBus):
    """Forgets PDE."""

    alter = staticmethod(_no_directories)


class TailNotRung(hw.QuietSync, OnTheBus):
    """The commands are in the buffer."""


class AbsentStaysAbsent(hw.QuietSyncMap, OnTheBus):
    """A new entry needs no invalidation."""


class LogNeverRead(OnTheBus):
    """Where the driver has read to is nobody's business."""

    dropped = frozenset({int(Register.EVENT_HEAD)})


class _AfterMap(ABC):
    """Wrappers that spoil entries once ``map_pages`` has written them."""

    @hookimpl(wrapper=True)
    def map_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int) -> Steps:
        """Change the entries on the way to each page."""
        top = domain.tables.top if isinstance(domain, AmdDomain) and domain.tables is not None else 0
        done = yield
        if isinstance(domain, AmdDomain) and domain.tables is not None and domain.format == 1:
            self.spoil(domain, iova, pgsize, pgcount, top)
        return done

    @abstractmethod
    def spoil(self, domain: AmdDomain, iova: int, pgsize: int, pgcount: int, top: int) -> None:
        """Change something; ``top`` is the root's level before."""

    @staticmethod
    def directories(domain: AmdDomain, iova: int, pgsize: int, pgcount: int) -> Iterator[tuple[int, int, int]]:
        """Level, address and contents of the entries that name tables on the way to the first and the last page."""
        assert domain.tables is not None
        for at in dict.fromkeys((iova, iova + pgsize * (pgcount - 1))):
            yield from domain.tables.entries(at)[:-1]


class ReadOnlyDirectory(_AfterMap):
    """The leaf has the permission, after all."""

    def spoil(self, domain: AmdDomain, iova: int, pgsize: int, pgcount: int, top: int) -> None:
        """No IW in entries that name tables."""
        assert domain.tables is not None
        for _, address, value in self.directories(domain, iova, pgsize, pgcount):
            domain.tables.memory.set_word(address, value & ~PTE_IW.mask)


class NextLevelOff(_AfterMap):
    """Counts levels from 0, as the processor's manual does."""

    def spoil(self, domain: AmdDomain, iova: int, pgsize: int, pgcount: int, top: int) -> None:
        """A next level one too low, where there is one."""
        assert domain.tables is not None
        for level, address, value in self.directories(domain, iova, pgsize, pgcount):
            if level > 1:
                domain.tables.memory.set_word(address, PTE_NEXT_LEVEL.put(value, level - 1))


class SizeTooSmall(_AfterMap):
    """A coded size of half the page."""

    def spoil(self, domain: AmdDomain, iova: int, pgsize: int, pgcount: int, top: int) -> None:
        """Leaves with next level 7 lose the highest one of their code, or the whole code."""
        assert domain.tables is not None
        tables = domain.tables
        for page in range(min(pgcount, 64)):
            level, address, value = tables.entries(iova + page * pgsize)[-1]
            if PTE_NEXT_LEVEL.get(value) != NEXT_LEVEL_SIZED:
                continue
            own = tables.format.levels[level].shift
            for slot in range(pgsize >> own):
                smaller = value & ~(pgsize >> 2)
                if pgsize >> own == 2:
                    smaller = PTE_NEXT_LEVEL.put(value & ~(pgsize - 1 & PTE_ADDRESS.mask), 0)
                tables.memory.set_word(address + 8 * slot, smaller)


class OldMode(_AfterMap):
    """The root has moved up, and the device table has not heard of its level."""

    def spoil(self, domain: AmdDomain, iova: int, pgsize: int, pgcount: int, top: int) -> None:
        """The new root under the old mode."""
        assert domain.tables is not None
        if domain.tables.top == top:
            return
        for member in domain.members.values():
            assert member.unit.hardware is not None
            hardware = member.unit.hardware
            for id in member.ids:
                hardware.table.write(id, DTE_MODE.put(entry_bits(domain, member.root), top + 1))
            hardware.queue.send([invalidate_entry(id) for id in member.ids])


class GrowsUntold(_AfterMap):
    """Grown tables under the old root."""

    def spoil(self, domain: AmdDomain, iova: int, pgsize: int, pgcount: int, top: int) -> None:
        """The device table names the old root and the old mode still."""
        tables = domain.tables
        assert tables is not None
        if tables.top == top:
            return
        root, now = tables.root, tables.top
        while tables.top > top:
            tables.root, tables.top = tables.memory.word(tables.root) & PTE_ADDRESS.mask, tables.top - 1
        retarget(domain)
        tables.root, tables.top = root, now


class EmptyEntry:
    """Zeroes what is no longer needed."""

    @hookimpl(wrapper=True)
    def release_device(self, device: Device) -> Steps:
        """The entry of a device that is gone is empty: V is 0, and everything passes."""
        ids = requester_ids(device) if device.unit is not None and device.unit.bus is not None and device.vendor_state else ()
        answer = yield
        self._empty(device, ids)
        return answer

    @hookimpl(wrapper=True)
    def set_dev_blocked(self, device: Device) -> Steps:
        """So is that of a blocked one."""
        answer = yield
        if answer:
            self._empty(device, requester_ids(device))
        return answer

    @staticmethod
    def _empty(device: Device, ids: tuple[int, ...]) -> None:
        hardware = device.unit.state.hardware if device.unit is not None else None
        if hardware is not None and ids:
            for id in ids:
                hardware.table.write(id, 0)
            hardware.queue.send([invalidate_entry(id) for id in ids])


class OneIdForAll:
    """Domain ids are for statistics."""

    @hookimpl(wrapper=True)
    def domain_alloc(self, device: Device) -> Steps:
        """All have the id 1."""
        domain = yield
        if isinstance(domain, AmdDomain) and domain.id > 1:
            assert domain.driver is not None
            domain.driver.give_id(domain.id)
            domain.id = 1
        return domain


_WHOLE_DOMAIN = "QEMU forgets the whole domain on every INVALIDATE_IOMMU_PAGES"
_NO_LOG = "QEMU never writes the event log"

MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "amd-wrong-domain",
        "INVALIDATE_IOMMU_PAGES carries the id of the domain after the one that is meant.",
        "TLB-01",
        WrongDomain,
    ),
    Mistake(
        "amd-stale-entry",
        "A device table entry is changed without INVALIDATE_DEVTAB_ENTRY.",
        "ATTACH-06",
        StaleEntry,
        "QEMU reads the device table at every miss, and forgets what it has cached of the old domain",
    ),
    Mistake(
        "amd-tail-not-rung", "iotlb_sync puts its commands into the buffer and does not write the tail.", "TLB-01", TailNotRung
    ),
    Mistake(
        "amd-half-the-range",
        "The size in INVALIDATE_IOMMU_PAGES is coded one bit too small.",
        "TLB-02",
        HalfTheRange,
        _WHOLE_DOMAIN,
    ),
    Mistake("amd-one-page", "INVALIDATE_IOMMU_PAGES for a range lacks the S bit.", "TLB-02", OnePage, _WHOLE_DOMAIN),
    Mistake(
        "amd-no-directories",
        "INVALIDATE_IOMMU_PAGES lacks the PDE bit, so that cached directory entries stay.",
        "TLB-17",
        NoDirectories,
        "QEMU caches no directory entries",
    ),
    Mistake(
        "amd-absent-stays-absent",
        "A new mapping is not invalidated although the IOMMU caches absent entries (NpCache).",
        "TLB-13",
        AbsentStaysAbsent,
        "QEMU says NpCache, but caches no absent entries",
    ),
    Mistake("amd-read-only-directory", "Entries that name tables lack the IW bit.", "PT-11", ReadOnlyDirectory),
    Mistake("amd-next-level-off", "Entries that name tables have a next level that is one too low.", "PT-03", NextLevelOff),
    Mistake("amd-size-too-small", "The size of a page with next level 7 is coded as half of what it is.", "PT-05", SizeTooSmall),
    Mistake("amd-old-mode", "After the tables have grown the device table names the new root with the old mode.", "PT-13", OldMode),
    Mistake("amd-grows-untold", "After the tables have grown the device table still names the old root.", "PT-13", GrowsUntold),
    Mistake("amd-empty-entry", "A device that leaves gets an empty entry: without V all its DMA passes.", "ATTACH-03", EmptyEntry),
    Mistake(
        "amd-one-id",
        "All domains have the same domain id, by which the TLB tags them.",
        "ATTACH-07",
        OneIdForAll,
        "QEMU tags its cache by device, not by domain id",
    ),
    Mistake(
        "amd-log-never-read", "The event log's head is never moved, so that the log stays full.", "FAULT-08", LogNeverRead, _NO_LOG
    ),
)
