"""Groups against the suite's own idea of isolation (``isolation.py``)."""

from __future__ import annotations

from iommukit.errors import NotApplicable
from iommukit.machine.model import Machine
from iommukit_conformance.case import Case, CaseList, Check, Findings, hold
from iommukit_conformance.isolation import TOPOLOGIES, pairs
from iommukit_conformance.lab import Lab
from iommukit_conformance.rules import RULES


def _check(topology: str, *, together: bool) -> Check:
    def check(lab: Lab) -> Findings:
        machine = lab.machine(*TOPOLOGIES[topology])
        devices = lab.start(machine).devices
        without = [device.label for device in devices.values() if device.group is None]
        if without:
            raise NotApplicable(f"{lab.vendor.name} gives no group to {', '.join(without)}")
        for one, two in pairs(machine, together=together):
            same = devices[one].group is devices[two].group
            if together:
                yield hold(same, f"{topology}: {one} and {two} are in different groups, but nothing keeps them apart")
            else:
                yield hold(not same, f"{topology}: {one} and {two} share a group, but the hardware keeps them apart")

    return check


def _cases() -> list[Case]:
    found = []
    for topology, devices in TOPOLOGIES.items():
        machine = Machine.model_validate({"machine": "topology", "devices": devices})
        for rule, together in (("DRV-61", True), ("DRV-62", False)):
            if pairs(machine, together=together):
                name = f"{'together' if together else 'apart'}_{topology.replace(' ', '_')}"
                check = _check(topology, together=together)
                found.append(Case(name, check, rule, RULES[rule].statement, requires=("pci",)))
    return found


GROUPS = CaseList(_cases)
