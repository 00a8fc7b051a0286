"""The tester tested: every wrong driver is rejected by the rule that names its mistake, and no control by any."""

from __future__ import annotations

from iommukit_conformance.case import Case, CaseList, Check, Findings, Scope, Stage, hold
from iommukit_conformance.controls import CONTROLS
from iommukit_conformance.lab import Lab
from iommukit_conformance.reference import Reference
from iommukit_conformance.rules import RULES
from iommukit_conformance.wrong import WRONG
from iommukit_conformance.wrong.base import Wrong
from iommukit_conformance.wrong.runner import judge_control, judge_wrong


def _check(driver: type[Wrong]) -> Check:
    def check(lab: Lab) -> Findings:
        judged = judge_wrong(driver)
        yield hold(judged.named, f"{driver.label()} is not rejected by {driver.rule}: {driver.mistake}")

    return check


def _control(driver: type[Reference]) -> Check:
    def check(lab: Lab) -> Findings:
        yield None
        for ran in judge_control(driver, scenarios=True):
            for finding in ran.verdict.findings:
                yield f"{driver.__name__} is rejected under {ran.kernel}: {finding} [{ran.case.name}]"

    return check


def _cases() -> list[Case]:
    title = RULES["SUITE-2"].statement
    checks = {name: _control(driver) for name, driver in CONTROLS.items()} | {driver.label(): _check(driver) for driver in WRONG}
    return [Case(name, check, "SUITE-2", title, Stage.WRONG, Scope.SUITE) for name, check in checks.items()]


DRIVERS = CaseList(_cases)
