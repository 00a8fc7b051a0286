"""Results: what an executor answers for one scenario, kernel and vendor (a contract)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Outcome(enum.Enum):
    """The five outcomes."""

    PASS = "PASS"
    FAIL = "FAIL"
    XFAIL = "XFAIL"
    """Fails as its vendor declares, with the reason."""
    NOT_APPLICABLE = "N/A"
    """The vendor lacks what the scenario asks for."""
    UNDECIDED = "UNDECIDED"
    """No executor can say, or nothing is expected."""


UNDECIDED = "UNDECIDED"
"""A step's result where the model cannot tell."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group as sysfs shows it."""

    id: int
    type: str
    devices: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As in a result."""
        return {"id": self.id, "type": self.type, "devices": list(self.devices)}


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step: ``ok``, an errno name or ``UNDECIDED``; new log lines; the groups afterwards.

    ``types`` maps the machine's device names to their groups' types, ``members`` to their groups' numbers (absent devices are
    missing); ``value`` holds a read file's lines, ``attaches`` counts attachments, ``None`` where nobody counted;
    ``reason`` says why a result is what it is.
    """

    op: str
    result: str
    log: tuple[str, ...] = ()
    groups: tuple[GroupState, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    value: tuple[str, ...] | None = None
    attaches: int | None = 0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in a result."""
        answer: dict[str, Any] = {
            "op": self.op,
            "result": self.result,
            "log": list(self.log),
            "groups": [group.to_json() for group in self.groups],
        }
        if self.value is not None:
            answer["value"] = list(self.value)
        if self.reason:
            answer["reason"] = self.reason
        return answer


@dataclass(frozen=True, slots=True)
class BootResult:
    """The boot: policy lines and drivers' lines, the groups, what became of the command line's options."""

    log: tuple[str, ...]
    groups: tuple[GroupState, ...]
    types: dict[str, str] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    default: str = ""
    options: tuple[tuple[str, str, str], ...] = ()
    reserved: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As in a result."""
        answer: dict[str, Any] = {"log": list(self.log), "groups": [group.to_json() for group in self.groups]}
        if self.default:
            answer["default"] = self.default
        if self.options:
            answer["options"] = [dict(zip(("option", "verdict", "note"), option, strict=True)) for option in self.options]
        return answer


@dataclass(slots=True)
class Result:
    """One run."""

    scenario: str
    kernel: str
    vendor: str
    executor: str = "model"
    outcome: Outcome = Outcome.UNDECIDED
    reason: str = ""
    boot: BootResult | None = None
    steps: tuple[StepResult, ...] = ()
    findings: tuple[str, ...] = ()
    """What did not hold, one line each."""
    known_steps: int | None = None
    """How many steps were carried out where one could not be: nothing is known of what follows.  ``None``: all."""

    def to_json(self) -> dict[str, Any]:
        """The contract's JSON, with the outcome and its reasons."""
        answer: dict[str, Any] = {
            "scenario": self.scenario,
            "kernel": self.kernel,
            "vendor": self.vendor,
            "executor": self.executor,
            "outcome": self.outcome.value,
        }
        if self.reason:
            answer["reason"] = self.reason
        if self.findings:
            answer["findings"] = list(self.findings)
        answer["boot"] = self.boot.to_json() if self.boot else None
        answer["steps"] = [step.to_json() for step in self.steps]
        return answer
