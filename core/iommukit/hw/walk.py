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
    """One page that the tables translate: addresses and ``size`` in bytes, permissions, and the entries from the root to it."""

    iova: int
    physical: int
    size: int
    read: bool
    write: bool
    path: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Walk:
    """One device's translation: the entries that lead to its tables, and their pages by rising address.

    ``pages`` can be gone through once.  ``reason`` says what is wrong with a bad entry.
    """

    requester: int
    mode: Mode
    steps: tuple[Step, ...]
    pages: Iterable[Leaf] = ()
    reason: str = ""
    domain: int | None = None
    """The domain id, ASID or VMID that tags its translations, where the architecture has one."""
