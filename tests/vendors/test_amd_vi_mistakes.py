"""The mistakes: the suite rejects each by the rule that it names, and the driver without it keeps that rule."""

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit_amd_vi.wrong_use import MISTAKES
from iommukit_conformance.suite import failures, run_vendor

from .amd_vi import REGISTRY

RULES = {mistake.rule for mistake in MISTAKES}


def broken(registry, kernel, rules):
    done = run_vendor(registry, "amd_vi", [get_kernel(kernel)], choose=lambda case: case.rule in rules)
    assert {ran.case.rule for ran in done} == rules
    return {ran.case.rule for ran in failures(done)}


@pytest.mark.parametrize("kernel", ["6.1", "7.2"])
def test_the_driver_makes_none_of_them(kernel):
    assert broken(REGISTRY, kernel, RULES) == set()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_is_rejected(mistake):
    assert broken(REGISTRY.wrapped(mistake.wrapper()), "7.2", {mistake.rule}) == {mistake.rule}
