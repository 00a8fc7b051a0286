"""Realistic mistakes in using this hardware, each as a plugin of hook wrappers around the right driver.

Some sit between the driver and the bus, and change, or keep back, what the driver has put into the invalidation queue; the others
spoil entries that the driver has written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from iommukit.device import Device, Unit
from iommukit.domain import Domain
from iommukit.hookspecs import Mistake, hookimpl
from iommukit.hw import passing as hw
from iommukit.hw.passing import MeddlingBus
from iommukit_intel_vtd.capabilities import FRO
from iommukit_intel_vtd.domains import PagingDomain
from iommukit_intel_vtd.invalidation import Request, context_global, iotlb_domain, iotlb_global
from iommukit_intel_vtd.layout import IH, IQA_DW, IQA_QS, PAGE, WAIT_SW, Descriptor, Granularity, Reg
from iommukit_intel_vtd.remapping import RemappingUnit

if TYPE_CHECKING:
    from iommukit.hw.bus import Bus

Steps = Generator[None, Any, Any]
"""A hook wrapper, as pluggy has it."""

NOTHING: Request = iotlb_domain(0xFFFF)
"""A descriptor without effect: the last domain id, which nobody uses."""
PAGES = {Descriptor.IOTLB: Granularity.SELECTIVE, Descriptor.PASID_IOTLB: Granularity.SELECTIVE}
"""Invalidations of pages: type, and granularity."""


def _kind(low: int) -> int:
    return low & 0xF


def _of_pages(low: int) -> bool:
    return _kind(low) in PAGES and low >> 4 & 3 == Granularity.SELECTIVE


class Meddler(MeddlingBus):
    """A bus that passes on what the driver does, but for what a mistake changes.

    ``alter`` sees each descriptor that the driver rings for, and answers what is in the queue instead.  While ``mute``, the tail
    register is not written at all, and the driver does not wait.
    """

    def __init__(self, bus: Bus, base: int, mistake: OnTheBus) -> None:
        super().__init__(bus)
        self._base = base
        self._mistake = mistake
        self._queue = 0
        self._tail = 0

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register, or do not."""
        register = address - self._base
        if register == Reg.IQA:
            self._queue, self._tail = value, 0
        elif register == Reg.IQT and self._queue:
            self._change(value)
            if self.mute:
                return
        elif self._mistake.drops(register):
            return
        super().write(address, size, value)

    def _change(self, tail: int) -> None:
        """Go through the descriptors up to the new tail."""
        memory = self.memory
        while self._tail != tail:
            at = (self._queue & -PAGE) + self._tail
            low, high = memory.word(at), memory.word(at + 8)
            if self.mute and _kind(low) == Descriptor.WAIT and low & WAIT_SW:
                memory.write(high, (low >> 32).to_bytes(4, "little"))
            low, high = self._mistake.alter(low, high)
            memory.set_word(at, low)
            memory.set_word(at + 8, high)
            step = 32 if self._queue & IQA_DW else 16
            self._tail = (self._tail + step) % (PAGE << (self._queue & IQA_QS))


class OnTheBus(hw.OnTheBus):
    """A meddler between the driver and each unit's bus."""

    def alter(self, low: int, high: int) -> Request:
        """What stands in the queue in the place of a descriptor."""
        return low, high

    def drops(self, register: int) -> bool:
        """Whether writes of a register are lost."""
        return False

    def meddler(self, unit: Unit, bus: Bus) -> Meddler:
        """One that knows where the unit's registers are."""
        return Meddler(bus, unit.state.drhd.address, self)


class WrongDomain(OnTheBus):
    """Off by one."""

    def alter(self, low: int, high: int) -> Request:
        """The id of the next domain."""
        return (low + (1 << 16), high) if _of_pages(low) else (low, high)


class MaskTooSmall(OnTheBus):
    """Half the range."""

    def alter(self, low: int, high: int) -> Request:
        """An address mask one too small."""
        return (low, high - 1) if _of_pages(low) and high & 0x3F else (low, high)


class LeavesOnly(OnTheBus):
    """A hint is a hint."""

    def alter(self, low: int, high: int) -> Request:
        """IH is always set."""
        return (low, high | IH) if _of_pages(low) else (low, high)


class StaleContext(OnTheBus):
    """The context table is memory like any other."""

    def alter(self, low: int, high: int) -> Request:
        """No device-selective context-cache invalidation, and in scalable mode none of the PASID cache."""
        selective = _kind(low) == Descriptor.CONTEXT and low >> 4 & 3 == Granularity.SELECTIVE
        pasid = _kind(low) == Descriptor.PASID_CACHE and low >> 4 & 3 == 1
        return NOTHING if selective or pasid else (low, high)


class StaleDomain(OnTheBus):
    """The context cache has been told, after all."""

    def alter(self, low: int, high: int) -> Request:
        """No domain-selective IOTLB invalidation when an entry is replaced."""
        return NOTHING if _kind(low) == Descriptor.IOTLB and low >> 4 & 3 == Granularity.DOMAIN else (low, high)


class TailNotRung(hw.QuietSync, OnTheBus):
    """The descriptors are in the queue."""


class AbsentStaysAbsent(hw.QuietSyncMap, OnTheBus):
    """A new entry needs no invalidation."""


class RecordsNeverCleared(OnTheBus):
    """Fault records are for reading."""

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Steps:
        """Know where they are."""
        self._records = unit.state.capabilities.get(FRO) * 16
        return (yield from super().start_unit(unit))

    def drops(self, register: int) -> bool:
        """F is not cleared, and FSTS neither."""
        return register == Reg.FSTS or register >= self._records


class _AfterMap(ABC):
    """Wrappers that spoil leaves once ``map_pages`` has written them."""

    @hookimpl(wrapper=True)
    def map_pages(self, domain: Domain, iova: int, pgsize: int, pgcount: int) -> Steps:
        """Change the leaf of each page, up to a table of them."""
        done = yield
        if isinstance(domain, PagingDomain) and domain.space is not None:
            table = domain.space.table
            for page in range(min(pgcount, 512)):
                _, address, value = table.entries(iova + page * pgsize)[-1]
                table.memory.set_word(address, self.spoil(value))
        return done

    @abstractmethod
    def spoil(self, value: int) -> int:
        """The wrong entry."""


class ReadOnly(_AfterMap):
    """One flag bit off."""

    def spoil(self, value: int) -> int:
        """No W."""
        return value & ~0b10


class SnoopBit(_AfterMap):
    """Snooping cannot be wrong."""

    def spoil(self, value: int) -> int:
        """SNP, which is reserved where ECAP.SC is clear."""
        return value | 1 << 11


class AddressBit(_AfterMap):
    """A frame number shifted by one too few."""

    def spoil(self, value: int) -> int:
        """The next page of memory, or a reserved bit of a large page."""
        return value ^ PAGE


class _AfterAttach:
    """Wrappers that look at a device's context entry around ``attach_dev``."""

    @staticmethod
    def contexts(device: Device) -> Iterator[tuple[Bus, int]]:
        """Bus and address of the legacy context entries of a device's requester ids."""
        assert device.unit is not None
        state = device.unit.state
        assert isinstance(state, RemappingUnit)
        if device.unit.bus is None or state.scalable:
            return
        bus = device.unit.bus
        root = bus.read(state.drhd.address + Reg.RTADDR, 8) & -PAGE
        for requester in state.platform.requesters_of(device):
            table = bus.memory.word(root + (requester >> 8) * 16)
            if table & 1:
                yield bus, (table & -PAGE) + (requester & 0xFF) * 16

    @staticmethod
    def forget(device: Device) -> None:
        """Have the unit forget all."""
        assert device.unit is not None
        device.unit.state.running.invalidation.submit(context_global(), iotlb_global())


class WidthOff(_AfterAttach):
    """Counts levels from 1."""

    @hookimpl(wrapper=True)
    def attach_dev(self, domain: Domain, device: Device) -> Steps:
        """An address width one too large: tables of one level more."""
        answer = yield
        for bus, at in self.contexts(device):
            if bus.memory.word(at) & 1:
                bus.memory.set_word(at + 8, bus.memory.word(at + 8) + 1)
        self.forget(device)
        return answer


class ClearedFirst(_AfterAttach):
    """Away with the old, then in with the new."""

    @hookimpl(wrapper=True)
    def attach_dev(self, domain: Domain, device: Device) -> Steps:
        """The entry is cleared, and that made known, before the new one is written."""
        for bus, at in self.contexts(device):
            bus.memory.set_word(at, bus.memory.word(at) & -2)
        self.forget(device)
        return (yield)


class PresentWhenBlocked(_AfterAttach):
    """Clears the domain id and forgets the present bit."""

    @hookimpl(wrapper=True)
    def set_dev_blocked(self, device: Device) -> Steps:
        """The entry is as it was."""
        before = [(bus, at, bus.memory.word(at), bus.memory.word(at + 8)) for bus, at in self.contexts(device)]
        answer = yield
        for bus, at, low, high in before if answer else ():
            bus.memory.set_word(at + 8, high)
            bus.memory.set_word(at, low)
        return answer


class OneIdForAll:
    """Domain ids are for statistics."""

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Steps:
        """All have the id 2."""
        answer = yield
        numbers = unit.state.running.numbers
        numbers.take = lambda: 2
        numbers.give = lambda number: None
        return answer


_NO_UPPER = "QEMU caches no upper entries"

MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "vtd-wrong-domain",
        "A page-selective IOTLB invalidation carries the id of the domain after the one that is meant.",
        "TLB-01",
        WrongDomain,
    ),
    Mistake("vtd-mask-too-small", "The address mask (AM) of an IOTLB invalidation is one too small.", "TLB-02", MaskTooSmall),
    Mistake("vtd-leaves-only", "The invalidation hint (IH) is set although tables have gone.", "TLB-18", LeavesOnly, _NO_UPPER),
    Mistake(
        "vtd-stale-context",
        "A context entry is replaced without a context-cache invalidation.",
        "ATTACH-06",
        StaleContext,
    ),
    Mistake(
        "vtd-stale-domain",
        "A domain's id is given back without an IOTLB invalidation of the domain.",
        "TLB-17",
        StaleDomain,
    ),
    Mistake(
        "vtd-tail-not-rung",
        "iotlb_sync puts its descriptors into the queue and does not write the tail.",
        "TLB-01",
        TailNotRung,
    ),
    Mistake(
        "vtd-absent-stays-absent",
        "A new mapping is not invalidated although the unit caches absent entries (CM).",
        "TLB-13",
        AbsentStaysAbsent,
        "QEMU caches no absent entries, whatever it says in CM",
    ),
    Mistake("vtd-records-never-cleared", "Fault records are read and never cleared.", "FAULT-07", RecordsNeverCleared),
    Mistake("vtd-read-only", "Leaf entries lack the W bit.", "PT-12", ReadOnly),
    Mistake("vtd-snoop-bit", "Leaf entries have SNP set, which is reserved in units without snoop control.", "PT-10", SnoopBit),
    Mistake("vtd-address-bit", "Leaf entries have the lowest address bit inverted.", "PT-02", AddressBit),
    Mistake("vtd-width-off", "Context entries have the address width of one level more than there is.", "ATTACH-08", WidthOff),
    Mistake(
        "vtd-cleared-first",
        "A context entry is cleared, and that made known, before the new one is written.",
        "ATTACH-11",
        ClearedFirst,
        "QEMU's devices have no direct regions",
    ),
    Mistake("vtd-present-when-blocked", "A blocked device keeps its context entry.", "ATTACH-14", PresentWhenBlocked),
    Mistake(
        "vtd-one-id",
        "All domains have the same domain id, by which the IOTLB tags them.",
        "ATTACH-07",
        OneIdForAll,
        "QEMU tags its cache by device as well",
    ),
)
