"""The tester tested: wrong drivers are rejected, each by the rule that names its mistake, and right ones are not."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import Stage
from iommukit_conformance.controls import CONTROLS, WithoutIdentity, WithoutLazy, WithoutRequirements
from iommukit_conformance.reference import Reference
from iommukit_conformance.rules import RULES
from iommukit_conformance.suite import cases, failures, run_vendor
from iommukit_conformance.wrong import SMOKE, WRONG
from iommukit_conformance.wrong.__main__ import table
from iommukit_conformance.wrong.base import Wrong
from iommukit_conformance.wrong.runner import Judged, judge_control, judge_wrong


@pytest.mark.parametrize("driver", WRONG, ids=lambda driver: driver.label())
def test_each_is_rejected_by_its_rule(driver: type[Wrong]) -> None:
    judged = judge_wrong(driver)
    assert judged.named, f"{driver.mistake} Found: {judged.findings}"
    assert judged.found


def test_there_are_enough_of_them_and_each_says_what_it_is() -> None:
    assert len(WRONG) >= 24
    assert len({driver.mistake for driver in WRONG}) == len(WRONG)
    for driver in WRONG:
        assert driver.rule in RULES
        assert driver.kernel in PROFILES
        assert re.fullmatch(r"[A-Z].*\.", driver.mistake), driver.mistake
    assert set(SMOKE) <= set(WRONG)


def test_every_rule_about_drivers_rejects_somebody() -> None:
    rules = {rule for rule in RULES if rule.startswith("DRV-")}
    assert rules - {driver.rule for driver in WRONG} == set()


def test_every_rule_has_a_case() -> None:
    assert {rule for rule in RULES if not rule.startswith("SUITE-")} <= {case.rule for case in cases()}


@pytest.mark.parametrize("driver", CONTROLS.values(), ids=CONTROLS)
def test_right_drivers_pass_under_every_kernel(driver: type[Reference]) -> None:
    failed = judge_control(driver, scenarios=True)
    assert [(ran.kernel, ran.case.name, ran.verdict.findings) for ran in failed] == []


@pytest.mark.parametrize(
    ("driver", "capability"), [(WithoutIdentity, "identity"), (WithoutLazy, "lazy"), (WithoutRequirements, "strict-required")]
)
def test_lesser_drivers_lack_what_they_say(driver: type[Reference], capability: str) -> None:
    registry = VendorRegistry()
    vendor = registry.register(driver(), "lesser")
    assert not vendor.has(capability)
    assert ("def_domain_type" in vendor.ops.implemented) is (driver is not WithoutRequirements)


def test_a_kernel_that_misreads_a_hook_says_nothing_of_a_driver_without_it() -> None:
    registry = VendorRegistry()
    registry.register(WithoutRequirements(), "lesser")
    done = run_vendor(registry, "lesser", [get_kernel("rfc-unconverted")], choose=lambda case: case.stage is Stage.SCENARIO)
    assert {ran.verdict.outcome for ran in done} == {Outcome.NOT_APPLICABLE}
    assert {ran.verdict.reason for ran in done} == {"lesser has no def_domain_type, which is what this kernel misreads"}


@pytest.mark.parametrize("kernel", ["rfc", "6.12"])
def test_the_reference_passes_the_scenarios_beside_all_installed_vendors(kernel: str) -> None:
    registry = VendorRegistry.installed()
    registry.register(Reference(), "reference")
    failed = failures(run_vendor(registry, "reference", [get_kernel(kernel)]))
    assert [(ran.case.name, ran.verdict.findings) for ran in failed] == []


def test_thorough_judging_names_the_other_rules_too() -> None:
    driver = next(driver for driver in WRONG if driver.label() == "keeps-the-old-domain")
    judged = judge_wrong(driver, thorough=True)
    assert judged.named
    assert "DRV-39" in judged.others


def test_a_driver_that_the_core_falls_over_can_be_judged_thoroughly() -> None:
    driver = next(driver for driver in WRONG if driver.label() == "silent-reader")
    assert judge_wrong(driver, thorough=True).named


class Right(Wrong):
    mistake = "None."
    rule = "DRV-22"


def test_a_driver_without_its_mistake_is_noticed() -> None:
    judged = judge_wrong(Right, thorough=True)
    assert not judged.named
    assert judged.others == []


def test_the_table_says_what_was_missed() -> None:
    text = StringIO()
    Console(width=200, file=text).print(table([Judged(Right, ())]))
    assert "not by DRV-22" in text.getvalue()
