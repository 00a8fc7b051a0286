"""Which domain each requester's entry names: root, context and PASID tables as the driver writes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.errors import IommuError
from iommukit_intel_vtd.capabilities import SMPWC
from iommukit_intel_vtd.invalidation import (
    Request,
    context_device,
    iotlb_domain,
    pasid_cache,
    pasid_iotlb,
)
from iommukit_intel_vtd.layout import PAGE
from iommukit_intel_vtd.space import NO_PASID, AddressSpace

if TYPE_CHECKING:
    from iommukit.device import Device
    from iommukit.hw.memory import PhysicalMemory
    from iommukit_intel_vtd.running import RunningUnit

PRESENT = 1
CONTEXT_WIDTH, CONTEXT_NUMBER = 0, 8
"""Upper half of a legacy context entry, lowest bits: address width, domain id."""
TRANSLATE, PASS_THROUGH = 0, 2
TYPE = 2
"""Lower half, lowest bit of the translation type."""
PASID_WIDTH, PASID_TYPE = 2, 6
FIRST, SECOND, PASS = 1, 2, 4
"""PASID granular translation types (PGTT)."""
SNOOPED_WALK = 1 << 23
"""Second word of a PASID entry: PWSNP."""
FIVE_LEVELS = 1 << 2
"""Third word: the first stage has five levels (FSPM)."""
DIRECTORY_SIZE = 2 << 9
"""Lower word of a scalable context entry: a directory of one page, which is 512 entries (PDTS)."""
CONTEXT_ENTRY, SCALABLE_CONTEXT_ENTRY, PASID_ENTRY = 16, 32, 64


@dataclass(frozen=True, slots=True)
class Target:
    """What an entry shall say: tables with a domain id, or pass-through where there are no tables."""

    space: AddressSpace | None
    number: int
    levels: int


@dataclass(slots=True)
class Holder:
    """The devices whose requests carry one requester id, each with what it was given, in order."""

    devices: dict[Device, Target] = field(default_factory=dict)


class Attachments(ABC):
    """All entries of one unit.

    An entry is written before anything is invalidated.  A live one is replaced in a single store of 128 bits: there is no moment
    in which the requester has neither its old translations nor its new ones.
    """

    def __init__(self, running: RunningUnit, root: int) -> None:
        self._running, self._root = running, root
        self._memory: PhysicalMemory = running.bus.memory
        self._holders: dict[int, Holder] = {}
        self._targets: dict[Device, tuple[Target, tuple[int, ...]]] = {}

    # ---- what the hooks ask for --------------------------------------------------------------------------------------

    def maps(self, requester: int, iova: int) -> bool:
        """Whether the requester's tables map an address by now."""
        holder = self._holders.get(requester)
        if holder is None:
            return False
        space = next(reversed(holder.devices.values())).space
        return space is None or space.table.lookup(iova) is not None

    def prepare(self, device: Device, requesters: Iterable[int]) -> None:
        """Have the tables in which the entries will stand.  Raises ``IommuError("ENOMEM")``, with all as it was."""
        slots = {self._root_slot(requester) for requester in requesters}
        missing = sorted(slot for slot in slots if not self._memory.word(slot) & PRESENT)
        pages = self._memory.pages
        made: list[int] = []
        try:
            for _ in missing:
                made.append(pages.alloc(PAGE))
            self._prepare_device(device)
        except IommuError:
            for page in made:
                pages.free(page, PAGE)
            raise
        for slot, page in zip(missing, made, strict=True):
            self._memory.set_word(slot, page | PRESENT)

    def put(self, device: Device, requesters: tuple[int, ...], target: Target) -> None:
        """Send a device's requests to a target, and make the unit forget where they went before."""
        before = self._targets.get(device)
        self._targets[device] = target, requesters
        self._write(device, requesters, target)
        for requester in requesters:
            holder = self._holders.setdefault(requester, Holder())
            holder.devices.pop(device, None)
            holder.devices[device] = target
        if before is not None and before[0].space is not None:
            before[0].space.leave(self._running)

    def refresh(self, space: AddressSpace) -> None:
        """Write the entries of all users of tables whose root has changed."""
        for device, (target, requesters) in list(self._targets.items()):
            if target.space is space:
                space.join(self._running)
                self.put(device, requesters, Target(space, target.number, space.levels))

    def clear(self, device: Device) -> None:
        """Stop a device's requests, unless they carry an id that another device uses as well."""
        found = self._targets.pop(device, None)
        if found is None:
            return
        target, requesters = found
        for requester in requesters:
            holder = self._holders[requester]
            del holder.devices[device]
            if holder.devices:
                other, remaining = next(reversed(holder.devices.items()))
                self._write(other, (requester,), remaining)
            else:
                del self._holders[requester]
        self._erase(device, [requester for requester in requesters if requester not in self._holders], target)
        if target.space is not None:
            target.space.leave(self._running)

    def forget(self, device: Device) -> None:
        """The device leaves: give back what was its own."""
        self.clear(device)

    # ---- entries -----------------------------------------------------------------------------------------------------

    def _store(self, address: int, low: int, high: int) -> None:
        """Write a 128-bit entry: at once where it is live, else the half with the present bit last."""
        memory = self._memory
        if memory.word(address) & PRESENT:
            memory.write(address, (high << 64 | low).to_bytes(16, "little"))
        else:
            memory.set_word(address + 8, high)
            memory.set_word(address, low)

    def _announce(self, requester: int, replaced: list[Request], fresh: list[Request]) -> None:
        """Tell the unit of a written entry: what it may still know of the old one, or (caching mode) that there was none."""
        if replaced:
            self._running.invalidation.submit(*replaced)
        elif self._running.caching_mode:
            self._running.invalidation.submit(context_device(0, requester), *fresh)
        else:
            self._running.flush_write_buffer()

    @abstractmethod
    def _root_slot(self, requester: int) -> int:
        """Where the root entry that leads to a requester's context table stands."""

    @abstractmethod
    def _write(self, device: Device, requesters: tuple[int, ...], target: Target) -> None:
        """Write the entries, and invalidate."""

    @abstractmethod
    def _erase(self, device: Device, requesters: list[int], target: Target) -> None:
        """Take the entries away, and invalidate."""

    @abstractmethod
    def _prepare_device(self, device: Device) -> None:
        """Have what the device needs for itself.  Raises ``IommuError("ENOMEM")``, with all as it was."""


class LegacyEntries(Attachments):
    """Context entries of 128 bits, which name the tables themselves (9.3)."""

    def _root_slot(self, requester: int) -> int:
        return self._root + (requester >> 8) * 16

    def _prepare_device(self, device: Device) -> None:
        """Nothing."""

    def _entry(self, requester: int) -> int:
        return (self._memory.word(self._root_slot(requester)) & -PAGE) + (requester & 0xFF) * CONTEXT_ENTRY

    def _forget_old(self, requester: int, old: int) -> list[Request]:
        number = old >> CONTEXT_NUMBER & 0xFFFF
        return [context_device(number, requester), iotlb_domain(number)]

    def _write(self, device: Device, requesters: tuple[int, ...], target: Target) -> None:
        high = target.number << CONTEXT_NUMBER | target.levels - 2 << CONTEXT_WIDTH
        if target.space is None:
            low = PASS_THROUGH << TYPE | PRESENT
        else:
            low = target.space.table.root | TRANSLATE << TYPE | PRESENT
        for requester in requesters:
            at = self._entry(requester)
            old_low, old_high = self._memory.word(at), self._memory.word(at + 8)
            if (old_low, old_high) == (low, high):
                continue
            self._store(at, low, high)
            replaced = self._forget_old(requester, old_high) if old_low & PRESENT else []
            self._announce(requester, replaced, [iotlb_domain(target.number)])

    def _erase(self, device: Device, requesters: list[int], target: Target) -> None:
        for requester in requesters:
            at = self._entry(requester)
            number = self._memory.word(at + 8)
            self._memory.set_word(at, 0)
            self._memory.set_word(at + 8, 0)
            self._running.invalidation.submit(*self._forget_old(requester, number))


@dataclass(slots=True)
class PasidTable:
    """A device's directory of one page, with the one table of PASIDs 0 to 63."""

    directory: int
    table: int


class ScalableEntries(Attachments):
    """Context entries of 256 bits, which lead to a device's PASID table, and the entry of PASID 0 there (9.4 to 9.6)."""

    def __init__(self, running: RunningUnit, root: int) -> None:
        super().__init__(running, root)
        self._tables: dict[Device, PasidTable] = {}
        self._owners: dict[int, Device] = {}
        """Whose PASID table a requester's context entry leads to."""

    def _root_slot(self, requester: int) -> int:
        return self._root + (requester >> 8) * 16 + (requester >> 7 & 1) * 8

    def _context(self, requester: int) -> int:
        return (self._memory.word(self._root_slot(requester)) & -PAGE) + (requester & 0x7F) * SCALABLE_CONTEXT_ENTRY

    def _prepare_device(self, device: Device) -> None:
        if device in self._tables:
            return
        pages = self._memory.pages
        directory = pages.alloc(PAGE)
        try:
            table = pages.alloc(PAGE)
        except IommuError:
            pages.free(directory, PAGE)
            raise
        self._tables[device] = PasidTable(directory, table)
        self._memory.set_word(directory, table | PRESENT)

    def _words(self, target: Target) -> tuple[int, int, int]:
        """The three words of a PASID entry that say anything."""
        snooped = SNOOPED_WALK if self._running.words.has(SMPWC) else 0
        second = target.number | snooped
        # The width is the second stage's and pass-through's; the driver sets it always.
        low = target.levels - 2 << PASID_WIDTH | PRESENT
        if target.space is None:
            return PASS << PASID_TYPE | low, second, 0
        root = target.space.table.root
        if target.space.first_stage:
            return FIRST << PASID_TYPE | low, second, root | (FIVE_LEVELS if target.levels == 5 else 0)
        return root | SECOND << PASID_TYPE | low, second, 0

    def _forget_old(self, low: int, second: int) -> list[Request]:
        number = second & 0xFFFF
        second_stage = low >> PASID_TYPE & 7 == SECOND
        return [pasid_cache(number, NO_PASID), iotlb_domain(number) if second_stage else pasid_iotlb(number, NO_PASID)]

    def _write(self, device: Device, requesters: tuple[int, ...], target: Target) -> None:
        memory, tables = self._memory, self._tables[device]
        low, second, third = self._words(target)
        old_low, old_second, old_third = (memory.word(tables.table + 8 * number) for number in range(3))
        if (old_low, old_second, old_third) != (low, second, third):
            # The third word is the first stage's root: nobody reads it before the first says so, or it is as good as the old.
            memory.set_word(tables.table + 16, third)
            self._store(tables.table, low, second)
            if old_low & PRESENT:
                self._running.invalidation.submit(*self._forget_old(old_low, old_second), *self._forget_old(low, second))
            elif self._running.caching_mode:
                self._running.invalidation.submit(*self._forget_old(low, second))
            else:
                self._running.flush_write_buffer()
        context = tables.directory | DIRECTORY_SIZE | PRESENT
        self._owners.update(dict.fromkeys(requesters, device))
        for requester in requesters:
            at = self._context(requester)
            old = memory.word(at)
            if old == context:
                continue
            memory.set_word(at, context)
            replaced = [context_device(0, requester), *self._forget_old(old_low, old_second)] if old & PRESENT else []
            if old & PRESENT:
                replaced += self._forget_old(low, second)
            self._announce(requester, replaced, self._forget_old(low, second))

    def _erase(self, device: Device, requesters: list[int], target: Target) -> None:
        """The PASID entry goes; the context entry stays until the device leaves."""
        memory, table = self._memory, self._tables[device].table
        low, second = memory.word(table), memory.word(table + 8)
        for number in (0, 2, 1):
            memory.set_word(table + 8 * number, 0)
        self._running.invalidation.submit(*self._forget_old(low, second))

    def forget(self, device: Device) -> None:
        """Take the device's context entries away, and free its PASID table."""
        self.clear(device)
        tables = self._tables.pop(device, None)
        if tables is None:
            return
        memory = self._memory
        for requester in [requester for requester, owner in self._owners.items() if owner is device]:
            del self._owners[requester]
            memory.set_word(self._context(requester), 0)
            self._running.invalidation.submit(context_device(0, requester), pasid_cache(0, NO_PASID))
        for page in (tables.directory, tables.table):
            memory.pages.free(page, PAGE)
