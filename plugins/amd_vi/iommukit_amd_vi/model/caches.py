"""What the hardware remembers: translations, directory entries and device table entries.

Translations and directories are tagged by domain id and, for guest tables, PASID (2.2.2, 2.4.3): devices of one domain id share
them, and a domain id that is used for two trees of tables mixes them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from iommukit.hw.platform import Addresses
from iommukit.hw.tlb import LAST, Tlb
from iommukit_amd_vi.model.device_table import DeviceEntry
from iommukit_amd_vi.model.walker import level_shift

Tag = tuple[int, int | None]
"""Domain id and PASID; no PASID: host tables."""

PRESENT = 4
"""In a TLB entry's permissions, besides ``READ`` and ``WRITE``: there is a page.  Without it the entry says that there is none."""

TRANSLATIONS = 4096
DIRECTORIES = 256

Directory = tuple[int, int, int]
"""A table: its level, its address, and the permissions on the way to it."""
_Tables = dict[int, tuple[int, int]]
"""Tables of one level, and permissions, by the address bits above those that they translate."""


@dataclass(slots=True)
class Caches:
    """All caches of one IOMMU."""

    entries: dict[int, DeviceEntry] = field(default_factory=dict)
    translations: Tlb = field(default_factory=lambda: Tlb(TRANSLATIONS))
    suppressed: set[int] = field(default_factory=set)
    """Device ids whose page faults are no longer logged (SE of their entry)."""
    _views: dict[Tag, DirectoryCache] = field(default_factory=dict)
    _guests: dict[int, list[Tag]] = field(default_factory=dict)
    """By domain id, the tags with a PASID."""

    def directory(self, tag: Tag) -> DirectoryCache:
        """The cached directories of one tag."""
        view = self._views.get(tag)
        if view is None:
            view = self._views[tag] = DirectoryCache()
            if tag[1] is not None:
                self._guests.setdefault(tag[0], []).append(tag)
        return view

    def forget_entry(self, device: int) -> None:
        """INVALIDATE_DEVTAB_ENTRY (2.4.2)."""
        self.entries.pop(device, None)
        self.suppressed.discard(device)

    def forget_pages(self, domain: int, pasid: int | None, first: int, last: int, *, directories: bool) -> None:
        """INVALIDATE_IOMMU_PAGES (2.4.3) for the bytes ``first``..``last``.

        Without a PASID the addresses are those of host tables.  The hardware cannot know which of the domain's guest addresses
        depend on them, and forgets all of those.
        """
        tag = domain, pasid
        self.translations.invalidate(tag, first, last)
        if pasid is None:
            for guest in self._guests.get(domain, ()):
                self.translations.invalidate(guest)
                self.directory(guest).forget(0, LAST)
        if directories and tag in self._views:
            self._views[tag].forget(first, last)

    def forget_all(self) -> None:
        """INVALIDATE_IOMMU_ALL (2.4.8)."""
        self.entries.clear()
        self.suppressed.clear()
        self.translations.clear()
        self._views.clear()
        self._guests.clear()


class DirectoryCache:
    """Directory entries of one tag: the tables of each level, by the addresses that they translate.

    A level keeps ``DIRECTORIES``; the one that was kept longest ago makes room.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[int, int, _Tables]] = []
        """Levels of which tables were kept, from the leaves up: level, shift of the addresses, tables."""

    def deepest(self, iova: int) -> Directory | None:
        """The lowest table that is kept for an address."""
        for level, shift, tables in self._levels:
            found = tables.get(iova >> shift)
            if found is not None:
                return level, *found
        return None

    def keep(self, level: int, iova: int, table: int, allow: int) -> None:
        """Keep the table of ``level`` that an address is translated by, and the permissions on the way to it."""
        shift, tables = self._tables(level)
        self._put(tables, iova >> shift, table, allow)

    def _tables(self, level: int) -> tuple[int, _Tables]:
        for known, shift, tables in self._levels:
            if known == level:
                return shift, tables
        made: tuple[int, _Tables] = level_shift(level + 1), {}
        self._levels = sorted([*self._levels, (level, *made)], key=lambda kept: kept[0])
        return made

    @staticmethod
    def _put(tables: _Tables, place: int, table: int, allow: int) -> None:
        if place in tables:
            del tables[place]
        elif len(tables) == DIRECTORIES:
            del tables[next(iter(tables))]
        tables[place] = table, allow

    def keep_many(self, level: int, iovas: Addresses, tables: Addresses, allow: NDArray[np.uint8]) -> None:
        """Keep the tables of many addresses: those of the last of them."""
        shift, kept = self._tables(level)
        places = iovas[-DIRECTORIES:] >> np.uint64(shift)
        changes = np.flatnonzero(places[1:] != places[:-1]).tolist()
        for at in [*changes, len(places) - 1]:
            at -= len(places)
            self._put(kept, int(places[at]), int(tables[at]), int(allow[at]))

    def everything(self) -> Iterator[tuple[int, Directory]]:
        """All that is kept, each with an address that it translates."""
        for level, shift, tables in self._levels:
            for place, (table, allow) in tables.items():
                yield place << shift, (level, table, allow)

    def deepest_many(self, iovas: Addresses) -> Iterator[tuple[int, NDArray[np.bool_], Addresses, NDArray[np.uint8]]]:
        """For each level, from the leaves up: the level, which addresses have a table kept there, the tables, permissions."""
        for level, shift, kept in self._levels:
            if not kept:
                continue
            places = np.array(sorted(kept), np.uint64)
            wanted = iovas >> np.uint64(shift)
            at = np.searchsorted(places, wanted)
            at[at == len(places)] = 0
            found = [kept[place] for place in places.tolist()]
            tables = np.array([table for table, _ in found], np.uint64)
            allow = np.array([allowed for _, allowed in found], np.uint8)
            yield level, places[at] == wanted, tables[at], allow[at]

    def forget(self, first: int, last: int) -> None:
        """Forget what lies on the way to the bytes ``first``..``last``."""
        for _, shift, tables in self._levels:
            low, high = first >> shift, last >> shift
            if high - low < len(tables):
                for place in range(low, high + 1):
                    tables.pop(place, None)
            else:
                for place in [place for place in tables if low <= place <= high]:
                    del tables[place]
