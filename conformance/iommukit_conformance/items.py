"""Cases as pytest items: one for each vendor and kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import DEFAULT, get_kernel
from iommukit.scenario.result import Outcome
from iommukit_conformance.case import EVERY, SUITE, Case, Scope, Stage, VendorCaseList, Verdict
from iommukit_conformance.session import Session
from iommukit_conformance.suite import runs_on

SESSION: pytest.StashKey[Session] = pytest.StashKey()


SHOWN_FINDINGS = 20


class CaseFailed(Exception):
    """A case failed; carries its verdict."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__("; ".join(str(finding) for finding in verdict.findings))


class CaseItem(pytest.Item):
    """One case for one vendor under one kernel."""

    def __init__(self, *, case: Case, vendor: str, kernel: Kernel, shown_kernel: str, **more: Any) -> None:
        super().__init__(**more)
        self.case = case
        self.vendor = vendor
        self.kernel = kernel
        self.shown_kernel = shown_kernel
        self.verdict: Verdict | None = None

    def runtest(self) -> None:
        """Decide the case; a failure is raised, every other outcome goes into the report."""
        verdict = self.verdict = self.config.stash[SESSION].decide(self.case, self.vendor, self.kernel)
        if verdict.outcome is Outcome.FAIL:
            raise CaseFailed(verdict)

    def row(self, verdict: Verdict) -> dict[str, Any]:
        """The case's row in the matrix."""
        row: dict[str, Any] = {
            "case": self.case.name,
            "rule": self.case.rule,
            "title": self.case.title,
            "stage": self.case.stage.name.lower(),
            "vendor": self.vendor,
            "kernel": self.shown_kernel,
            "outcome": verdict.outcome.value,
        }
        mistake = self.case.mistake
        if mistake is not None:
            row["mistake"] = {"rule": mistake.rule, "sentence": mistake.sentence}
        if mistake is not None or self.case.stage is Stage.HARDWARE:
            row["hardware"] = self.config.stash[SESSION].selection.hardware
        if verdict.reason:
            row["reason"] = verdict.reason
        if verdict.findings:
            row["findings"] = [{"rule": finding.rule, "text": finding.text} for finding in verdict.findings]
        if verdict.fault:
            row["fault"] = True
        return row

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was found, and the rule that it breaks; a traceback only where the suite itself has crashed."""
        if not isinstance(excinfo.value, CaseFailed):
            return super().repr_failure(excinfo, style)
        findings = excinfo.value.verdict.findings
        lines = [str(findings[0]), "", f"{self.vendor} under {self.shown_kernel} breaks {self.case.rule}: {self.case.title}"]
        lines.extend(f"  {finding}" for finding in findings[1:SHOWN_FINDINGS])
        if len(findings) > SHOWN_FINDINGS:
            lines.append(f"  and {len(findings) - SHOWN_FINDINGS} more")
        return "\n".join(lines)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the case is from; its title is its name."""
        return self.path, None, self.name


def items_of_vendors(collector: pytest.Collector, listed: VendorCaseList) -> list[pytest.Item]:
    """The items of cases that are each vendor's own."""
    selection = collector.config.stash[SESSION].selection
    there = [selection.registry.get(name) for name in selection.vendors if name in selection.registry]
    return items_of(collector, (replace(case, vendor=vendor.name) for vendor in there for case in listed.make(vendor)))


def items_of(collector: pytest.Collector, found: Iterator[Case]) -> list[pytest.Item]:
    """The items of a module's cases."""
    selection = collector.config.stash[SESSION].selection
    items: list[pytest.Item] = []

    def add(case: Case, vendor: str, kernel: Kernel, shown: str, name: str) -> None:
        items.append(CaseItem.from_parent(collector, name=name, case=case, vendor=vendor, kernel=kernel, shown_kernel=shown))

    for case in found:
        if not runs_on(case, selection.hardware):
            continue
        if case.scope is Scope.SUITE:
            add(case, SUITE, get_kernel(DEFAULT), EVERY, case.name)
            continue
        for vendor in selection.vendors:
            if case.vendor not in (None, vendor):
                continue
            if case.scope is Scope.VENDOR:
                add(case, vendor, selection.kernels[0], EVERY, f"{case.name}[{vendor}]")
                continue
            for kernel in selection.kernels:
                if case.fits(kernel.name, kernel.era):
                    add(case, vendor, kernel, kernel.name, f"{case.name}[{vendor}-{kernel.name}]")
    return items
