"""An IOMMU as hardware: its registers, and what becomes of a device's request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.platform import UNMAPPED, Addresses
from iommukit_amd_vi.layout import (
    BASE_ADDRESS,
    CMD_BUF_EN,
    CMD_BUF_RUN,
    COM_WAIT_INT,
    DTE_SIZE,
    EVENT_CODE,
    EVENT_DOMAIN,
    EVENT_GN,
    EVENT_LOG_EN,
    EVENT_LOG_INT,
    EVENT_LOG_RUN,
    EVENT_OVERFLOW,
    EVENT_PASID_HIGH,
    EVENT_RW,
    EVENT_RZ,
    EXCLUSION_ALLOW,
    EXCLUSION_EN,
    GT_EN,
    HT_RANGE_IGNORE,
    HT_WINDOW,
    IOMMU_EN,
    MSI_WINDOW,
    REGISTERS_SIZE,
    TABLE_SIZE,
    Event,
    Register,
)
from iommukit_amd_vi.model.caches import PRESENT, Caches, Tag
from iommukit_amd_vi.model.commands import MasterAbort, kind_of
from iommukit_amd_vi.model.device_table import READ, WRITE, DeviceEntry, decode
from iommukit_amd_vi.model.ring import Ring
from iommukit_amd_vi.model.walker import (
    NOT_PRESENT,
    PERMISSION,
    Refusal,
    Translation,
    guest_root,
    walk_guest,
    walk_host,
)
from iommukit_amd_vi.model.walker_many import Found, walk_guest_many, walk_host_many

if TYPE_CHECKING:
    from iommukit.hw.bus import ModelBus
    from iommukit_amd_vi.units import Iommu

__all__ = ["AmdModel"]

ILLEGAL_ENTRY = Refusal(Event.ILLEGAL_DEV_TABLE_ENTRY, 0)
ILLEGAL_ENTRY_RESERVED = Refusal(Event.ILLEGAL_DEV_TABLE_ENTRY, EVENT_RZ.mask)
NO_TABLE = Refusal(Event.DEV_TAB_HARDWARE_ERROR, 0)
BLOCKED = Refusal(Event.IO_PAGE_FAULT, 0)

_LATCHES = EVENT_OVERFLOW.mask | EVENT_LOG_INT.mask | COM_WAIT_INT.mask
"""Bits of the status register that are cleared by writing 1."""


class AmdModel:
    """One IOMMU, switched off as after a reset; its registers are on the bus."""

    def __init__(self, bus: ModelBus, iommu: Iommu) -> None:
        self.memory = bus.memory
        self.features = iommu.efr
        self.caches = Caches()
        self.commands = Ring(bus.memory)
        self.events = Ring(bus.memory)
        self._np_cache = iommu.np_cache
        self._stopped = [MSI_WINDOW] if HT_RANGE_IGNORE.get(iommu.efr2) else [MSI_WINDOW, HT_WINDOW]
        self._control = 0
        self._status = 0
        self._device_table = 0
        self._exclusion_base = 0
        self._exclusion_limit = 0
        self._reads: dict[int, Callable[[], int]] = {
            Register.DEVICE_TABLE_BASE: lambda: self._device_table,
            Register.COMMAND_BUFFER_BASE: lambda: self.commands.register,
            Register.EVENT_LOG_BASE: lambda: self.events.register,
            Register.CONTROL: lambda: self._control,
            Register.EXCLUSION_BASE: lambda: self._exclusion_base,
            Register.EXCLUSION_LIMIT: lambda: self._exclusion_limit,
            Register.EXTENDED_FEATURE: lambda: iommu.efr,
            Register.EXTENDED_FEATURE_2: lambda: iommu.efr2,
            Register.COMMAND_HEAD: lambda: self.commands.head,
            Register.COMMAND_TAIL: lambda: self.commands.tail,
            Register.EVENT_HEAD: lambda: self.events.head,
            Register.EVENT_TAIL: lambda: self.events.tail,
            Register.STATUS: self._read_status,
        }
        self._writes: dict[int, Callable[[int], None]] = {
            Register.DEVICE_TABLE_BASE: self._write_device_table,
            Register.COMMAND_BUFFER_BASE: self.commands.set_base,
            Register.EVENT_LOG_BASE: self.events.set_base,
            Register.CONTROL: self._write_control,
            Register.EXCLUSION_BASE: self._write_exclusion_base,
            Register.EXCLUSION_LIMIT: self._write_exclusion_limit,
            Register.COMMAND_HEAD: self.commands.set_head,
            Register.COMMAND_TAIL: self._write_command_tail,
            Register.EVENT_HEAD: self.events.set_head,
            Register.EVENT_TAIL: self.events.set_tail,
            Register.STATUS: self._write_status,
        }
        bus.attach(iommu.base, REGISTERS_SIZE, self)

    # ---- registers ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register or half of one; registers that are not modelled read as 0."""
        register = self._reads.get(offset & ~7)
        value = register() if register is not None else 0
        return value >> 8 * (offset & 4) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register, or one half and leave the other; others ignore it."""
        register = offset & ~7
        act = self._writes.get(register)
        if act is None:
            return
        if size == 4 and register < Register.COMMAND_HEAD:
            old = self._reads[register]()
            value = old & 0xFFFF_FFFF | value << 32 if offset & 4 else old & ~0xFFFF_FFFF | value
        elif offset & 4:
            return  # pointers and status are in the low halves
        act(value)

    def _write_device_table(self, value: int) -> None:
        self._device_table = value & (BASE_ADDRESS.mask | TABLE_SIZE.mask)

    def _write_exclusion_base(self, value: int) -> None:
        self._exclusion_base = value & (BASE_ADDRESS.mask | EXCLUSION_EN.mask | EXCLUSION_ALLOW.mask)

    def _write_exclusion_limit(self, value: int) -> None:
        self._exclusion_limit = value & BASE_ADDRESS.mask

    def _write_control(self, value: int) -> None:
        """A ring starts when its enable bit and that of the IOMMU are both on, and stops when one is not (MMIO Offset 0018h)."""
        before, self._control = self._control, value
        for ring, enable in ((self.events, EVENT_LOG_EN), (self.commands, CMD_BUF_EN)):
            both = IOMMU_EN.mask | enable.mask
            on = value & both == both
            if on != (before & both == both):
                ring.running = on
        self._run_commands()

    def _read_status(self) -> int:
        return self._status | EVENT_LOG_RUN.of(self.events.running) | CMD_BUF_RUN.of(self.commands.running)

    def _write_status(self, value: int) -> None:
        self._status &= ~(value & _LATCHES)

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _write_command_tail(self, value: int) -> None:
        self.commands.set_tail(value)
        self._run_commands()

    def _run_commands(self) -> None:
        """Carry out what is in the command buffer; an illegal command stops it, with the head at that command (2.4, 2.5.6)."""
        ring = self.commands
        while ring.running and ring.head != ring.tail:
            entry = ring.entry(ring.head)
            kind = kind_of(*entry, self.features) if entry else None
            if entry is None or kind is None:
                self._halt(Event.COMMAND_HARDWARE_ERROR if entry is None else Event.ILLEGAL_COMMAND_ERROR)
                return
            try:
                kind.act(self, *entry)
            except MasterAbort:
                self._halt(Event.COMMAND_HARDWARE_ERROR)
                return
            ring.head = ring.after(ring.head)

    def _halt(self, event: Event) -> None:
        self.commands.running = False
        self._log(EVENT_CODE.of(event), self.commands.base + self.commands.head)

    def completion_interrupt(self) -> None:
        """COMPLETION_WAIT with I: the status bit (MMIO Offset 2020h); ComWaitIntEn would let an interrupt follow."""
        self._status |= COM_WAIT_INT.mask

    # ---- events ------------------------------------------------------------------------------------------------------

    def _log(self, first: int, second: int) -> None:
        """Write an event; a full log stops and says so (2.5)."""
        if not self.events.running:
            return
        if self.events.push(first, second):
            self._status |= EVENT_LOG_INT.mask
        else:
            self.events.running = False
            self._status |= EVENT_OVERFLOW.mask

    def _refuse(self, device: int, entry: DeviceEntry | None, iova: int, why: Refusal, *, write: bool, pasid: int | None) -> None:
        """Log why a request was stopped, unless the device's entry suppresses it (SA, SE)."""
        page_fault = why.event is Event.IO_PAGE_FAULT
        if page_fault and entry is not None:
            if entry.silent or device in self.caches.suppressed:
                return
            if entry.silent_after_first:
                self.caches.suppressed.add(device)
        first = EVENT_CODE.of(why.event) | device | why.flags | EVENT_RW.of(write)
        if pasid is not None:
            first |= EVENT_GN.mask | EVENT_DOMAIN.of(pasid) | EVENT_PASID_HIGH.of(pasid >> 16)
        elif entry is not None and why.event is not Event.ILLEGAL_DEV_TABLE_ENTRY:
            first |= EVENT_DOMAIN.of(entry.domain)
        self._log(first, iova)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _entry(self, device: int) -> DeviceEntry | Refusal:
        """A device's entry, from the cache or the table."""
        entry = self.caches.entries.get(device)
        if entry is not None:
            return entry
        if device * DTE_SIZE >= TABLE_SIZE.get(self._device_table) + 1 << 12:
            return ILLEGAL_ENTRY
        address = (BASE_ADDRESS.get(self._device_table) << 12) + device * DTE_SIZE
        if not self.memory.holds(address, DTE_SIZE):
            return NO_TABLE
        entry = decode(int.from_bytes(self.memory.read(address, DTE_SIZE), "little"), self.features)
        self.caches.entries[device] = entry
        return entry

    def _excluded(self, entry: DeviceEntry, iova: int) -> bool:
        """Whether the exclusion range lets an untranslated address through (2.2.2.3, MMIO Offset 0020h)."""
        base = self._exclusion_base
        if not base & EXCLUSION_EN.mask or not (entry.excluded or base & EXCLUSION_ALLOW.mask):
            return False
        return base & BASE_ADDRESS.mask <= iova <= self._exclusion_limit | 0xFFF

    def _settle(self, entry: DeviceEntry) -> Refusal | bool:
        """Whether a device's requests go through page tables: a refusal, False for pass-through, True for tables."""
        if not entry.translated:
            return BLOCKED
        if entry.gcr3 is not None:
            return True if self._control & GT_EN.mask else ILLEGAL_ENTRY
        return entry.mode > 0

    def translate(self, requester: int, iova: int, *, write: bool, pasid: int | None = None) -> int | None:
        """What becomes of one request."""
        if not self._control & IOMMU_EN.mask:
            return iova
        entry = self._entry(requester)
        if isinstance(entry, Refusal):
            self._refuse(requester, None, iova, entry, write=write, pasid=pasid)
            return None
        if not entry.valid:
            return iova
        if entry.illegal:
            self._refuse(requester, entry, iova, ILLEGAL_ENTRY_RESERVED, write=write, pasid=pasid)
            return None
        if any(first <= iova <= last for first, last in self._stopped):
            return None  # interrupts and HyperTransport's own requests: no memory there, and no fault
        if self._excluded(entry, iova):
            return iova
        tables = self._settle(entry)
        wanted = WRITE if write else READ
        answer: tuple[int, int] | Refusal
        if tables is True:
            answer = self._through_tables(entry, iova, write=write, pasid=pasid)
        elif tables is False:
            answer = (iova, PRESENT | READ | WRITE) if entry.allow & wanted else BLOCKED
        else:
            answer = tables
        if isinstance(answer, tuple):
            if answer[1] & entry.allow & wanted:
                return answer[0]
            answer = PERMISSION if answer[1] & PRESENT else NOT_PRESENT
        self._refuse(requester, entry, iova, answer, write=write, pasid=pasid)
        return None

    def _through_tables(self, entry: DeviceEntry, iova: int, *, write: bool, pasid: int | None) -> tuple[int, int] | Refusal:
        """Physical address and permissions, from the TLB or by a walk that it remembers."""
        tag = self._tag(entry, pasid)
        if isinstance(tag, Refusal):
            return tag
        caches = self.caches
        known = caches.translations.lookup(tag, iova)
        if known is not None:
            return known
        directory = caches.directory(tag)
        found: Translation | Refusal
        if tag[1] is None:
            found = walk_host(self.memory, entry.root, entry.mode, iova, directory)
        else:
            root = self._guest_root(entry, tag[1])
            found = root if isinstance(root, Refusal) else walk_guest(self.memory, root, iova, directory, write=write)
        if isinstance(found, Refusal):
            if found.cacheable and self._np_cache:
                caches.translations.insert(tag, iova, 12, 0, 0)
            return found
        inside = iova & (1 << found.shift) - 1
        caches.translations.insert(tag, iova - inside, found.shift, found.base, found.allow | PRESENT)
        return found.base + inside, found.allow | PRESENT

    def _tag(self, entry: DeviceEntry, pasid: int | None) -> Tag | Refusal:
        """Under what a request's translations are kept."""
        if entry.gcr3 is None:
            return (entry.domain, None) if pasid is None else NOT_PRESENT
        if pasid is None and not entry.without_pasid:
            return NOT_PRESENT
        return entry.domain, pasid or 0

    def _guest_root(self, entry: DeviceEntry, pasid: int) -> int | Refusal:
        assert entry.gcr3 is not None
        return guest_root(self.memory, entry.gcr3, entry.gcr3_levels, pasid)

    # ---- many requests -----------------------------------------------------------------------------------------------

    def translate_many(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None = None) -> Addresses:
        """What becomes of many requests of one device."""
        if not self._control & IOMMU_EN.mask:
            return iovas.copy()
        entry = self._entry(requester)
        usable = isinstance(entry, DeviceEntry) and entry.valid and not entry.illegal and self._settle(entry) is True
        tag = self._tag(entry, pasid) if usable and isinstance(entry, DeviceEntry) else NOT_PRESENT
        if isinstance(entry, DeviceEntry) and not entry.valid:
            return iovas.copy()
        if isinstance(entry, Refusal) or isinstance(tag, Refusal):
            return self._one_by_one(requester, iovas, write=write, pasid=pasid)
        plain = self._ordinary(entry, iovas)
        if not plain.all():
            physical = np.empty(iovas.shape, np.uint64)
            physical[~plain] = self._one_by_one(requester, iovas[~plain], write=write, pasid=pasid)
            physical[plain] = self._many_through_tables(requester, entry, tag, iovas[plain], write=write, pasid=pasid)
            return physical
        return self._many_through_tables(requester, entry, tag, iovas, write=write, pasid=pasid)

    def _one_by_one(self, requester: int, iovas: Addresses, *, write: bool, pasid: int | None) -> Addresses:
        answers = [self.translate(requester, iova, write=write, pasid=pasid) for iova in iovas.tolist()]
        unmapped = int(UNMAPPED)
        return np.array([unmapped if answer is None else answer for answer in answers], dtype=np.uint64)

    def _ordinary(self, entry: DeviceEntry, iovas: Addresses) -> NDArray[np.bool_]:
        """Which addresses are translated: neither in a window nor excluded."""
        windows = list(self._stopped)
        if self._excluded(entry, self._exclusion_base & BASE_ADDRESS.mask):
            windows.append((self._exclusion_base & BASE_ADDRESS.mask, self._exclusion_limit | 0xFFF))
        plain = np.ones(iovas.shape, np.bool_)
        for first, last in windows:
            plain &= iovas - np.uint64(first) > np.uint64(last - first)  # below first it wraps around
        return plain

    def _many_through_tables(
        self, requester: int, entry: DeviceEntry, tag: Tag, iovas: Addresses, *, write: bool, pasid: int | None
    ) -> Addresses:
        translations = self.caches.translations
        hits, physical, allow = translations.lookup_many(tag, iovas)
        refused: list[tuple[Refusal, int]] = []
        missed = np.flatnonzero(~hits) if hits.any() else np.arange(len(iovas))
        if len(missed):
            asked = iovas if len(missed) == len(iovas) else iovas[missed]
            found = self._walk_many(entry, tag, asked, write=write)
            if len(missed) == len(iovas):
                physical, allow = found.physical, found.allow | np.uint8(PRESENT)
            else:
                physical[missed] = found.physical
                allow[missed] = found.allow | np.uint8(PRESENT)
            self._remember(tag, asked, found)
            for why, which in found.refused:
                allow[missed[which]] = 0
                refused += [(why, int(at)) for at in missed[which][: self._room()]]
        wanted = np.uint8((WRITE if write else READ) & entry.allow)
        stopped = allow & wanted == 0
        if stopped.any():
            reasons = {at: why for why, at in refused}
            for at in np.flatnonzero(stopped)[: self._room()].tolist():
                why = reasons.get(at, PERMISSION if allow[at] & PRESENT else NOT_PRESENT)
                self._refuse(requester, entry, int(iovas[at]), why, write=write, pasid=pasid)
            physical[stopped] = UNMAPPED
        return physical

    def _room(self) -> int:
        """More requests than this would find the log full."""
        return self.events.size // 16 + 1

    def _walk_many(self, entry: DeviceEntry, tag: Tag, iovas: Addresses, *, write: bool) -> Found:
        directory = self.caches.directory(tag)
        if tag[1] is None:
            return walk_host_many(self.memory, entry.root, entry.mode, iovas, directory)
        root = self._guest_root(entry, tag[1])
        if not isinstance(root, Refusal):
            return walk_guest_many(self.memory, root, iovas, directory, write=write)
        nothing = Found.nothing(len(iovas))
        nothing.refused.append((root, np.arange(len(iovas))))
        return nothing

    def _remember(self, tag: Tag, iovas: Addresses, found: Found) -> None:
        """Keep what a walk has found; in the order of sizes, as the TLB has no other among requests in flight together."""
        translations = self.caches.translations
        tail = slice(-translations.capacity, None)
        shifts = found.shift[tail]
        for shift in np.flatnonzero(np.bincount(shifts)).tolist():
            chosen = shifts == shift
            some = iovas[tail][chosen]
            if shift:
                allow = found.allow[tail][chosen] | np.uint8(PRESENT)
                translations.insert_many(tag, shift, some, found.physical[tail][chosen], allow)
        if self._np_cache:
            for why, which in found.refused:
                if why.cacheable:
                    some = iovas[which][tail]
                    translations.insert_many(tag, 12, some, some, np.zeros(len(some), np.uint8))
