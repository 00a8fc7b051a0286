"""What a comparison of a recording with the model has found, piece by piece."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from iommukit.scenario.model import Scenario


class Verdict(enum.Enum):
    """What became of one observation."""

    AGREES = "agrees"
    DIFFERS = "differs"
    KNOWN = "known difference"
    """The model differs, for a reason that is written down in ``known.py``."""
    UNDECIDED = "undecided"
    """The recording does not tell enough, or the model leaves it to page tables."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that a real kernel did, and what the model makes of it.

    ``kind``: ``log``, ``log order``, ``group``, ``type``, ``regions``, ``write``, ``write log``, ``bind``, ``claim``, ``dma`` or
    ``race``.
    """

    kind: str
    where: str
    expected: str
    got: str
    verdict: Verdict
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.kind}: the kernel has {self.expected}, the model {self.got}"
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(slots=True)
class Replay:
    """One recording held against the model.

    ``scenario`` is the recording as a scenario: its machine, its boot and every step that was replayed, unrecorded ones included.
    """

    id: str
    kernel: str
    vendor: str
    scenario: Scenario | None = None
    observations: list[Observation] = field(default_factory=list)

    def _with(self, verdict: Verdict) -> list[Observation]:
        return [seen for seen in self.observations if seen.verdict is verdict]

    @property
    def agreed(self) -> list[Observation]:
        """Where the model does what the kernel did."""
        return self._with(Verdict.AGREES)

    @property
    def differences(self) -> list[Observation]:
        """Where it does something else, for no known reason."""
        return self._with(Verdict.DIFFERS)

    @property
    def known(self) -> list[Observation]:
        """Where it does something else, for a reason that is written down."""
        return self._with(Verdict.KNOWN)

    @property
    def undecided(self) -> list[Observation]:
        """What cannot be compared."""
        return self._with(Verdict.UNDECIDED)


COLUMNS = (Verdict.AGREES, Verdict.DIFFERS, Verdict.KNOWN, Verdict.UNDECIDED)


def summary(replays: Iterable[Replay]) -> str:
    """A table: boots and observations by kernel and vendor."""
    boots: Counter[tuple[str, str]] = Counter()
    counts: dict[tuple[str, str], Counter[Verdict]] = {}
    for replay in replays:
        key = replay.kernel, replay.vendor
        boots[key] += 1
        counts.setdefault(key, Counter()).update(seen.verdict for seen in replay.observations)
    rows = [("kernel", "vendor", "boots", *(verdict.value for verdict in COLUMNS))]
    for key in sorted(boots):
        rows.append((*key, str(boots[key]), *(str(counts[key][verdict]) for verdict in COLUMNS)))
    total = sum(counts.values(), Counter[Verdict]())
    rows.append(("all", "", str(sum(boots.values())), *(str(total[verdict]) for verdict in COLUMNS)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(_cell, row, widths, range(len(row)))) for row in rows)


def _cell(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)
