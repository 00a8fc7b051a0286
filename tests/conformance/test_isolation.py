"""The suite's own idea of isolation, against topologies worked out by hand."""

from __future__ import annotations

import pytest

from iommukit.machine.model import Machine
from iommukit_conformance.isolation import TOPOLOGIES, classes, pairs

BY_HAND = {
    "two ports with access control": [{"root1"}, {"root2"}, {"nic1"}, {"nic2"}],
    "two ports without": [{"root1", "nic1"}, {"root2", "nic2"}],
    "two ports of one slot without": [{"root1", "root2", "nic1", "nic2"}],
    "two ports of one slot with access control": [{"root1"}, {"root2"}, {"nic1"}, {"nic2"}],
    "a port with half of access control": [{"root", "nic"}],
    "a switch with access control": [{"root"}, {"up"}, {"down1"}, {"down2"}, {"nic1"}, {"nic2"}],
    "a switch without": [{"root"}, {"up"}, {"down1", "nic1"}, {"down2", "nic2"}],
    "functions without access control": [{"root"}, {"f0", "f1", "f2"}],
    "functions with access control": [{"root"}, {"f0"}, {"f1"}, {"f2"}],
    "conventional devices behind a bridge": [{"root"}, {"bridge", "old1", "old2"}],
    "conventional devices behind a conventional bridge": [{"bridge", "old1", "old2"}, {"nic"}],
    "a function that speaks for another": [{"root"}, {"f0", "f1"}],
    "cards on the root bus": [{"nic1"}, {"nic2"}],
}


def machine_of(topology: str) -> Machine:
    return Machine.model_validate({"machine": "m", "devices": TOPOLOGIES[topology]})


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_classes(topology: str) -> None:
    number = classes(machine_of(topology))
    found = [{name for name in number if number[name] == at} for at in set(number.values())]
    assert sorted(map(sorted, found)) == sorted(map(sorted, BY_HAND[topology]))


def test_all_pairs_are_on_one_side() -> None:
    machine = machine_of("a switch without")
    together, apart = pairs(machine, together=True), pairs(machine, together=False)
    assert ("down1", "nic1") in together
    assert ("nic1", "nic2") in apart
    assert len(together) + len(apart) == 6 * 5 // 2
