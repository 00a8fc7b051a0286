"""How the hardware walks tables for many addresses at once: level by level, all addresses together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.platform import Addresses
from iommukit_amd_vi.layout import (
    GUEST_A,
    GUEST_D,
    GUEST_P,
    GUEST_PS,
    GUEST_RW,
    GUEST_US,
    NEXT_LEVEL_SIZED,
    PTE_ADDRESS,
    PTE_PR,
    PTE_RESERVED,
)
from iommukit_amd_vi.model.device_table import READ, WRITE
from iommukit_amd_vi.model.walker import (
    GUEST_LEVELS,
    HOST_LEVELS,
    ILLEGAL_LEVEL,
    NOT_PRESENT,
    PERMISSION,
    RESERVED_BIT,
    UNREADABLE,
    Refusal,
    guest_directories_hold,
    host_directories_hold,
    level_shift,
)

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory
    from iommukit_amd_vi.model.caches import DirectoryCache

Indices = NDArray[np.intp]
Permissions = NDArray[np.uint8]

LARGE = 1 << 14
"""From so many addresses on it is cheaper to look whether the cached directories still hold than to look for each address's."""
PART = 1 << 15

_ADDRESS = np.uint64(PTE_ADDRESS.mask)
_ONE = np.uint64(1)


@dataclass(slots=True)
class Found:
    """What a walk has found, one element an address.

    ``physical`` is the address that is reached; ``shift`` the page's size as a power of two, 0 where there is no page; ``allow``
    a mask of permissions.  ``refused`` lists why: the refusal and the positions of the addresses.
    """

    physical: Addresses
    shift: NDArray[np.uint8]
    allow: Permissions
    refused: list[tuple[Refusal, Indices]]

    @classmethod
    def nothing(cls, count: int) -> Found:
        """For ``count`` addresses of which nothing is known yet."""
        return cls(np.zeros(count, np.uint64), np.zeros(count, np.uint8), np.zeros(count, np.uint8), [])


@dataclass(frozen=True, slots=True)
class _Group:
    """Addresses that are at a table of the same level: positions, addresses, tables and permissions so far."""

    which: Indices
    iovas: Addresses
    tables: Addresses
    allow: Permissions

    def part(self, chosen: Any) -> _Group:
        return _Group(self.which[chosen], self.iovas[chosen], self.tables[chosen], self.allow[chosen])


class _Walk:
    """One walk of many addresses."""

    def __init__(self, memory: PhysicalMemory, iovas: Addresses, cache: DirectoryCache) -> None:
        self.memory = memory
        self.cache = cache
        self.found = Found.nothing(len(iovas))
        self.groups: dict[int, list[_Group]] = {}

    def begin(self, iovas: Addresses, level: int, root: int, *, fresh: bool) -> None:
        """Put all addresses where the walk begins: the deepest table that is cached, else the root.

        ``fresh``: all that is cached is what a walk from the root would find, and need not be looked up.
        """
        left = np.arange(len(iovas))
        beyond = level_shift(level + 1)
        if beyond < 64:
            outside = iovas >> np.uint64(beyond) != 0
            if outside.any():
                self.refuse(NOT_PRESENT, left[outside])
                left = left[~outside]
        rest = iovas if len(left) == len(iovas) else iovas[left]
        known = () if fresh else self.cache.deepest_many(iovas)
        for at, hits, tables, allow in known:
            chosen = hits[left]
            if chosen.any():
                picked = left[chosen]
                self.groups.setdefault(at, []).append(_Group(picked, iovas[picked], tables[picked], allow[picked]))
                left = left[~chosen]
                rest = iovas[left]
        start = _Group(left, rest, np.full(len(left), root, np.uint64), np.full(len(left), READ | WRITE, np.uint8))
        self.groups.setdefault(level, []).append(start)

    def refuse(self, why: Refusal, which: Indices) -> None:
        """Note that addresses have no translation."""
        if len(which):
            self.found.refused.append((why, which))

    def drop(self, group: _Group, entries: Addresses, bad: NDArray[np.bool_], why: Refusal) -> tuple[_Group, Addresses]:
        """Refuse some of a group; the others and their entries are returned."""
        if not bad.any():
            return group, entries
        self.refuse(why, group.which[bad])
        return group.part(~bad), entries[~bad]

    def entries(self, level: int, group: _Group) -> tuple[_Group, Addresses, Indices]:
        """The entries that a group meets at its level, and where they are among the memory's words."""
        memory = self.memory
        index = group.iovas >> np.uint64(level_shift(level))
        index &= np.uint64(511)
        index += group.tables - np.uint64(memory.base) >> np.uint64(3)
        at = index.view(np.int64)
        if len(at) and (int(at.max()) >= len(memory.words) or int(at.min()) < 0):
            outside = (at < 0) | (at >= len(memory.words))
            self.refuse(UNREADABLE, group.which[outside])
            group, at = group.part(~outside), at[~outside]
        return group, memory.words.take(at), at

    def reach(self, group: _Group, entries: Addresses, shift: int | NDArray[np.uint64]) -> None:
        """Note the pages of a group; ``shift`` is their size."""
        inside = np.left_shift(_ONE, np.asarray(shift, np.uint64)) - _ONE
        base = entries & _ADDRESS
        if isinstance(shift, int) and shift == 12:
            physical = base | group.iovas & inside
        else:
            physical = base & ~inside | group.iovas & inside
        found = self.found
        if len(group.which) == len(found.physical):
            found.physical, found.allow = physical, group.allow
            found.shift[:] = shift
        else:
            found.physical[group.which] = physical
            found.allow[group.which] = group.allow
            found.shift[group.which] = shift

    def descend(self, group: _Group, entries: Addresses, level: int) -> None:
        """Go on to tables of ``level``."""
        if not len(group.which):
            return
        tables = entries & _ADDRESS
        self.cache.keep_many(level, group.iovas, tables, group.allow)
        self.groups.setdefault(level, []).append(_Group(group.which, group.iovas, tables, group.allow))

    def run(self, top: int, step: Callable[[_Walk, int, _Group], None]) -> Found:
        """Take all groups down to the leaves."""
        for level in range(top, 0, -1):
            for group in self.groups.pop(level, ()):
                if len(group.which):
                    step(self, level, group)
        return self.found


def _in_parts(iovas: Addresses, fresh: bool, walk: Callable[[Addresses, bool], Found]) -> Found:
    """Walk for a part of the addresses after another, so that what is computed stays in the processor's cache."""
    if len(iovas) <= PART:
        return walk(iovas, fresh)
    whole = Found.nothing(len(iovas))
    for at in range(0, len(iovas), PART):
        part, here = walk(iovas[at : at + PART], fresh), slice(at, at + PART)
        whole.physical[here], whole.shift[here], whole.allow[here] = part.physical, part.shift, part.allow
        whole.refused += [(why, which + at) for why, which in part.refused]
    return whole


def walk_host_many(memory: PhysicalMemory, root: int, mode: int, iovas: Addresses, cache: DirectoryCache) -> Found:
    """``walk_host`` for many addresses."""

    def part(iovas: Addresses, fresh: bool) -> Found:
        walk = _Walk(memory, iovas, cache)
        walk.begin(iovas, mode, root, fresh=fresh)
        return walk.run(mode, _host_step)

    return _in_parts(iovas, len(iovas) >= LARGE and host_directories_hold(memory, root, mode, cache), part)


def _host_step(walk: _Walk, level: int, group: _Group) -> None:
    group, entries, _ = walk.entries(level, group)
    group, entries = walk.drop(group, entries, entries & np.uint64(PTE_PR.mask) == 0, NOT_PRESENT)
    group, entries = walk.drop(group, entries, entries & np.uint64(PTE_RESERVED.mask) != 0, RESERVED_BIT)
    allow = (entries >> np.uint64(61)).astype(np.uint8)
    allow &= group.allow
    group = _Group(group.which, group.iovas, group.tables, allow)
    below = entries >> np.uint64(9) & np.uint64(7)
    plain = below == 0
    if plain.all() and level < HOST_LEVELS:
        walk.reach(group, entries, level_shift(level))
        return
    usual = below == level - 1
    if level > 1 and usual.all():
        walk.descend(group, entries, level - 1)
        return
    sized = below == NEXT_LEVEL_SIZED
    leaf = plain | sized
    if level < HOST_LEVELS:
        walk.reach(group.part(plain), entries[plain], level_shift(level))
        _reach_sized(walk, level, group.part(sized), entries[sized])
        illegal = ~leaf & (below >= level)
    else:
        illegal = leaf | (below >= level)
    walk.refuse(ILLEGAL_LEVEL, group.which[illegal])
    for target in range(level - 1, 0, -1):
        chosen = below == target
        if chosen.any():
            part, some = group.part(chosen), entries[chosen]
            skipped = part.iovas >> np.uint64(level_shift(target + 1)) & np.uint64((1 << 9 * (level - 1 - target)) - 1)
            part, some = walk.drop(part, some, skipped != 0, NOT_PRESENT)
            walk.descend(part, some, target)


def _reach_sized(walk: _Walk, level: int, group: _Group, entries: Addresses) -> None:
    """Pages whose size is coded in the address."""
    if not len(entries):
        return
    address = entries >> np.uint64(PTE_ADDRESS.low)
    lowest_zero = ~address & address + _ONE
    # A power of two is exact as a float, and its exponent is the position of the bit.
    shift = np.uint64(PTE_ADDRESS.low) + np.frexp(lowest_zero.astype(np.float64))[1].astype(np.uint64)
    own = level_shift(level)
    bad = (shift <= own) | (shift >= own + 9)
    if bad.any():
        walk.refuse(ILLEGAL_LEVEL, group.which[bad])
        group, entries, shift = group.part(~bad), entries[~bad], shift[~bad]
    walk.reach(group, entries, shift)


def walk_guest_many(memory: PhysicalMemory, root: int, iovas: Addresses, cache: DirectoryCache, *, write: bool) -> Found:
    """``walk_guest`` for many addresses."""

    def step(walk: _Walk, level: int, group: _Group) -> None:
        _guest_step(walk, level, group, write)

    def part(iovas: Addresses, fresh: bool) -> Found:
        walk = _Walk(memory, iovas, cache)
        walk.begin(iovas, GUEST_LEVELS, root, fresh=fresh)
        return walk.run(GUEST_LEVELS, step)

    return _in_parts(iovas, len(iovas) >= LARGE and guest_directories_hold(memory, root, cache), part)


def _guest_step(walk: _Walk, level: int, group: _Group, write: bool) -> None:
    group, entries, at = walk.entries(level, group)
    there = entries & np.uint64(GUEST_P.mask | GUEST_US.mask) == np.uint64(GUEST_P.mask | GUEST_US.mask)
    if not there.all():
        absent = entries & np.uint64(GUEST_P.mask) == 0
        walk.refuse(NOT_PRESENT, group.which[absent])
        walk.refuse(PERMISSION, group.which[~absent & ~there])
        group, entries, at = group.part(there), entries[there], at[there]
    allow = np.where(entries & np.uint64(GUEST_RW.mask), group.allow, group.allow & np.uint8(READ))
    group = _Group(group.which, group.iovas, group.tables, allow)
    leaf = entries & np.uint64(GUEST_PS.mask) != 0 if level > 1 else np.ones(len(entries), np.bool_)
    if level > 3:
        walk.refuse(RESERVED_BIT, group.which[leaf])
        group, entries, at, leaf = group.part(~leaf), entries[~leaf], at[~leaf], leaf[~leaf]
    seen = np.full(len(entries), GUEST_A.mask, np.uint64)
    if write:
        seen[leaf & (group.allow & WRITE != 0)] |= np.uint64(GUEST_D.mask)
    unseen = entries & seen != seen
    if unseen.any():
        walk.memory.words[at[unseen]] = entries[unseen] | seen[unseen]
    if leaf.any():
        walk.reach(group.part(leaf), entries[leaf], level_shift(level))
    if not leaf.all():
        walk.descend(group.part(~leaf), entries[~leaf], level - 1)
