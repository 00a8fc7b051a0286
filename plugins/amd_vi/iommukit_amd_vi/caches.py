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
from iommukit_amd_vi.device_table import DeviceEntry
from iommukit_amd_vi.walker import level_shift

Tag = tuple[int, int | None]
"""Domain id and PASID; no PASID: host tables."""

PRESENT = 4
"""In a TLB entry's permissions, besides ``READ`` and ``WRITE``: there is a page.  Without it the entry says that there is none."""

TRANSLATIONS = 4096
DIRECTORIES = 512


@dataclass(slots=True)
class Caches:
    """All caches of one IOMMU."""

    entries: dict[int, DeviceEntry] = field(default_factory=dict)
    translations: Tlb = field(default_factory=lambda: Tlb(TRANSLATIONS))
    directories: Tlb = field(default_factory=lambda: Tlb(DIRECTORIES))
    suppressed: set[int] = field(default_factory=set)
    """Device ids whose page faults are no longer logged (SE of their entry)."""
    _views: dict[Tag, DirectoryCache] = field(default_factory=dict)
    _guests: dict[int, list[Tag]] = field(default_factory=dict)
    """By domain id, the tags with a PASID."""

    def directory(self, tag: Tag) -> DirectoryCache:
        """The cached directories of one tag."""
        view = self._views.get(tag)
        if view is None:
            view = self._views[tag] = DirectoryCache(self.directories, tag)
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
        self.directories.clear()
        self._views.clear()
        self._guests.clear()


class DirectoryCache:
    """Directory entries of one tag: the tables of each level, by the addresses that they translate."""

    def __init__(self, cache: Tlb, tag: Tag) -> None:
        self._cache = cache
        self._tags: dict[int, tuple[int, int | None, int]] = {level: (*tag, level) for level in range(1, 6)}
        self._levels: list[int] = []
        """Levels of which tables may be kept, from the leaves up."""

    def deepest(self, iova: int) -> tuple[int, int, int] | None:
        """The lowest table that is kept for an address: level, address, permissions on the way to it."""
        for level in self._levels:
            found = self._cache.lookup(self._tags[level], iova)
            if found is not None:
                return level, found[0] - (iova & (1 << level_shift(level + 1)) - 1), found[1]
        return None

    def keep(self, level: int, iova: int, table: int, allow: int) -> None:
        """Keep the table of ``level`` that an address is translated by."""
        self._remember(level)
        shift = level_shift(level + 1)
        self._cache.insert(self._tags[level], iova >> shift << shift, shift, table, allow)

    def _remember(self, level: int) -> None:
        if level not in self._levels:
            self._levels = sorted([*self._levels, level])

    def deepest_many(self, iovas: Addresses) -> Iterator[tuple[int, NDArray[np.bool_], Addresses, NDArray[np.uint8]]]:
        """For each level, from the leaves up: the level, which addresses have a table kept there, the tables, permissions."""
        for level in self._levels:
            hits, found, allow = self._cache.lookup_many(self._tags[level], iovas)
            if hits.any():
                yield level, hits, found - (iovas & np.uint64((1 << level_shift(level + 1)) - 1)), allow

    def keep_many(self, level: int, iovas: Addresses, tables: Addresses, allow: NDArray[np.uint8]) -> None:
        """Keep tables of many addresses: the last ``DIRECTORIES`` of them."""
        self._remember(level)
        shift = np.uint64(level_shift(level + 1))
        tail = slice(-DIRECTORIES, None)
        self._cache.insert_many(self._tags[level], int(shift), iovas[tail] >> shift << shift, tables[tail], allow[tail])

    def forget(self, first: int, last: int) -> None:
        """Forget what lies on the way to the bytes ``first``..``last``."""
        for level in self._levels:
            self._cache.invalidate(self._tags[level], first, last)
        if first == 0 and last == LAST:
            self._levels = []
