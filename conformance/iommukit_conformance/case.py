"""Cases, and what becomes of one: the five outcomes.

A case is a function that takes a ``Lab`` (one vendor under one kernel) and yields, for each thing that it looks at, ``None``
where it is as it should be, or one line that says what is wrong.  So a case that has looked at nothing is known as such: it
ends UNDECIDED, not PASS.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iommukit.errors import IommuError, NotApplicable
from iommukit.policy import Era
from iommukit.scenario.result import Outcome
from iommukit_conformance.rules import RULES

if TYPE_CHECKING:
    from iommukit.hookspecs import Mistake
    from iommukit.vendors import Vendor
    from iommukit_conformance.lab import Lab

SUITE = "(suite)"
"""The column of the cases that test the suite itself."""
EVERY = "*"
"""The kernel column of a case that looks at all kernels at once."""

CRASH_RULE = "DRV-02"


class Undecided(Exception):
    """Nobody can say whether a rule is kept; ``str(error)`` is the reason shown beside UNDECIDED."""


class HarnessFault(Exception):
    """The suite, the model or a scenario is wrong, not the driver; ``str(error)`` says how it shows."""


class Stage(enum.IntEnum):
    """The order of the cases."""

    HARNESS = 0
    """Can the suite tell right from wrong at all?"""
    SMOKE = 1
    """Does the vendor boot a trivial machine and answer?"""
    CONTRACT = 2
    HARDWARE = 3
    """Rules that are tried on hardware: the vendor's own model of it, or QEMU's."""
    SCENARIO = 4
    WATCH = 5
    """Rules that are watched in every run."""
    WRONG = 6
    """Wrong drivers that the suite must reject."""


class Scope(enum.Enum):
    """How often a case runs."""

    EACH = "for each vendor and kernel"
    VENDOR = "once for each vendor"
    SUITE = "once"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be: the rule and one line.  ``expected`` is the reason why it has to be so on this hardware."""

    rule: str
    text: str
    expected: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


Findings = Iterator[str | Finding | None]
Check = Callable[["Lab"], Findings]


def hold(condition: object, otherwise: str) -> str | None:
    """``None`` where the condition holds, else the line that says what is wrong."""
    return None if condition else otherwise


def _everywhere(_: Era) -> bool:
    return True


@dataclass(frozen=True)
class Case:
    """One case.  ``kernels`` names the only profiles that it is for (none: all), ``eras`` chooses among driver generations."""

    name: str
    check: Check
    rule: str | None = None
    title: str = ""
    stage: Stage = Stage.CONTRACT
    scope: Scope = Scope.EACH
    requires: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    eras: Callable[[Era], bool] = _everywhere
    vendor: str | None = None
    """The only vendor that it is for: a scenario on a captured machine."""
    mistake: Mistake | None = None
    """The mistake in using hardware that must be rejected."""
    __test__ = False

    def fits(self, kernel: str, era: Era) -> bool:
        """Whether the case says anything about a kernel."""
        return (not self.kernels or kernel in self.kernels) and self.eras(era)


@dataclass(frozen=True)
class CaseList:
    """Cases that are made when they are asked for: one for each scenario, one for each rule."""

    make: Callable[[], list[Case]]
    __test__ = False


@dataclass(frozen=True)
class VendorCaseList:
    """Cases that are made for each vendor, once, with what it says of itself."""

    make: Callable[[Vendor], list[Case]]
    __test__ = False


def case(rule: str, **options: Any) -> Callable[[Check], Case]:
    """Make a case of a function; its title is the rule's statement."""

    def decorate(check: Check) -> Case:
        name = check.__name__.removeprefix("test_")
        return Case(name, check, rule, RULES[rule].statement, **options)

    return decorate


@dataclass(frozen=True)
class Verdict:
    """How a case ended."""

    outcome: Outcome
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    fault: bool = False
    """Undecided because something other than the driver is wrong."""


def decide(case: Case, lab: Lab, *, enough: int = 0) -> Verdict:
    """Run a case, up to ``enough`` findings that are not expected (0: all).

    Raises ``HarnessFault`` where something other than the driver is wrong.
    """
    found: list[Finding] = []
    looked = 0
    lab.recorder.begin()
    try:
        lab.require(*case.requires)
        for answer in case.check(lab):
            looked += 1
            if isinstance(answer, Finding):
                found.append(answer)
            elif answer is not None:
                found.append(Finding(case.rule or case.name, answer))
            if enough and sum(not finding.expected for finding in found) >= enough:
                break
    except NotApplicable as error:
        if not found:
            return Verdict(Outcome.NOT_APPLICABLE, str(error))
    except Undecided as error:
        if not found:
            return Verdict(Outcome.UNDECIDED, str(error))
    except IommuError as error:
        found.append(Finding(case.rule or case.name, f"the driver refuses what it should do: {error}"))
    except HarnessFault:
        raise
    except Exception as error:
        found.extend(lab.blame(error))
    if not found and not looked:
        return Verdict(Outcome.UNDECIDED, "nothing came up that could be checked")
    return _with_expectation(case.rule, found, lab.vendor.declaration.expected_failures)


def _with_expectation(rule: str | None, found: list[Finding], expected: Mapping[str, str]) -> Verdict:
    """A rule that the vendor declares to break must be broken: a pass is a failure.

    What an emulator gets wrong is expected finding by finding: a case is tried on several machines.
    """
    if not found:
        if rule is not None and rule in expected:
            return Verdict(Outcome.FAIL, "", (Finding(rule, f"passes, though it is declared to fail: {expected[rule]}"),))
        return Verdict(Outcome.PASS)
    reasons = dict.fromkeys(finding.expected or expected.get(finding.rule, "") for finding in found)
    if all(reasons):
        return Verdict(Outcome.XFAIL, "; ".join(reasons), tuple(found))
    return Verdict(Outcome.FAIL, "", tuple(found))
