"""Every shipped scenario, judged by what it expects."""

from __future__ import annotations

from iommukit.errors import NotApplicable
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome
from iommukit_conformance.case import Case, CaseList, Check, Findings, HarnessFault, Stage, Undecided
from iommukit_conformance.lab import Lab
from iommukit_conformance.scenarios import scenarios


def _check(scenario: Scenario) -> Check:
    def check(lab: Lab) -> Findings:
        run = lab.run(scenario)
        if run.fault:
            raise HarnessFault(f"scenario {scenario.scenario}: {run.fault}")
        if run.result is None:
            yield from run.crash
        elif run.result.outcome is Outcome.NOT_APPLICABLE:
            raise NotApplicable(run.result.reason)
        elif run.result.outcome is Outcome.UNDECIDED:
            raise Undecided(run.result.reason)
        else:
            yield from run.result.findings or (None,)

    return check


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
