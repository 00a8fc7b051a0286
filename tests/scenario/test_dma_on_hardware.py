"""Policy and hardware agree: where the nouns alone decide whether DMA works, the tables in memory say the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from iommukit.kernel.profiles import PROFILES
from iommukit.kernel.system import System
from iommukit.scenario.executor import execute
from iommukit.scenario.load import load_scenario_file
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import StepResult
from iommukit.vendors import Vendor
from tests.scenario.shipped import FILES, registry

FOR_REAL = ("ok", "EIO")
"""Results of a step in which a device that is there has tried."""


class Agreement:
    """Compares after each DMA step what policy says of the device with what its DMA did."""

    def __init__(self, scenario: Scenario) -> None:
        self._steps = iter(scenario.steps)
        self.tried: Counter[str] = Counter()

    def __call__(self, system: System, done: StepResult | None) -> list[str]:
        if done is None:
            return []
        step = next(self._steps)
        if step.op != "dma" or done.result not in FOR_REAL:
            return []
        device = system.devices[step.arguments.device]
        if device.unit is None or device.unit.bus is None:
            return []
        said = device.dma_works()
        self.tried[f"{said}, {done.result}"] += 1
        if said is None or said == (done.result == "ok"):
            return []
        return [f"policy says {said}, the hardware {done.result}"]


def _vendors(scenario: Scenario) -> list[Vendor]:
    return [vendor for vendor in registry() if scenario.vendor in (None, vendor.name)]


def _tried(path: Path) -> Counter[str]:
    tried: Counter[str] = Counter()
    for scenario in load_scenario_file(path):
        if not any(step.op == "dma" for step in scenario.steps):
            continue
        for kernel in PROFILES.values():
            for vendor in _vendors(scenario):
                agreement = Agreement(scenario)
                result = execute(scenario, kernel, vendor, registry(), watchers=(agreement,))
                assert not result.findings, f"{scenario.scenario} on {kernel.name} with {vendor.name}: {result.findings}"
                tried += agreement.tried
    return tried


def _all_tried() -> Counter[str]:
    return sum((_tried(path) for path in FILES), Counter[str]())


def test_policy_and_hardware_agree_in_every_scenario() -> None:
    tried = _all_tried()
    assert tried["True, ok"] > 500
    assert tried["False, EIO"] > 200
    assert tried["None, ok"] > 50
    assert not tried["None, EIO"]


def test_the_hardware_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the agreement above could be policy's with itself."""
    from iommukit.hw.platform import ModelInitiator

    monkeypatch.setattr(ModelInitiator, "load", lambda self, iova, size, at=0: None)
    with pytest.raises(AssertionError, match="the hardware EIO"):
        _all_tried()
