"""The manual's example is a driver that passes."""

from __future__ import annotations

import re
import types
from pathlib import Path

from iommukit.kernel.profiles import PROFILES
from iommukit.report.runs import run_case
from iommukit.scenario.load import load_scenarios, shipped_scenarios
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry

MANUAL = Path(__file__).parents[1] / "CONTRIBUTING.md"


def test_the_example_passes_every_scenario() -> None:
    match = re.search(r"   ```python\n(.*?)   ```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    plugin = types.ModuleType("acme")
    exec(re.sub(r"^   ", "", match[1], flags=re.MULTILINE), plugin.__dict__)
    registry = VendorRegistry.installed()
    acme = registry.register(plugin, "acme")
    results = [
        run_case(scenario, kernel, acme, registry)
        for scenario in load_scenarios([shipped_scenarios()])
        for kernel in PROFILES.values()
    ]
    assert not [(result.scenario, result.kernel, result.findings) for result in results if result.outcome is Outcome.FAIL]
    assert sum(result.outcome is Outcome.PASS for result in results) > 500
