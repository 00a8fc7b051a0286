"""Differences between the model and recorded kernels whose cause is known.

Each is recognised by what was recorded, never by a recording's name.  A difference that matches none of them is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iommukit_oracle.observations import Observation
from iommukit_oracle.recording import Recording


@dataclass(frozen=True, slots=True)
class KnownDifference:
    """A named difference: when it applies, and why it is none of the model's business."""

    name: str
    reason: str
    applies: Callable[[Recording, Observation], bool]


KNOWN_DIFFERENCES: tuple[KnownDifference, ...] = ()


def known_reason(recording: Recording, seen: Observation) -> str | None:
    """Name and reason of the known difference that an observation belongs to."""
    for known in KNOWN_DIFFERENCES:
        if known.applies(recording, seen):
            return f"{known.name}: {known.reason}"
    return None
