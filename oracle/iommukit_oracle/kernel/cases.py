"""What there is for real kernels to play: each scenario under each kernel with each vendor that it applies to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from iommukit.errors import NotApplicable
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.realise import realise
from iommukit.kernel.start import new_boot_state
from iommukit.machine.model import Machine
from iommukit.scenario.model import Scenario
from iommukit.vendors import Vendor


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


def digest(scenario: Scenario, machine: Machine) -> str:
    """Twelve hexadecimal digits of a scenario's machine, boot and steps."""
    parts = (
        machine.model_dump(mode="json", by_alias=True, include={"arch", "hardware", "devices"}),
        {name: repr(table) for name, table in machine.firmware.items()},
        scenario.boot.model_dump(mode="json"),
        [step.model_dump(mode="json", exclude_unset=True) for step in scenario.steps],
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


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
                    realised = realise(machine, vendor, new_boot_state(kernel, arch, scenario.boot))
                except NotApplicable:
                    continue
                yield Case(scenario, realised, kernel, vendor)
