"""The tester tested: every wrong driver is rejected by the rule that names its mistake, and no control by any.

Wrong drivers are the reference with a mistake about policy.  Mistakes in using hardware are tried with each vendor that has any,
its own and those that every driver can make.
"""

from __future__ import annotations

from iommukit.errors import NotApplicable
from iommukit.hookspecs import Mistake
from iommukit.scenario.result import Outcome
from iommukit.vendors import Vendor
from iommukit_conformance.case import Case, CaseList, Check, Findings, Scope, Stage, VendorCaseList, hold
from iommukit_conformance.controls import CONTROLS
from iommukit_conformance.hardware import needs_hardware
from iommukit_conformance.lab import MODEL, Lab
from iommukit_conformance.reference import Reference
from iommukit_conformance.rules import RULES
from iommukit_conformance.selection import EMULATED
from iommukit_conformance.wrong import WRONG
from iommukit_conformance.wrong.base import Wrong
from iommukit_conformance.wrong.judge import KERNELS, mistakes_of, try_mistake
from iommukit_conformance.wrong.runner import judge_control, judge_on_hardware, judge_wrong


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
    checks |= {"the_reference_passes_on_hardware": _reference_on_hardware, "mistakes_with_the_reference": _reference_mistaken}
    return [Case(name, check, "SUITE-2", title, Stage.WRONG, Scope.SUITE) for name, check in checks.items()]


def _reference_on_hardware(lab: Lab) -> Findings:
    yield None
    for ran in judge_on_hardware(Reference):
        for finding in ran.verdict.findings:
            yield f"the reference is rejected on its hardware under {ran.kernel}: {finding} [{ran.case.name}]"


def _reference_mistaken(lab: Lab) -> Findings:
    for mistake in mistakes_of(lab.vendor):
        tried = try_mistake(lab.vendor, mistake)
        yield hold(tried.outcome is Outcome.PASS, f"{mistake.name} is not rejected by {mistake.rule}: {tried.found}")


DRIVERS = CaseList(_cases)


# ---- with each vendor ------------------------------------------------------------------------------------------------


def _mistake(mistake: Mistake) -> Check:
    def check(lab: Lab) -> Findings:
        needs_hardware(lab)
        kernels = dict.fromkeys((*KERNELS, lab.kernel.name) if lab.hardware == MODEL else EMULATED[::-1])
        tried = try_mistake(lab.vendor, mistake, lab.hardware, tuple(kernels))
        if tried.outcome is Outcome.NOT_APPLICABLE:
            raise NotApplicable(tried.found)
        yield hold(tried.outcome is Outcome.PASS, f"{mistake.name} is not rejected by {mistake.rule}: {tried.found}")

    return check


def _mistakes(vendor: Vendor) -> list[Case]:
    title = RULES["SUITE-2"].statement
    return [
        Case(mistake.name, _mistake(mistake), "SUITE-2", title, Stage.WRONG, Scope.VENDOR, mistake=mistake)
        for mistake in mistakes_of(vendor)
    ]


MISTAKES = VendorCaseList(_mistakes)
