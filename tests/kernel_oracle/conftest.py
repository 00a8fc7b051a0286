"""Boots of real kernels, and the scenarios that were played in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import execute
from iommukit.scenario.load import load_scenarios, shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import BootResult, StepResult
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel.cases import Case, cases
from iommukit_oracle.kernel.record import BootRecord, GroupRecord, RunRecord, StateRecord, StepRecord
from iommukit_oracle.kernel.store import iter_boots

BOOTS = Path(__file__).parents[1] / "data" / "kernel_boots.jsonl"
LIVE, BOUND, WRITE, PLUG = (
    "live-switch-to-lazy",
    "bound-write-same-strict",
    "sysfs-strict-write-identity",
    "hotplug-replugged-card-starts-afresh",
)


@cache
def registry() -> VendorRegistry:
    return VendorRegistry.installed()


@cache
def suite() -> dict[str, Scenario]:
    return {scenario.scenario: scenario for scenario in load_scenarios([shipped_scenarios()])}


def case_of(scenario: str, kernel: str = "6.12", vendor: str = "intel_vtd") -> Case:
    (found,) = cases([suite()[scenario]], [get_kernel(kernel)], [registry().get(vendor)])
    return found


@cache
def recorded_boot(kernel: str) -> BootRecord:
    """As it was recorded, with the digests of today: what these tests are about is not whether the suite has changed."""
    (boot,) = (boot for _, boot in iter_boots(BOOTS) if boot.kernel == kernel)
    runs = tuple(run.model_copy(update={"digest": case_of(run.scenario, kernel).digest}) for run in boot.runs)
    return boot.model_copy(update={"runs": runs})


@pytest.fixture(name="boot")
def _boot() -> BootRecord:
    return recorded_boot("6.12")


def stand_in(case: Case, kernel: str) -> RunRecord:
    """What a kernel would have recorded that did as a profile does."""
    result = execute(case.scenario, get_kernel(kernel), case.vendor, registry())
    assert result.boot is not None

    def state(seen: BootResult | StepResult) -> StateRecord:
        groups: dict[int, list[str]] = {}
        for name, number in seen.members.items():
            groups.setdefault(number, []).append(name)
        made = (GroupRecord(id=number, type=seen.types[names[0]], devices=tuple(names)) for number, names in groups.items())
        return StateRecord(groups=tuple(made), types=seen.types)

    return RunRecord(
        scenario=case.scenario.scenario,
        digest=case.digest,
        names={device.name: device.name for device in case.machine.devices},
        default=result.boot.default,
        boot=state(result.boot),
        reserved=result.boot.reserved,
        steps=tuple(
            StepRecord(
                op=step.op,
                result=step.result,
                reason=step.reason,
                log=step.log,
                value=step.value,
                attaches=step.attaches,
                state=state(step),
            )
            for step in result.steps
        ),
    )
