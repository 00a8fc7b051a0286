"""Boots of real kernels, and the scenarios that were played in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.load import load_scenarios, shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel.cases import Case, cases
from iommukit_oracle.kernel.record import BootRecord
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
