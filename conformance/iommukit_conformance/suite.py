"""The suite without pytest: all cases, and running them against one vendor."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import PROFILES
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import EVERY, Case, CaseList, HarnessFault, Scope, Stage, Verdict, decide
from iommukit_conformance.lab import MODEL, Bench

MODULES = (
    "smoke",
    "declaration",
    "boot",
    "policy",
    "domains",
    "regions",
    "groups",
    "firmware",
    "page_tables",
    "tlb",
    "faults",
    "attach",
    "scenarios",
    "watched",
)
"""The modules ``test_….py`` whose cases are run against vendors."""


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """All cases that are run against vendors, in the order of their stages."""
    found: list[Case] = []
    for name in MODULES:
        module = importlib.import_module(f"iommukit_conformance.test_{name}")
        for value in vars(module).values():
            found.extend(expand(value, module.__name__))
    return tuple(sorted((case for case in found if case.scope is not Scope.SUITE), key=lambda case: case.stage))


def runs_on(case: Case, hardware: str) -> bool:
    """Whether a case says anything about a driver on this platform: policy was tried on the model."""
    return hardware == MODEL or case.mistake is not None or case.stage in (Stage.HARNESS, Stage.SMOKE, Stage.HARDWARE)


def expand(value: object, module: str) -> Iterator[Case]:
    """The cases that a module's name stands for."""
    if isinstance(value, Case):
        yield value
    elif isinstance(value, CaseList):
        yield from value.make()


@dataclass(frozen=True)
class Ran:
    """A case that was run."""

    case: Case
    kernel: str
    verdict: Verdict


def run_vendor(
    registry: VendorRegistry,
    vendor: str,
    kernels: Iterable[Kernel] = tuple(PROFILES.values()),
    *,
    choose: Callable[[Case], bool] = lambda _: True,
    scenarios_too: bool = True,
    enough: int = 0,
    hardware: str = MODEL,
) -> list[Ran]:
    """Run every chosen case that fits against one vendor, whatever the smoke cases say; stop after ``enough`` failures.

    ``hardware`` is the platform on which hardware cases run; on an emulator there are no others.

    Raises ``HarnessFault``, unless a smoke case has failed before.
    """
    bench = Bench(registry, hardware)
    done: list[Ran] = []
    first = True
    for kernel in kernels:
        lab = bench.lab(vendor, kernel)
        lab.scenarios_too = scenarios_too
        for case in cases():
            if (
                not runs_on(case, hardware)
                or not choose(case)
                or case.vendor not in (None, vendor)
                or not case.fits(kernel.name, kernel.era)
            ):
                continue
            if case.scope is Scope.VENDOR and not first:
                continue
            shown = EVERY if case.scope is Scope.VENDOR else kernel.name
            try:
                done.append(Ran(case, shown, decide(case, lab, enough=enough)))
            except HarnessFault:
                if not any(ran.case.stage is Stage.SMOKE for ran in failures(done)):
                    raise
                continue  # A driver that fails its smoke test gives the core what it cannot work with.
            if enough and done[-1].verdict.outcome is Outcome.FAIL:
                return done
        first = False
    return done


def failures(done: Iterable[Ran]) -> list[Ran]:
    """The cases that failed."""
    return [ran for ran in done if ran.verdict.outcome is Outcome.FAIL]
