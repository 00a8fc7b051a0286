"""Running the suite against wrong drivers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import Finding, Stage
from iommukit_conformance.reference import NAME, Reference
from iommukit_conformance.suite import Ran, failures, run_vendor
from iommukit_conformance.wrong.base import Wrong

STAGES = frozenset({Stage.SMOKE, Stage.CONTRACT, Stage.WATCH})
"""Scenarios judge kernels and drivers together; what tells a wrong driver is the contract and the watching.  Mistakes in using
hardware are tried with each vendor (``judge.py``)."""


@dataclass(frozen=True)
class Judged:
    """A wrong driver and what rejected it."""

    driver: type[Wrong]
    findings: tuple[Finding, ...]

    @property
    def named(self) -> bool:
        """Whether the rule that names the mistake has rejected it."""
        return any(finding.rule == self.driver.rule for finding in self.findings)

    @property
    def found(self) -> str:
        """What that rule found first."""
        return next((finding.text for finding in self.findings if finding.rule == self.driver.rule), "")

    @property
    def others(self) -> list[str]:
        """The further rules that have rejected it."""
        return sorted({finding.rule for finding in self.findings} - {self.driver.rule})


def _registry(driver: Reference) -> VendorRegistry:
    registry = VendorRegistry()
    registry.register(driver, NAME)
    return registry


def judge_wrong(driver: type[Wrong], *, thorough: bool = False) -> Judged:
    """Run the suite against one wrong driver, under the kernel that shows its mistake.

    Only the cases of the rule that names the mistake, up to the first finding; or, ``thorough``, everything.
    Raises ``HarnessFault``.
    """
    done = run_vendor(
        _registry(driver()),
        NAME,
        [get_kernel(driver.kernel)],
        choose=lambda case: case.stage in STAGES and (thorough or case.rule == driver.rule),
        scenarios_too=False,
        enough=0 if thorough else 1,
    )
    return Judged(driver, tuple(finding for ran in failures(done) for finding in ran.verdict.findings))


def judge_on_hardware(driver: type[Reference], kernels: Iterable[str] = ("rfc", "7.2")) -> list[Ran]:
    """What fails of a right driver on its own hardware, which should be nothing.  Raises ``HarnessFault``."""
    chosen = [get_kernel(name) for name in kernels]
    return failures(run_vendor(_registry(driver()), NAME, chosen, choose=lambda case: case.stage is Stage.HARDWARE))


def judge_control(driver: type[Reference], kernels: Iterable[str] = tuple(PROFILES), *, scenarios: bool = False) -> list[Ran]:
    """What fails of a right driver, which should be nothing; with the shipped scenarios if wanted.  Raises ``HarnessFault``."""
    chosen = [get_kernel(name) for name in kernels]
    stages = STAGES | {Stage.SCENARIO} if scenarios else STAGES
    done = run_vendor(_registry(driver()), NAME, chosen, choose=lambda case: case.stage in stages, scenarios_too=scenarios)
    return failures(done)
