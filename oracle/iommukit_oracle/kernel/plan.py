"""Which scenarios a real kernel can play, and which of them share a boot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from iommukit.errors import NotApplicable
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.realise import realise as realise_roles
from iommukit.kernel.start import new_boot_state
from iommukit.machine.model import Machine
from iommukit.scenario.model import Scenario
from iommukit.vendors import Vendor
from iommukit_oracle.guest.boot import MACHINES
from iommukit_oracle.kernel.realisation import Inexpressible, Realisation
from iommukit_oracle.kernel.realise import realise


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario under one kernel with one vendor; ``machine`` is as the vendor would have it."""

    scenario: Scenario
    machine: Machine
    kernel: Kernel
    vendor: Vendor

    @property
    def digest(self) -> str:
        """Of all that is played: the machine, the boot and the steps, not of what is expected."""
        return digest(self.scenario, self.machine)


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


def digest(scenario: Scenario, machine: Machine) -> str:
    """Twelve hexadecimal digits of a scenario's machine, boot and steps."""
    parts = (
        machine.model_dump(mode="json", by_alias=True, include={"arch", "hardware", "devices"}),
        {name: repr(table) for name, table in machine.firmware.items()},
        scenario.boot.model_dump(mode="json"),
        [step.model_dump(mode="json", exclude_unset=True) for step in scenario.steps],
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


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


def cases(scenarios: Sequence[Scenario], kernels: Iterable[Kernel], vendors: Sequence[Vendor]) -> Iterator[Case]:
    """The cases that apply: what a vendor lacks is left out."""
    for kernel in kernels:
        for vendor in vendors:
            for scenario in scenarios:
                machine = scenario.machine
                assert isinstance(machine, Machine)
                if scenario.vendor not in (None, vendor.name) or not all(vendor.has(wanted) for wanted in scenario.requires):
                    continue
                arch = machine.arch or vendor.declaration.arch[0]
                try:
                    realised = realise_roles(machine, vendor, new_boot_state(kernel, arch, scenario.boot))
                except NotApplicable:
                    continue
                yield Case(scenario, realised, kernel, vendor)
