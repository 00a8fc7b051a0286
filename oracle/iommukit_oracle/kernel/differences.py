"""Why a real kernel does something else than the model, where the cause is known and none of the model's business.

Each difference is recognised by what was seen, never by a scenario's name.  One that matches none of them is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iommukit_oracle.kernel.record import BootRecord, RunRecord
from iommukit_oracle.known import known_reason
from iommukit_oracle.observations import Observation


@dataclass(frozen=True, slots=True)
class Seen:
    """A difference, and where it was seen."""

    boot: BootRecord
    run: RunRecord
    observation: Observation


@dataclass(frozen=True, slots=True)
class Difference:
    """A named difference: its reason, and when it applies."""

    name: str
    reason: str
    applies: Callable[[Seen], bool]

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


STABLE_BACKPORT = "stable-backport: Debian's 6.1 is of the stable series, whose newer rules the model knows as 6.1.176 and 6.1.192"
"""What 6.1 as its file says does otherwise, and its stable variant does alike."""


def _unfinished_line(seen: Seen) -> bool:
    missing = seen.observation.kind == "log" and seen.observation.expected == "nothing"
    return missing and "Falling back to IOMMU_DOMAIN_DMA" in seen.observation.got


def _no_bounce_buffers(seen: Seen) -> bool:
    lines = [line for step in seen.run.steps if step.op == "dma" for line in step.log]
    return "(dma)" in seen.observation.where and any("bounce buffers are inactive" in line for line in lines)


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "no-bounce-buffers",
        "what an untrusted device reads and writes is bounced, and a guest with less than 4 GiB of memory has no buffers for that:"
        " its driver's mappings fail",
        _no_bounce_buffers,
    ),
    Difference(
        "unfinished-line",
        "the kernel prints this line without its end, so that nobody reads it before the next one has been printed",
        _unfinished_line,
    ),
)


def reason_of(seen: Seen) -> str | None:
    """Name and reason of the difference that an observation belongs to: of these, or of those of all recordings (``known.py``)."""
    for difference in DIFFERENCES:
        if difference.applies(seen):
            return str(difference)
    return known_reason(seen.boot.recording(), seen.observation)
