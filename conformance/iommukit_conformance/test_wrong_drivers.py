"""The tester tested: every wrong driver is rejected by the rule that names its mistake, and the reference by none."""

from __future__ import annotations

from iommukit_conformance.case import Case, CaseList, Check, Findings, Scope, Stage, hold
from iommukit_conformance.lab import Lab
from iommukit_conformance.rules import RULES
from iommukit_conformance.wrong import WRONG
from iommukit_conformance.wrong.base import Wrong
from iommukit_conformance.wrong.runner import judge_reference, judge_wrong


def _check(driver: type[Wrong]) -> Check:
    def check(lab: Lab) -> Findings:
        judged = judge_wrong(driver)
        yield hold(judged.named, f"{driver.label()} is not rejected by {driver.rule}: {driver.mistake}")

    return check


def _control(lab: Lab) -> Findings:
    yield None
    for ran in judge_reference():
        for finding in ran.verdict.findings:
            yield f"the reference is rejected under {ran.kernel}: {finding} [{ran.case.name}]"


def _cases() -> list[Case]:
    title = RULES["SUITE-2"].statement
    control = Case("the_reference_passes", _control, "SUITE-2", title, Stage.WRONG, Scope.SUITE)
    return [control, *(Case(driver.label(), _check(driver), "SUITE-2", title, Stage.WRONG, Scope.SUITE) for driver in WRONG)]


DRIVERS = CaseList(_cases)
