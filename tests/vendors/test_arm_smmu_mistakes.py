"""The mistakes: the suite rejects each by the rule that it names, and the driver without it keeps that rule."""

from __future__ import annotations

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit_arm_smmu.wrong_use import MISTAKES
from iommukit_conformance.suite import failures, run_vendor
from tests.vendors.arm_smmu_hardware import REGISTRY

RULES = {mistake.rule for mistake in MISTAKES}


def broken(registry, rules):
    done = run_vendor(registry, "arm_smmu", [get_kernel("7.2")], choose=lambda case: case.rule in rules)
    assert {ran.case.rule for ran in done} == rules
    return {ran.case.rule for ran in failures(done)}


def test_the_driver_makes_none_of_them():
    assert broken(REGISTRY, RULES) == set()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_is_rejected(mistake):
    assert broken(REGISTRY.wrapped(mistake.wrapper()), {mistake.rule}) == {mistake.rule}
