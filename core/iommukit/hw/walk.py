"""What a walk of tables has found: the way to a device's tables, and what they translate."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Mode(enum.Enum):
    """What a device's entry does with its requests."""

    TRANSLATED = "translated"
    PASS_THROUGH = "pass-through"
    BLOCKED = "blocked"
    BAD = "bad entry"


@dataclass(frozen=True, slots=True)
class Step:
    """One entry on the way: its name in the specification, its physical address (bytes), its bits, and what they mean."""

    name: str
    address: int
    value: int
    """All of the entry, as one number: wide entries are wider than 64 bits."""
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Leaf:
    """Pages that one table translates: addresses and ``size`` in bytes, and permissions.

    ``path`` are the entries from the root table to the first page; those before, which choose the root table, are the walk's
    ``steps``.  All of it is one run: adjoining entries of a table with adjoining physical addresses and the same permissions.
    With a ``reason`` nothing is translated here: an entry is bad, and the last of ``path`` is that entry.
    """

    iova: int
    physical: int
    size: int
    read: bool
    write: bool
    path: tuple[Step, ...] = ()
    page: int = 0
    """The size of each page (bytes); 0 where all of it is one page."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Walk:
    """One device's translation: the entries that lead to its tables, and their pages by rising address.

    ``pages`` can be gone through once: tables are read as it is.  Where one address was asked for it holds one leaf, the page or
    the entry at which the walk ends, with a ``reason`` where nothing is translated.  ``reason`` says what is wrong with a bad
    entry of the device.
    """

    requester: int
    mode: Mode
    steps: tuple[Step, ...]
    pages: Iterable[Leaf] = ()
    reason: str = ""
    domain: int | None = None
    """The domain id, ASID or VMID that tags its translations, where the architecture has one."""
