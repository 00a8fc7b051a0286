"""What hardware says of requests that it does not let through."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FaultKind(enum.Enum):
    """Why a request was stopped, in words that all architectures share."""

    BLOCKED = "blocked"
    """The device's own entry lets nothing through, or is not there."""
    BAD_ENTRY = "bad entry"
    """The device's entry, or a table that it names, cannot be what it says: reserved bits, an unsupported width."""
    NOT_MAPPED = "not mapped"
    """No translation for the address."""
    PERMISSION = "permission"
    """A translation that does not allow this kind of access."""
    OUT_OF_RANGE = "out of range"
    """An address that the tables or the unit cannot hold."""
    BAD_TABLE = "bad table"
    """An entry of a page table that cannot be."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault as the driver has read it from the hardware.

    ``requester`` is the hardware's name for the device (``requester`` hook); ``iova`` the address in bytes, as exactly as the
    hardware tells; ``write`` whether the device wrote, ``None`` where the hardware does not say; ``code`` the
    architecture's own number for the reason.
    """

    kind: FaultKind
    requester: int
    iova: int | None
    write: bool | None
    code: int
