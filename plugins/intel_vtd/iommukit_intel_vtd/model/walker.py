"""The hardware's walk of page tables, one address at a time (VT-d specification 3.6, 3.7, 9.7, 9.8).

Upper entries that were read are kept in paging-structure caches (6.2.4), apart from finished translations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iommukit.errors import InputError
from iommukit.hw.memory import TableReader
from iommukit_intel_vtd.capabilities import DT, FS1GP, SC, SSLPS, Capabilities
from iommukit_intel_vtd.layout import Reason
from iommukit_intel_vtd.model.contexts import Route, Use

READ, WRITE, DIRTY = 1, 2, 4
"""Permissions as the caches keep them.  ``DIRTY``: a write need not set the leaf's dirty bit first."""
PAGE_SIZE = 1 << 7
"""PS: the entry maps a page of its level."""
SNOOP, TRANSIENT = 1 << 11, 1 << 62
USER, ACCESSED, DIRTIED = 1 << 2, 1 << 5, 1 << 6
NO_EXECUTE = 1 << 63


def _bits(high: int, low: int) -> int:
    return (1 << high + 1) - (1 << low)


class Stopped(Exception):
    """A walk that ends without a translation.

    ``absent``: at an entry that is not present or bad, which caching mode lets the unit remember; else the entry is good, but does
    not allow the request.
    """

    def __init__(self, reason: Reason, *, absent: bool = True) -> None:
        self.reason = reason
        self.absent = absent


@dataclass(frozen=True, slots=True)
class Stage:
    """How one stage's entries are read.  Masks are by level: 1 for the tables whose entries map 4 KiB."""

    first: bool
    leaf: tuple[int, ...]
    """The bit that makes an entry a page; 0 where entries never are, and at level 1, where all are."""
    reserved_table: tuple[int, ...]
    reserved_page: tuple[int, ...]
    root_access: Reason
    access: Reason
    """Of a table that is not in memory: the first one, which the device's entry names, and those below it."""
    reserved: Reason
    absent: tuple[Reason, Reason]
    """Of a read and of a write that meet an entry that is not present."""
    refused: tuple[Reason, Reason]
    """Of a read and of a write that an entry does not allow."""


LEVELS = range(6)
LEGACY_REFUSED = (Reason.NO_READ, Reason.NO_WRITE)
SCALABLE_REFUSED = (Reason.SM_NO_READ, Reason.SM_NO_WRITE)


def second_stage(words: Capabilities, address_bits: int, legacy: bool) -> Stage:
    """Second stage (9.8): R 0, W 1, PS 7, SNP 11, address HAW-1:12, TM 62; what lies above HAW is reserved up to bit 51."""
    sizes = words.get(SSLPS)
    large = [level in (2, 3) and bool(sizes >> level - 2 & 1) for level in LEVELS]
    beyond = _bits(51, address_bits)
    snoop = 0 if words.has(SC) else SNOOP
    transient = 0 if words.has(DT) else TRANSIENT
    refused = LEGACY_REFUSED if legacy else SCALABLE_REFUSED
    return Stage(
        first=False,
        leaf=tuple(PAGE_SIZE if large[level] else 0 for level in LEVELS),
        reserved_table=tuple(beyond | SNOOP | TRANSIENT | (0 if large[level] else PAGE_SIZE) for level in LEVELS),
        reserved_page=tuple(beyond | snoop | transient | (_bits(2 + 9 * level, 12) if large[level] else 0) for level in LEVELS),
        root_access=Reason.CONTEXT_INVALID if legacy else Reason.SS_ROOT_ACCESS,
        access=Reason.TABLE_ACCESS if legacy else Reason.SS_ACCESS,
        reserved=Reason.ENTRY_RESERVED if legacy else Reason.SS_RESERVED,
        absent=refused,
        refused=refused,
    )


def first_stage(words: Capabilities, address_bits: int, no_execute: bool) -> Stage:
    """First stage (9.7): P 0, R/W 1, U/S 2, A 5, D 6, PS 7, address HAW-1:12, XD 63; bit 12 of a large page is PAT."""
    large = [level == 2 or (level == 3 and words.has(FS1GP)) for level in LEVELS]
    beyond = _bits(51, address_bits) | (0 if no_execute else NO_EXECUTE)
    return Stage(
        first=True,
        leaf=tuple(PAGE_SIZE if large[level] else 0 for level in LEVELS),
        reserved_table=tuple(beyond | (0 if large[level] else PAGE_SIZE) for level in LEVELS),
        reserved_page=tuple(beyond | (_bits(2 + 9 * level, 13) if large[level] else 0) for level in LEVELS),
        root_access=Reason.FS_ROOT_ACCESS,
        access=Reason.FS_ACCESS,
        reserved=Reason.FS_RESERVED,
        absent=(Reason.FS_ABSENT, Reason.FS_ABSENT),
        refused=SCALABLE_REFUSED,
    )


class Stages:
    """The formats of one unit's page tables."""

    def __init__(self, words: Capabilities, address_bits: int) -> None:
        self.address = _bits(address_bits - 1, 12)
        """The address bits of an entry."""
        self._stages = {
            (Use.SECOND, True, False): second_stage(words, address_bits, True),
            (Use.SECOND, False, False): second_stage(words, address_bits, False),
            (Use.FIRST, False, False): first_stage(words, address_bits, False),
            (Use.FIRST, False, True): first_stage(words, address_bits, True),
        }

    def of(self, route: Route) -> Stage:
        """The format of a route's tables."""
        return self._stages[route.use, route.legacy, route.no_execute]


@dataclass(frozen=True, slots=True)
class Found:
    """One entry on a walk: its level and address, the entry, whether it is a page, and the permissions so far."""

    level: int
    address: int
    entry: int
    leaf: bool
    allowed: int


def entry_shift(level: int) -> int:
    """How many address bits an entry of a level covers."""
    return 3 + 9 * level


def descend(
    memory: TableReader, stages: Stages, route: Route, iova: int, write: bool, *, level: int = 0, table: int = 0, allowed: int = 3
) -> Iterator[Found]:
    """The entries of a walk for a request, from the route's root or from a ``table`` of ``level`` on.  Raises ``Stopped``."""
    stage = stages.of(route)
    if not level:
        level, table = route.levels, route.root
    needed = WRITE if write else READ
    while True:
        address = table + (iova >> 9 * level & 0xFF8)
        try:
            entry = memory.word(address)
        except InputError:
            raise Stopped(stage.root_access if level == route.levels else stage.access) from None
        leaf = level == 1 or bool(entry & stage.leaf[level])
        if stage.first:
            if not entry & 1:
                raise Stopped(stage.absent[write])
        elif not entry & needed:
            raise Stopped(stage.refused[write], absent=not entry & (READ | WRITE))
        if entry & (stage.reserved_page if leaf else stage.reserved_table)[level]:
            raise Stopped(stage.reserved)
        if stage.first:
            if not entry & USER:
                raise Stopped(Reason.FS_SUPERVISOR)
            if write and not entry & WRITE:
                raise Stopped(stage.refused[write], absent=False)
            allowed &= entry & WRITE | READ
        else:
            allowed &= entry & (READ | WRITE)
        yield Found(level, address, entry, leaf, allowed)
        if leaf:
            return
        table, level = entry & stages.address, level - 1
