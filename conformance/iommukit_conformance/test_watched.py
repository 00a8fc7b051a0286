"""The rules that are watched: in every drill and in every scenario, whatever that expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from iommukit.errors import NotApplicable
from iommukit_conformance.case import Case, CaseList, Check, Findings, HarnessFault, Stage
from iommukit_conformance.drills import drills
from iommukit_conformance.invariants import WATCHED
from iommukit_conformance.lab import Lab, Run
from iommukit_conformance.recorder import HEARD
from iommukit_conformance.rules import RULES
from iommukit_conformance.scenarios import scenarios


def _runs(lab: Lab) -> Iterator[Run]:
    for drill in drills():
        run = lab.run(drill)
        if run.fault:
            raise HarnessFault(f"{drill.scenario}: {run.fault}")
        yield run
    if lab.scenarios_too:
        for scenario in scenarios():
            if scenario.vendor in (None, lab.vendor.name):
                yield lab.run(scenario)


def _check(rule: str, hook: str | None = None, not_on: Mapping[str, str] = MappingProxyType({})) -> Check:
    def check(lab: Lab) -> Findings:
        arch = lab.vendor.declaration.arch[0]
        if arch in not_on:
            raise NotApplicable(not_on[arch])
        if hook is not None and hook not in lab.ops.implemented:
            raise NotApplicable(f"{lab.vendor.name} leaves {hook} to the core")
        for run in _runs(lab):
            found = [finding for finding in run.findings if finding.rule == rule]
            yield from found
            if run.checked[rule] and not found:
                yield None

    return check


def _cases() -> list[Case]:
    heard = [
        Case(f"heard_{rule}", _check(rule, hook), rule, RULES[rule].statement, stage=Stage.WATCH) for rule, hook in HEARD.items()
    ]
    seen = [
        Case(
            f"seen_{watch.rule}",
            _check(watch.rule, not_on=watch.not_on),
            watch.rule,
            RULES[watch.rule].statement,
            Stage.WATCH,
            requires=watch.requires,
            kernels=watch.kernels,
        )
        for watch in WATCHED
        if watch.rule not in HEARD
    ]
    return heard + seen


WATCHES = CaseList(_cases)
