"""Every shipped scenario, judged by what it expects."""

from __future__ import annotations

from collections.abc import Mapping

from iommukit.errors import NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome, Result
from iommukit_conformance.case import Case, CaseList, Check, Findings, HarnessFault, Stage, Undecided
from iommukit_conformance.lab import Lab
from iommukit_conformance.scenarios import scenarios

MISREAD: Mapping[str, str] = {"rfc-unconverted": "def_domain_type"}
"""Kernels that read a hook's answers wrongly, and the hook; what their scenarios expect is what comes of a misread answer."""


def _check(scenario: Scenario) -> Check:
    def check(lab: Lab) -> Findings:
        hook = MISREAD.get(lab.kernel.name)
        if hook is not None and hook not in lab.ops.implemented:
            raise NotApplicable(f"{lab.vendor.name} has no {hook}, which is what this kernel misreads")
        run = lab.run(scenario)
        if run.fault:
            raise HarnessFault(f"scenario {scenario.scenario}: {run.fault}")
        if run.result is None:
            yield from run.crash
        elif run.result.outcome is Outcome.NOT_APPLICABLE:
            raise NotApplicable(run.result.reason)
        elif run.result.outcome is Outcome.UNDECIDED:
            raise Undecided(run.result.reason)
        elif run.result.outcome is Outcome.FAIL and (unread := _unread(run.result)):
            raise NotApplicable(f"no driver that is here reads {unread}")
        else:
            yield from run.result.findings or (None,)

    return check


def _unread(result: Result) -> str:
    """The first word of the command line that no driver reads: a scenario may use the option of a vendor that is not installed."""
    options = result.boot.options if result.boot is not None else ()
    return next((option for option, verdict, _ in options if verdict == Verdict.UNKNOWN.value), "")


def _cases() -> list[Case]:
    return [
        Case(
            scenario.scenario,
            _check(scenario),
            scenario.rule,
            scenario.summary or scenario.scenario,
            stage=Stage.SCENARIO,
            vendor=scenario.vendor,
        )
        for scenario in scenarios()
    ]


SCENARIOS = CaseList(_cases)
