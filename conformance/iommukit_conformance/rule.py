"""What a rule is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: what must hold, and why anybody cares."""

    statement: str
    because: str
