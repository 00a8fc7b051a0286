"""What became of drivers on hardware: as a page, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from iommukit.report.page import Page, Span, counted, listed
from iommukit.scenario.result import Outcome

STYLES = {
    Outcome.PASS: "good",
    Outcome.FAIL: "bad",
    Outcome.XFAIL: "warn",
    Outcome.UNDECIDED: "warn",
    Outcome.NOT_APPLICABLE: "dim",
}
FEW = 3
"""Findings of one case that are shown."""


@dataclass(frozen=True, slots=True)
class HardwareCase:
    """One case under one kernel.  ``fault``: it could not be examined, which is nobody's fault but the suite's."""

    rule: str
    name: str
    kernel: str
    outcome: Outcome
    reason: str = ""
    findings: tuple[str, ...] = ()
    fault: bool = False

    def to_json(self) -> dict[str, Any]:
        """As data."""
        return {
            "rule": self.rule,
            "case": self.name,
            "kernel": self.kernel,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "findings": list(self.findings),
        }


@dataclass(slots=True)
class Examined:
    """One vendor on one kind of hardware and its ``variants``; ``reason`` says why not, where it could not be."""

    vendor: str
    hardware: str
    reason: str = ""
    variants: tuple[str, ...] = ()
    cases: Sequence[HardwareCase] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether there is anything to put right."""
        return any(case.fault or case.outcome is Outcome.FAIL for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """As data."""
        return {
            "vendor": self.vendor,
            "hardware": self.hardware,
            "variants": list(self.variants),
            "reason": self.reason,
            "cases": [case.to_json() for case in self.cases],
        }


def hardware_page(examined: Sequence[Examined], *, full: bool = False) -> Page:
    """Each vendor with a tally, and the cases that did not pass; ``full``: all cases."""
    page = Page()
    for each in examined:
        page.blank()
        also = f" (also {', '.join(each.variants)})" if each.variants else ""
        page.line(Span(each.vendor, "name"), f" on {each.hardware}{also}: ", *_tally(each))
        for outcome in Outcome:
            if full or outcome is not Outcome.PASS:
                _tell(page, [case for case in each.cases if case.outcome is outcome])
    return page


def _tally(each: Examined) -> list[Span]:
    if each.reason:
        return [Span("N/A", "dim"), Span(f"  {each.reason}")]
    counts = Counter(case.outcome for case in each.cases)
    spans = [Span(counted(len(each.cases), "case"))]
    for outcome in Outcome:
        if counts[outcome]:
            spans += [Span(", "), Span(f"{counts[outcome]} {outcome.value}", STYLES[outcome])]
    return spans


def _tell(page: Page, cases: Sequence[HardwareCase]) -> None:
    """Cases of one outcome, those together that differ in the kernel alone."""
    together: dict[HardwareCase, list[str]] = {}
    for case in cases:
        alike = HardwareCase(case.rule, case.name, "", case.outcome, case.reason, case.findings, case.fault)
        together.setdefault(alike, []).append(case.kernel)
    for case, kernels in together.items():
        style = STYLES[case.outcome]
        name = case.name.replace("_", " ")
        page.line(Span(f"{case.outcome.value:9}", style), f" {case.rule:9} {name}  ", Span(listed(kernels), "dim"), indent=2)
        for text in (*((case.reason,) if case.reason else ()), *case.findings[:FEW]):
            page.line(Span(text, "dim" if case.outcome is not Outcome.FAIL else "plain"), indent=22)
        if len(case.findings) > FEW:
            page.line(Span(f"and {len(case.findings) - FEW} more", "dim"), indent=22)
