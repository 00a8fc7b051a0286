"""What a format of page tables is: the short description that a driver gives of its entries, and the engine reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from iommukit.errors import IommuError

Entry: TypeAlias = Any
"""A number, or an array of ``uint64``: the engine asks about one entry or about many.  ``&``, ``|``, ``<<``, ``>>``, ``==`` and
``!=`` with plain numbers that are not negative do for both (write ``entry & MASK``, not ``entry & ~0xfff``)."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables.

    ``shift``: how many address bits lie below this level's index (12 for the leaves of 4 KiB pages); ``bits``: how wide the
    index is; ``empty``: the entry that maps nothing; ``least``: what a table takes at least, and is aligned to (bytes), where that
    is more than its entries need.
    """

    shift: int
    bits: int
    empty: int = 0
    least: int = 0x400

    @property
    def size(self) -> int:
        """What a table takes, and is aligned to (bytes)."""
        return max(8 << self.bits, self.least)


class Format(ABC):
    """The encoding of one format of tables, by level: level 0 holds the leaves of the smallest page.

    ``levels[n + 1].shift`` is ``levels[n].shift + levels[n].bits``.  A table may have a wider or narrower root than its level has
    elsewhere: that is a format of its own, with that top level.
    """

    levels: Sequence[Level]
    big_endian: bool = False
    """Entries lie in memory with the most significant byte first (s390)."""

    skips: bool = False
    """Levels may be skipped on the way down, and ``next_level`` says so."""

    @abstractmethod
    def present(self, entry: Entry, level: int) -> Entry:
        """Whether the entry names a page or a table (for many entries: an array of booleans)."""

    @abstractmethod
    def is_leaf(self, entry: Entry, level: int) -> Entry:
        """Whether a present entry of a level above 0 names a page.  At level 0 all do, and the engine does not ask."""

    @abstractmethod
    def address(self, entry: Entry, level: int) -> Entry:
        """The physical address (bytes) in the entry, of a table or a page; address bits that encode a size may still be set."""

    @abstractmethod
    def leaf(self, level: int, pgsize: int, prot: int) -> int:
        """All bits besides the address of an entry that maps a page of ``pgsize`` bytes.

        Address bits that encode the size (AMD-Vi, next level 7) are among them; the engine ors the page's address in.  Raises
        ``IommuError("EINVAL")`` for a protection (mask of ``Prot``) that the format cannot express.
        """

    @abstractmethod
    def table(self, level: int) -> int:
        """All bits besides the address of an entry of ``level`` (above 0) that names a table of the level below."""

    def leaf_level(self, pgsize: int) -> tuple[int, int]:
        """The level of pages of ``pgsize`` bytes, and how many identical adjoining entries such a page has there.

        Raises ``IommuError("EINVAL")`` for a size that no level has.
        """
        for number, level in enumerate(self.levels):
            if pgsize == 1 << level.shift:
                return number, 1
        raise IommuError("EINVAL", f"no page has {pgsize:#x} bytes")

    def leaf_size(self, entry: Entry, level: int) -> Entry:
        """The size (bytes) of the page that a leaf maps: one number for many entries, if it is the same for all."""
        return 1 << self.levels[level].shift

    def encode_address(self, paddr: Entry) -> Entry:
        """An address's bits as they stand in an entry: other than itself where a format splits it (52-bit output of Arm)."""
        return paddr

    def next_level(self, entry: Entry, level: int) -> Entry:
        """The level of the table that an entry names: asked only of a format that ``skips``, and followed only on look-ups."""
        return level - 1

    def smaller(self, entry: int, level: int) -> int:
        """All bits besides the address of a leaf one level below, with the protection of this leaf: for ``Partial.SPLIT``."""
        raise IommuError("EINVAL", "pages of this format are not split")
