"""Every shipped scenario on every kernel with every vendor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec
from iommukit.scenario.judge import judge
from iommukit.scenario.load import load_machine
from iommukit.scenario.result import Outcome
from tests.scenario.shipped import FILES, fresh_run, passing, registry, runs, scenarios

ONLY_WITH_THE_REFERENCE = {
    "boot-type-conflict-of-two",
    "boot-type-conflict-of-three",
    "boot-type-wish-under-passthrough-option",
    "hole-05-warning-without-effect",
    "invariant-order-of-a-conflict",
    "no-queue-write-lazy-to-identity",
}
"""No real driver has both devices that these take, or both abilities."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_fails_but_what_its_vendor_declares(path: Path):
    failed = [run for run in runs(path) if run.result.outcome is Outcome.FAIL]
    undeclared = [str(run) for run in failed if run.scenario.rule not in run.vendor.declaration.expected_failures]
    assert not undeclared, "\n".join(undeclared)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_scenario_expects_is_decided(path: Path):
    """A kernel that is expected to do something passes or fails wherever the scenario applies."""
    open_ends = [
        str(run)
        for run in runs(path)
        if run.result.outcome is Outcome.UNDECIDED and run.scenario.expectation(run.kernel) is not None
    ]
    assert not open_ends, "\n".join(open_ends)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_expectation_is_met_somewhere(path: Path):
    met = {(run.scenario.scenario, run.kernel) for run in passing(path)}
    wanted = {(run.scenario.scenario, run.kernel) for run in runs(path) if run.scenario.expectation(run.kernel) is not None}
    assert wanted <= met, sorted(wanted - met)


def test_each_scenario_applies_to_a_real_driver():
    applies = {run.scenario.scenario for path in FILES for run in passing(path) if run.vendor.name != "reference"}
    assert set(scenarios()) - applies == ONLY_WITH_THE_REFERENCE


def _wrong(value: Any, key: str = "") -> Any:
    """The same expectation with every value another one."""
    if isinstance(value, dict):
        return {name: _wrong(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_wrong(inner) for inner in value] or ["?"]
    return value + 1 if isinstance(value, int) else f"{value}?"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_wrong_expectation_fails(path: Path):
    seen: set[tuple[str, str]] = set()
    for run in passing(path):
        key = run.scenario.scenario, run.kernel
        if key in seen:
            continue
        seen.add(key)
        wanted = _wrong(run.scenario.expectation(run.kernel))
        scenario = run.scenario.model_copy(update={"expect": {run.kernel: wanted}})
        result = judge(scenario, fresh_run(scenario, run.kernel, run.vendor))
        assert result.outcome is Outcome.FAIL, f"{key}: nothing of {wanted} was compared"


@pytest.mark.parametrize("kernel", [*PROFILES, "6.1.192"])
@pytest.mark.parametrize("vendor", ["intel_vtd", "amd_vi", "arm_smmu", "reference"])
def test_groups_are_numbered_as_devices_are_found(kernel: str, vendor: str):
    machine = load_machine("switch")
    if vendor == "reference":
        machine = machine.model_copy(update={"arch": "x86_64"})
    found = registry().get(vendor)
    system = start_system(get_kernel(kernel), found, registry(), machine, BootSpec(kconfig="strict"))
    numbers = {device.name: device.group.id for device in system.devices.values() if device.group is not None}
    assert numbers == {name: number for number, name in enumerate(("rp1", "up", "down0", "down1", "nic", "disk"))}
