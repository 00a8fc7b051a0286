"""Realistic mistakes of an s390 driver, for trying out whether the suite sees them.

Most sit between the driver and its instructions: a mistake replaces the function's ``instructions`` once the unit has been started.
Others give a domain another format of tables, or leave something out of what a hook does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from iommukit.device import Unit
from iommukit.domain import Domain
from iommukit.hookspecs import Mistake, hookimpl
from iommukit.hw.bus import Completion, PciInstructions
from iommukit.hw.format import Entry, Format, Level
from iommukit.hw.passing import PassingInstructions
from iommukit_s390.functions import PAGE, Function
from iommukit_s390.layout import CC_DONE, FIB_IOTA, FIB_LIMIT, PROTECT, Control
from iommukit_s390.tables import PagingDomain, ZpciFormat
from iommukit_s390.zpci import refresh

Hook = Generator[None, Any, Any]
"""A wrapper: it yields once, to let the driver do its work."""


class Instructions(PassingInstructions):
    """The machine's instructions: what mistakes are made of."""

    def __init__(self, real: PciInstructions, function: Function) -> None:
        super().__init__(real)
        self.function = function
        self.wrong = False
        """The mistake is being made."""


class Quiet(Instructions):
    """RPCIT does nothing while the mistake is being made."""

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """Say that it was done."""
        return Completion(CC_DONE) if self.wrong else super().refresh_translations(handle, address, size)


class Half(Instructions):
    """RPCIT for the first half of the range."""

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """One page at least."""
        if self.wrong:
            size = max(size // 2 & -PAGE, PAGE)
        return super().refresh_translations(handle, address, size)


class Misdirected(Instructions):
    """RPCIT with the handle of the machine's next function."""

    def refresh_translations(self, handle: int, address: int, size: int) -> Completion:
        """The next function's, which may not even have a translation."""
        if self.wrong:
            functions = self.function.siblings
            other = functions[(functions.index(self.function) + 1) % len(functions)]
            assert other.hardware is not None
            handle = other.hardware.handle
        return super().refresh_translations(handle, address, size)


class Stale(Instructions):
    """Registers the anchor of the first domain again and again."""

    first: bytes = b""

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """What was registered first is what is registered."""
        if operation == Control.REGISTER_TRANSLATION:
            anchor = slice(FIB_IOTA, FIB_IOTA + 8)
            self.first = self.first or block[anchor]
            block = block[: anchor.start] + self.first + block[anchor.stop :]
        return super().modify_controls(handle, operation, space, block)


class Short(Instructions):
    """Registers a range that ends a page too early."""

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """PAL less one page."""
        if operation == Control.REGISTER_TRANSLATION:
            (limit,) = struct.unpack_from(">Q", block, FIB_LIMIT)
            block = block[:FIB_LIMIT] + struct.pack(">Q", limit - PAGE) + block[FIB_LIMIT + 8 :]
        return super().modify_controls(handle, operation, space, block)


class Kept(Instructions):
    """Never deregisters: a new domain is registered over the old one."""

    registered = False

    def modify_controls(self, handle: int, operation: int, space: int, block: bytes) -> Completion:
        """Leave out the one, and make the other what the hardware takes then."""
        if operation == Control.DEREGISTER_TRANSLATION:
            return Completion(CC_DONE)
        if operation == Control.REGISTER_TRANSLATION:
            operation = Control.REREGISTER_TRANSLATION if self.registered else operation
            self.registered = True
        return super().modify_controls(handle, operation, space, block)


class WrongInstructions:
    """Puts wrong instructions under each function, once the driver has started it."""

    instructions: type[Instructions] = Instructions

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Hook:
        """Replace what the driver uses."""
        answer = yield
        hardware = unit.state.hardware
        hardware.instructions = self.instructions(hardware.instructions, unit.state)
        return answer


@contextmanager
def _wrong(domain: Domain, functions: slice = slice(None)) -> Iterator[None]:
    """Let some of a domain's functions make their mistake."""
    assert isinstance(domain, PagingDomain)
    made = [function.hardware.instructions for function in domain.functions[functions] if function.hardware is not None]
    for instructions in made:
        assert isinstance(instructions, Instructions)
        instructions.wrong = True
    try:
        yield
    finally:
        for instructions in made:
            instructions.wrong = False  # type: ignore[attr-defined]


class NoRefreshAfterMap(WrongInstructions):
    """A driver that takes every machine for one without a hypervisor."""

    instructions = Quiet

    @hookimpl(wrapper=True)
    def iotlb_sync_map(self, domain: Domain) -> Hook:
        """Without RPCIT."""
        with _wrong(domain):
            return (yield)


class WrongAfterUnmap(WrongInstructions):
    """A driver whose refresh after an unmap is wrong."""

    functions = slice(None)

    @hookimpl(wrapper=True)
    def iotlb_sync(self, domain: Domain) -> Hook:
        """With the wrong RPCIT."""
        with _wrong(domain, self.functions):
            return (yield)


class HalfAfterUnmap(WrongAfterUnmap):
    """Half of the range."""

    instructions = Half


class MisdirectedAfterUnmap(WrongAfterUnmap):
    """The next function."""

    instructions = Misdirected


class FirstFunctionOnly(WrongAfterUnmap):
    """All functions of the domain but the first are left out."""

    instructions = Quiet
    functions = slice(1, None)


class RefreshBeforeUnmap(WrongAfterUnmap):
    """RPCIT comes before the entries are invalidated, and not after."""

    instructions = Quiet

    @hookimpl(wrapper=True)
    def unmap_pages(self, domain: PagingDomain, iova: int, pgsize: int, pgcount: int) -> Hook:
        """Too early."""
        for function in domain.functions:
            refresh(function, iova, pgsize * pgcount)
        return (yield)


class NoFlush(WrongInstructions):
    """``flush_iotlb_all`` does nothing: the flush queue frees addresses that are still translated."""

    instructions = Quiet

    @hookimpl(wrapper=True)
    def flush_iotlb_all(self, domain: Domain) -> Hook:
        """Without RPCIT."""
        with _wrong(domain):
            return (yield)


class StaleAnchor(WrongInstructions):
    """The first domain's tables for ever."""

    instructions = Stale


class ShortRange(WrongInstructions):
    """A range that lacks its last page."""

    instructions = Short


class NeverBlocked(WrongInstructions):
    """Tables that stay registered."""

    instructions = Kept


class WrongTables:
    """Gives each domain another format of tables."""

    format: Format = ZpciFormat()

    @hookimpl(wrapper=True)
    def domain_alloc(self) -> Hook:
        """Replace the format before anything is mapped."""
        domain = yield
        if isinstance(domain, PagingDomain):
            domain.table.format = self.format
        return domain


class _Protected(ZpciFormat):
    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """P is set whatever was asked for."""
        return super().leaf(level, pgsize, prot) | PROTECT


class _Unprotected(ZpciFormat):
    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """P is never set."""
        return super().leaf(level, pgsize, prot) & ~PROTECT


class _Zeroed(ZpciFormat):
    levels = (Level(ZpciFormat.levels[0].shift, ZpciFormat.levels[0].bits, 0), *ZpciFormat.levels[1:])

    def present(self, entry: Entry, level: int) -> Entry:
        """Zeros are taken for nothing."""
        return super().present(entry, level) & (entry != 0)


class AlwaysProtected(WrongTables):
    """Pages that no device can write."""

    format = _Protected()


class NeverProtected(WrongTables):
    """Pages that every device can write."""

    format = _Unprotected()


class ZeroedTables(WrongTables):
    """Page tables of zeros, which map the first frame of memory 256 times."""

    format = _Zeroed()


def _mistake(name: str, rule: str, sentence: str, wrapper: Callable[[], object], unseen: str = "") -> Mistake:
    return Mistake(name=f"s390-{name}", sentence=sentence, rule=rule, wrapper=wrapper, unseen=unseen)


MISTAKES = (
    _mistake("no-refresh-after-map", "TLB-13", "under a hypervisor no RPCIT follows a map", NoRefreshAfterMap),
    _mistake("half-refresh", "TLB-02", "RPCIT after an unmap covers half of the range", HalfAfterUnmap),
    _mistake("other-handle", "TLB-01", "RPCIT after an unmap names another function's handle", MisdirectedAfterUnmap),
    _mistake("first-function-only", "TLB-16", "RPCIT reaches only the first function of a domain", FirstFunctionOnly),
    _mistake("refresh-before-unmap", "TLB-01", "RPCIT comes before the entries are invalidated", RefreshBeforeUnmap),
    _mistake("no-flush", "TLB-09", "flush_iotlb_all refreshes nothing", NoFlush),
    _mistake("stale-anchor", "ATTACH-06", "attaching registers the anchor of the function's first domain", StaleAnchor),
    _mistake("short-range", "ATTACH-16", "the registered range ends a page too early", ShortRange),
    _mistake("never-blocked", "ATTACH-01", "blocking a function leaves its tables registered", NeverBlocked),
    _mistake("always-protected", "PT-12", "the protection bit is set in writable pages too", AlwaysProtected),
    _mistake("never-protected", "PT-10", "the protection bit is not set in read-only pages", NeverProtected),
    _mistake("zeroed-tables", "TLB-20", "entries are cleared, not made invalid: they map the first frame", ZeroedTables),
)
