"""The shipped scenarios, and every run of them on every kernel and vendor, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from iommukit.kernel.profiles import PROFILES
from iommukit.scenario.executor import execute
from iommukit.scenario.judge import judge
from iommukit.scenario.load import load_scenario_file, shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome, Result
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_conformance.reference import Reference

FILES = sorted(shipped_scenarios().glob("*.yaml"))
DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True, slots=True)
class Run:
    """One scenario under one kernel with one vendor's driver."""

    scenario: Scenario
    kernel: str
    vendor: Vendor
    result: Result

    def __str__(self) -> str:
        findings = "; ".join(self.result.findings) or self.result.reason
        return f"{self.scenario.scenario} on {self.kernel} with {self.vendor.name}: {findings}"


@lru_cache(maxsize=1)
def registry() -> VendorRegistry:
    """The installed vendors and the suite's reference driver, which has what no real one has."""
    found = VendorRegistry.installed()
    found.register(Reference(), "reference")
    return found


@lru_cache(maxsize=1)
def scenarios() -> dict[str, Scenario]:
    """All of them, by id."""
    return {scenario.scenario: scenario for path in FILES for scenario in load_scenario_file(path)}


def fresh_run(scenario: Scenario, kernel: str, vendor: Vendor) -> Result:
    """Run a scenario without judging it."""
    return execute(scenario, PROFILES[kernel], vendor, registry())


@lru_cache(maxsize=len(FILES))
def runs(path: Path) -> tuple[Run, ...]:
    """Every run of one file's scenarios that its vendor line allows, judged."""
    return tuple(_runs(path))


def _runs(path: Path) -> Iterator[Run]:
    for scenario in load_scenario_file(path):
        for vendor in registry():
            if scenario.vendor not in (None, vendor.name):
                continue
            for kernel in PROFILES:
                yield Run(scenario, kernel, vendor, judge(scenario, fresh_run(scenario, kernel, vendor)))


def passing(path: Path) -> list[Run]:
    """The runs of a file that pass."""
    return [run for run in runs(path) if run.result.outcome is Outcome.PASS]
