"""From a route and an address to memory: walks through paging-structure caches, alone or many at once (VT-d specification 6.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.tlb import FEW, Addresses, Permissions, Tlb
from iommukit_intel_vtd.layout import Reason
from iommukit_intel_vtd.model.contexts import Route
from iommukit_intel_vtd.model.walker import ACCESSED, DIRTIED, DIRTY, READ, USER, WRITE, Stages, Stopped, descend, entry_shift

if TYPE_CHECKING:
    from iommukit.hw.memory import PhysicalMemory

LEVEL = 4
"""In a paging-structure cache's permissions, lowest bit of the level of the table that the entry names."""
CHUNK = 1 << 14
"""So many walks are made side by side."""
SPREAD = 16
"""Addresses that lie in more regions than so many times their number are looked at one by one."""
LEARN = 512
"""Of these, so many of the last are kept in the paging-structure caches."""

REGION_BITS = 21
REGION = 1 << REGION_BITS
"""Bytes that one last-level table translates."""

Small = NDArray[np.uint8]


@dataclass(slots=True)
class Answers:
    """What became of many requests: physical addresses, permissions and page sizes as shifts; or a reason other than 0.

    ``absent`` is 1 where a walk ended at an entry that is not present or bad (``Stopped.absent``).
    """

    physical: Addresses
    permissions: Permissions
    shifts: Small
    reasons: Small
    absent: Small

    @classmethod
    def room(cls, count: int) -> Answers:
        """For ``count`` requests."""
        physical = np.zeros(count, dtype=np.uint64)
        return cls(physical, *(np.zeros(count, dtype=np.uint8) for _ in range(4)))

    def part(self, first: int, last: int) -> Answers:
        """A part of them, in place."""
        cut = slice(first, last)
        return Answers(self.physical[cut], self.permissions[cut], self.shifts[cut], self.reasons[cut], self.absent[cut])


class Translator:
    """One unit's page walks.

    ``structures`` keeps, by tag, the table and the permissions so far for each stretch of addresses that an upper entry covers.
    """

    def __init__(self, memory: PhysicalMemory, stages: Stages, capacity: int) -> None:
        self._memory = memory
        self._stages = stages
        self.structures = Tlb(capacity)

    # ---- one address -------------------------------------------------------------------------------------------------

    def walk(self, route: Route, iova: int, write: bool) -> tuple[int, int, int]:
        """The physical address, the permissions and the page's size (as a shift).  Raises ``Stopped``."""
        level = table = 0
        allowed = READ | WRITE
        known = self.structures.lookup(route.tag, iova)
        if known is not None:
            level = known[1] >> LEVEL
            table = known[0] - (iova & (1 << entry_shift(level + 1)) - 1)
            allowed = known[1] & (READ | WRITE)
        stage = self._stages.of(route)
        first = stage.first
        if not allowed & (WRITE if write else READ):
            raise Stopped(stage.refused[write], absent=False)
        for found in descend(self._memory, self._stages, route, iova, write, level=level, table=table, allowed=allowed):
            entry, shift = found.entry, entry_shift(found.level)
            if first:
                entry = self._use(route, found.address, entry, found.leaf and write)
            if found.leaf:
                break
            kept = found.allowed | found.level - 1 << LEVEL
            self.structures.insert(route.tag, iova & -(1 << shift), shift, entry & self._stages.address, kept)
        inside = (1 << shift) - 1
        dirty = DIRTY if not first or entry & DIRTIED else 0
        return entry & self._stages.address & ~inside | iova & inside, found.allowed | dirty, shift

    def _use(self, route: Route, address: int, entry: int, write: bool) -> int:
        """Set a first-stage entry's accessed bit, and its dirty bit for a write (3.6.2)."""
        used = entry | ACCESSED | (DIRTIED if write else 0)
        if used != entry:
            if not route.snooped:
                raise Stopped(Reason.FS_ACCESSED_UNSNOOPED)
            self._memory.set_word(address, used)
        return used

    # ---- many --------------------------------------------------------------------------------------------------------

    def walk_many(self, route: Route, iovas: Addresses, write: bool) -> Answers:
        """The same for many addresses."""
        answers = Answers.room(len(iovas))
        for at in range(0, len(iovas), CHUNK):
            part, room = iovas[at : at + CHUNK], answers.part(at, at + CHUNK)
            if len(part) < FEW:
                self._walk_few(route, part, write, room)
            else:
                self._walk_chunk(route, part, write, room)
        return answers

    def _walk_few(self, route: Route, iovas: Addresses, write: bool, answers: Answers) -> None:
        for at, iova in enumerate(iovas.tolist()):
            try:
                answers.physical[at], answers.permissions[at], answers.shifts[at] = self.walk(route, iova, write)
            except Stopped as stopped:
                answers.reasons[at], answers.absent[at] = stopped.reason, stopped.absent

    def _walk_chunk(self, route: Route, iovas: Addresses, write: bool, answers: Answers) -> None:
        """Walk once to each last-level table, then read all leaves."""
        regions, member = _regions(iovas)
        upper = Answers.room(len(regions))
        walks = self._descend(route, regions, write, upper)
        tables = np.zeros(len(regions), dtype=np.uint64)
        allowed = np.zeros(len(regions), dtype=np.uint8)
        tables[walks.which], allowed[walks.which] = walks.tables, walks.allowed
        if len(walks.which) == len(regions):
            leaves = _Walks(np.arange(len(iovas)), iovas, tables[member], allowed[member])
        else:
            ended = np.ones(len(regions), dtype=np.bool_)
            ended[walks.which] = False
            at = np.flatnonzero(ended[member])
            of = member[at]
            answers.physical[at] = upper.physical[of] + (iovas[at] & np.uint64(REGION - 1))
            answers.permissions[at], answers.shifts[at] = upper.permissions[of], upper.shifts[of]
            answers.reasons[at], answers.absent[at] = upper.reasons[of], upper.absent[of]
            on = np.flatnonzero(~ended[member])
            leaves = _Walks(on, iovas[on], tables[member[on]], allowed[member[on]])
        if len(leaves.which):
            self._level(route, 1, write, leaves, answers)

    def _descend(self, route: Route, iovas: Addresses, write: bool, answers: Answers) -> _Walks:
        """Walk down to the last-level tables, or to where a walk ends before."""
        stage, needed = self._stages.of(route), np.uint8(WRITE if write else READ)
        hits, found, kept = self.structures.lookup_many(route.tag, iovas)
        start = np.where(hits, kept >> LEVEL, np.uint8(route.levels))
        walks = _Walks(np.empty(0, dtype=np.int64), iovas[:0], iovas[:0], kept[:0])
        for level in range(route.levels, 0, -1):
            joining = np.flatnonzero(start == level)
            if len(joining):
                offset = iovas[joining] & np.uint64((1 << entry_shift(level + 1)) - 1)
                known = hits[joining]
                tables = np.where(known, found[joining] - offset, np.uint64(route.root))
                allowed = np.where(known, kept[joining] & np.uint8(3), np.uint8(READ | WRITE))
                fresh = _Walks(joining, iovas[joining], tables, allowed)
                fresh.stop(allowed & needed == 0, stage.refused[write], answers, absent=False)
                walks = fresh.after(walks)
            if level > 1 and len(walks.which):
                self._level(route, level, write, walks, answers)
        return walks

    def _level(self, route: Route, level: int, write: bool, walks: _Walks, answers: Answers) -> None:
        """Read one level's entries, answer for those that end there, and go on to the next tables with the others."""
        stage, memory = self._stages.of(route), self._memory
        shift = entry_shift(level)
        base, end = np.uint64(memory.base), np.uint64(memory.end - 0x1000)
        outside = (walks.tables < base) | (walks.tables > end)
        walks.stop(outside, stage.root_access if level == route.levels else stage.access, answers)
        walks.read(memory, shift)
        if stage.first:
            walks.stop(walks.entries & np.uint64(1) == 0, stage.absent[write], answers)
        else:
            walks.stop(walks.entries & np.uint64(READ | WRITE) == 0, stage.absent[write], answers)
            walks.stop(walks.entries & np.uint64(WRITE if write else READ) == 0, stage.refused[write], answers, absent=False)
        leaf = walks.leaves(level, stage.leaf[level])
        masks = np.array([stage.reserved_table[level], stage.reserved_page[level]], dtype=np.uint64)
        mixed = leaf.any() and not leaf.all()
        reserved = walks.entries & (masks[leaf.view(np.int8)] if mixed else masks[int(leaf.any())]) != 0
        walks.stop(reserved, stage.reserved, answers)
        if stage.first:
            walks.stop(walks.entries & np.uint64(USER) == 0, Reason.FS_SUPERVISOR, answers)
            if write:
                walks.stop(walks.entries & np.uint64(WRITE) == 0, stage.refused[True], answers, absent=False)
            self._use_many(route, walks, walks.leaves(level, stage.leaf[level]), write, answers)
            walks.allowed &= (walks.entries & np.uint64(WRITE) | np.uint64(READ)).astype(np.uint8)
        else:
            walks.allowed &= walks.entries.astype(np.uint8) & np.uint8(READ | WRITE)
        leaf = walks.leaves(level, stage.leaf[level])
        address = walks.entries & np.uint64(self._stages.address)
        if leaf.any():
            done, inside = walks.which[leaf], np.uint64((1 << shift) - 1)
            answers.physical[done] = address[leaf] & ~inside | walks.iovas[leaf] & inside
            dirty = walks.entries[leaf] & np.uint64(DIRTIED) != 0 if stage.first else np.True_
            answers.permissions[done] = walks.allowed[leaf] | dirty * np.uint8(DIRTY)
            answers.shifts[done] = shift
            walks.keep(~leaf)
            address = address[~leaf]
        walks.tables = address
        if len(address):
            last = slice(-LEARN, None)
            kept = walks.allowed[last] | np.uint8(level - 1 << LEVEL)
            covered = np.uint64((1 << shift) - 1)
            self.structures.insert_many(route.tag, shift, walks.iovas[last] & ~covered, address[last], kept)

    def _use_many(self, route: Route, walks: _Walks, leaf: NDArray[np.bool_], write: bool, answers: Answers) -> None:
        """Set accessed and dirty bits where they are missing."""
        used = walks.entries | np.uint64(ACCESSED)
        if write:
            used = np.where(leaf, used | np.uint64(DIRTIED), used)
        changed = used != walks.entries
        if not changed.any():
            return
        if not route.snooped:
            walks.stop(changed, Reason.FS_ACCESSED_UNSNOOPED, answers)
            return
        self._memory.words[walks.index[changed]] = used[changed]
        walks.entries = used


class _Walks:
    """Walks side by side: which requests, where they are, what they may so far, and the entries just read."""

    def __init__(self, which: NDArray[np.int64], iovas: Addresses, tables: Addresses, allowed: Permissions) -> None:
        self.which, self.iovas, self.tables, self.allowed = which, iovas, tables, allowed
        self.entries = tables
        self.index = which

    def after(self, others: _Walks) -> _Walks:
        """These, behind others at the same level."""
        if not len(others.which):
            return self
        return _Walks(
            np.concatenate((others.which, self.which)),
            np.concatenate((others.iovas, self.iovas)),
            np.concatenate((others.tables, self.tables)),
            np.concatenate((others.allowed, self.allowed)),
        )

    def read(self, memory: PhysicalMemory, shift: int) -> None:
        """Read each one's entry."""
        offset = self.iovas >> np.uint64(shift) & np.uint64(511)
        self.index = ((self.tables - np.uint64(memory.base) >> np.uint64(3)) + offset).view(np.int64)
        self.entries = memory.words.take(self.index)

    def leaves(self, level: int, bit: int) -> NDArray[np.bool_]:
        """Which entries are pages."""
        return self.entries & np.uint64(bit) != 0 if bit else np.full(len(self.which), level == 1)

    def keep(self, good: NDArray[np.bool_]) -> None:
        """Go on with some."""
        self.which, self.iovas, self.allowed = self.which[good], self.iovas[good], self.allowed[good]
        self.tables, self.entries, self.index = self.tables[good], self.entries[good], self.index[good]

    def stop(self, bad: NDArray[np.bool_], reason: Reason, answers: Answers, *, absent: bool = True) -> None:
        """End some with a reason."""
        if bad.any():
            answers.reasons[self.which[bad]], answers.absent[self.which[bad]] = reason, absent
            self.keep(~bad)


def _regions(iovas: Addresses) -> tuple[Addresses, NDArray[np.int64]]:
    """The regions that addresses lie in: their first addresses, and which of them each address lies in.

    Addresses that are spread far apart each get a region of their own, which saves looking for equal ones.
    """
    numbers = iovas >> np.uint64(REGION_BITS)
    lowest = numbers.min()
    span = int(numbers.max() - lowest) + 1
    if span > SPREAD * len(iovas):
        return numbers * np.uint64(REGION), np.arange(len(iovas))
    offsets = (numbers - lowest).view(np.int64)
    there = np.zeros(span, dtype=np.bool_)
    there[offsets] = True
    distinct = np.flatnonzero(there)
    place = np.empty(span, dtype=np.int64)
    place[distinct] = np.arange(len(distinct))
    return (distinct.view(np.uint64) + lowest) * np.uint64(REGION), place[offsets]
