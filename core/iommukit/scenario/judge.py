"""Judging a result against what its scenario expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import Repr
from typing import Any

from iommukit.scenario.expectation import says_nothing
from iommukit.scenario.model import OPERATIONS, Scenario
from iommukit.scenario.result import UNDECIDED, Outcome, Result, StepResult

_short = Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring = 3, 50, 20, 500


@dataclass(slots=True)
class Verdict:
    """What a comparison has found so far."""

    findings: list[str]
    undecided: list[str]

    def compare(self, what: str, wanted: Any, got: Any) -> None:
        """Note a difference, or that there is nothing to compare with."""
        if got == UNDECIDED and wanted != UNDECIDED:
            self.undecided.append(what)
        elif got != wanted:
            self.findings.append(f"{what}: expected {_shown(wanted)}, got {_shown(got)}")


def judge(scenario: Scenario, result: Result) -> Result:
    """Settle the outcome of a run: PASS, FAIL or UNDECIDED; N/A and a watcher's FAIL stay, and so does what was not run.

    The expectation has been checked when the scenario was loaded (``check_expectations``).
    """
    if result.outcome is not Outcome.UNDECIDED or result.boot is None:
        return result
    wanted = scenario.expectation(result.kernel)
    if wanted is None or says_nothing(wanted):
        result.reason = f"the scenario expects nothing of {result.kernel}"
        return result
    verdict = Verdict([], [])
    _check(scenario, result, wanted, verdict, upto=len(result.steps))
    result.findings = tuple(verdict.findings)
    if verdict.findings:
        result.outcome = Outcome.FAIL
    elif verdict.undecided:
        result.outcome = Outcome.UNDECIDED
        result.reason = f"undecided: {', '.join(verdict.undecided)}"
    else:
        result.outcome = Outcome.PASS
    return result


def _check(scenario: Scenario, result: Result, wanted: dict[str, Any], verdict: Verdict, *, upto: int) -> None:
    """Check an expectation after ``upto`` steps."""
    for key, value in wanted.items():
        key = str(key)
        if key.isascii() and key.isdecimal():
            expected = {"result": value} if isinstance(value, str) else value
            _check(scenario, result, expected, verdict, upto=int(key))
        elif key in OPERATIONS:
            _check_operation(scenario, result, key, value, verdict, upto)
        elif key not in OF_BOOT and result.known_steps is not None and upto > result.known_steps:
            verdict.undecided.append(f"{key} {_when(upto, result)}")
        elif key in SPECIAL:
            SPECIAL[key](scenario, result, value, verdict, upto)
        else:
            _check_type(scenario, result, key, value, verdict, upto)


def _check_operation(scenario: Scenario, result: Result, op: str, value: Any, verdict: Verdict, upto: int) -> None:
    """A scalar is the last such step's result; a list is each one's, in order."""
    done = [(number, step) for number, step in enumerate(result.steps[:upto], start=1) if step.op == op]
    if op == "read" and isinstance(value, list) and not (value and isinstance(value[0], list)):
        number, step = done[-1]
        verdict.compare(f"step {number} (read)", value, list(step.value) if step.value is not None else step.result)
        return
    if not isinstance(value, list):
        number, step = done[-1]
        verdict.compare(f"step {number} ({op})", value, step.result)
        return
    for wanted, (number, step) in zip(value, done, strict=True):
        got: Any = list(step.value) if op == "read" and step.value is not None else step.result
        verdict.compare(f"step {number} ({op})", wanted, got)


def _state(result: Result, upto: int) -> Any:
    return result.steps[upto - 1] if upto else result.boot


def _when(upto: int, result: Result) -> str:
    return "at the end" if upto == len(result.steps) else f"after step {upto}" if upto else "after boot"


def _check_type(scenario: Scenario, result: Result, device: str, value: Any, verdict: Verdict, upto: int) -> None:
    got = _state(result, upto).types.get(device, "absent")
    verdict.compare(f"type of {device} {_when(upto, result)}", value, got)


def _check_boot(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    _check(scenario, result, value, verdict, upto=0)


def _log_lines(result: Result, upto: int) -> list[str]:
    assert result.boot is not None
    if upto == 0:
        return list(result.boot.log)
    return [*result.boot.log, *(line for step in result.steps[:upto] for line in step.log)]


def _fragments(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _check_log(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    """Each text must be part of some line, in this order."""
    lines = iter(_log_lines(result, upto))
    for fragment in _fragments(value):
        if not any(fragment in line for line in lines):
            verdict.findings.append(f"log {_when(upto, result)}: no line (in order) with {_shown(fragment)}")
            return


def _check_no_log(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    for fragment in _fragments(value):
        for line in _log_lines(result, upto):
            if fragment in line:
                verdict.findings.append(f"log {_when(upto, result)}: there should be no {_shown(fragment)}, but: {line}")


def _check_groups(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    """Each inner list shares a group; different lists are in different groups."""
    members = _state(result, upto).members
    seen: dict[int, Sequence[str]] = {}
    for names in value:
        numbers = {members.get(name) for name in names}
        where = f"groups {_when(upto, result)}"
        if None in numbers:
            missing = ", ".join(name for name in names if name not in members)
            verdict.findings.append(f"{where}: {missing} in no group")
        elif len(numbers) > 1:
            verdict.findings.append(f"{where}: {', '.join(names)} should share a group")
        else:
            (number,) = numbers
            assert number is not None
            if number in seen:
                verdict.findings.append(f"{where}: {', '.join(seen[number])} and {', '.join(names)} should be apart")
            seen[number] = names


def _check_attaches(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    steps: Sequence[StepResult] = result.steps
    counted = steps[upto - 1].attaches
    verdict.compare(f"attachments of step {upto}", value, UNDECIDED if counted is None else counted)


def _check_result(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    step = result.steps[upto - 1]
    verdict.compare(f"step {upto} ({step.op})", value, step.result)


def _check_default(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    assert result.boot is not None
    verdict.compare("the system's default policy", value, result.boot.default or UNDECIDED)


def _check_reserved(scenario: Scenario, result: Result, value: Any, verdict: Verdict, upto: int) -> None:
    """The lines of ``reserved_regions`` of a device's group after boot."""
    assert result.boot is not None
    for device, lines in value.items():
        verdict.compare(f"reserved regions of {device}", list(lines), list(result.boot.reserved.get(device, ())))


SPECIAL: dict[str, Callable[[Scenario, Result, Any, Verdict, int], None]] = {
    "boot": _check_boot,
    "log": _check_log,
    "no_log": _check_no_log,
    "groups": _check_groups,
    "reserved": _check_reserved,
    "attaches": _check_attaches,
    "result": _check_result,
    "default": _check_default,
}


OF_BOOT = frozenset({"boot", "default", "reserved"})
"""Keys about the boot, wherever they stand."""


def _shown(value: Any) -> str:
    """A value for people; what aliases have made endless is cut."""
    if isinstance(value, str):
        return repr(value) if not value or value != value.strip() else value
    return _short.repr(value)
