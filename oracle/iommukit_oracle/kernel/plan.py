"""Which scenarios a real kernel can play, and which of them share a boot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from iommukit.kernel.kernel import Kernel
from iommukit.scenario.model import Scenario
from iommukit.vendors import Vendor
from iommukit_oracle.guest.boot import MACHINES
from iommukit_oracle.kernel.cases import Case, cases
from iommukit_oracle.kernel.realisation import Inexpressible, Realisation
from iommukit_oracle.kernel.realise import realise


@dataclass(slots=True)
class Boot:
    """A boot and the cases to be played in it."""

    realisation: Realisation
    cases: list[Case] = field(default_factory=list)

    @property
    def image(self) -> tuple[str, str]:
        """Which kernel: the profile's name, and Debian's name of the architecture."""
        return self.cases[0].kernel.name, MACHINES[self.realisation.machine].debian


@dataclass(slots=True)
class Plan:
    """What is to be booted, and the cases that cannot be, with the reasons."""

    boots: list[Boot] = field(default_factory=list)
    undecided: list[tuple[Case, str]] = field(default_factory=list)


def make_plan(scenarios: Sequence[Scenario], kernels: Iterable[Kernel], vendors: Sequence[Vendor]) -> Plan:
    """The boots for all cases that apply, those without steps first in each.  Raises ``InputError`` for a wrong scenario."""
    plan = Plan()
    found: dict[tuple[object, ...], Boot] = {}
    for case in cases(scenarios, kernels, vendors):
        try:
            realisation = realise(case.machine, case.scenario.boot, case.vendor.name, case.kernel.name)
        except Inexpressible as error:
            plan.undecided.append((case, str(error)))
            continue
        # Which devices are there, and which drivers they have at boot, is no matter of QEMU's arguments alone.
        there = tuple((device.name, device.driver, device.present) for device in case.machine.devices)
        key = (case.kernel.name, *realisation.key, there, case.scenario.boot.drivers)
        found.setdefault(key, Boot(realisation)).cases.append(case)
    plan.boots = list(found.values())
    for boot in plan.boots:
        boot.cases.sort(key=lambda case: bool(case.scenario.steps))
    return plan
