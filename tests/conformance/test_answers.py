"""Answers and declarations of the wrong type are the vendor's failure, never the suite's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iommukit.device import Unit
from iommukit.hookspecs import hookimpl
from iommukit.kernel.cmdline import KernelOption, Stage
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import Finding, Scope
from iommukit_conformance.reference import NAME, Reference
from iommukit_conformance.selection import Selection
from iommukit_conformance.session import Session
from iommukit_conformance.suite import cases


def judged(driver: Reference) -> list[Finding]:
    """Every case under one kernel: none is a fault of the suite, and some fail."""
    registry = VendorRegistry()
    registry.register(driver, NAME)
    kernel = get_kernel("rfc")
    session = Session(Selection(registry, (NAME,), (kernel,), {}))
    session.__dict__["_harness"] = {}
    found: list[Finding] = []
    for case in cases():
        if case.scope is not Scope.SUITE and case.vendor is None and case.fits(kernel.name, kernel.era):
            verdict = session.decide(case, NAME, kernel)
            assert not verdict.fault, (case.name, verdict)
            if verdict.outcome is Outcome.FAIL:
                found.extend(verdict.findings)
    return found


def _option(apply: Any) -> list[KernelOption]:
    return [KernelOption("acme", Stage.SETUP, apply, "an option")]


ANSWERS = {
    "one unit": ("discover", Unit("acme0", NAME), "DRV-07", "not a sequence of Units"),
    "names of units": ("discover", ["acme0"], "DRV-07", "not a sequence of Units"),
    "a text for options": ("kernel_options", "acme", "DRV-07", "not a sequence of KernelOptions"),
    "a text for formats": ("firmware_formats", "ACME", "DRV-07", "not a sequence of TableFormats"),
    "a text for an example": ("example_device", "1234:0001", "DRV-23", "not an ExampleDevice or None"),
    "one region": ("get_resv_regions", 5, "DRV-50", "not a sequence of ReservedRegions"),
    "a reader that answers nothing": ("kernel_options", _option(lambda value, boot: None), "DRV-07", "not OptionReports"),
    "a reader that yields texts": ("kernel_options", _option(lambda value, boot: ["on"]), "DRV-07", "not an OptionReport"),
    "a reader without a state": ("kernel_options", _option(lambda value: ()), "DRV-07", "must take the value and the boot state"),
    "no reader": ("kernel_options", _option(None), "DRV-07", "must take the value and the boot state"),
}


def _driver(hook: str, answer: Any) -> Reference:
    bodies: dict[str, Any] = {
        "discover": lambda self, machine, boot: answer,
        "kernel_options": lambda self, boot: answer,
        "firmware_formats": lambda self: answer,
        "example_device": lambda self, role, boot: answer,
        "get_resv_regions": lambda self, device: answer,
        "declare": lambda self: answer,
    }
    return type("Acme", (Reference,), {hook: hookimpl(bodies[hook])})()


@pytest.mark.parametrize(("hook", "answer", "rule", "text"), ANSWERS.values(), ids=ANSWERS)
def test_a_wrong_answer_fails_by_a_rule_that_says_what_was_expected(hook: str, answer: Any, rule: str, text: str) -> None:
    found = judged(_driver(hook, answer))
    assert any(finding.rule == rule and text in finding.text for finding in found), found


DECLARATIONS = {
    "no architecture": ({"arch": ()}, "arch is ()"),
    "a text for architectures": ({"arch": "x86_64"}, "arch is 'x86_64'; a tuple was expected"),
    "an architecture's other name": ({"arch": ("x86",)}, "arch names 'x86'; there are x86_64, aarch64"),
    "a list of hardware options": ({"hardware_options": ["emulated"]}, "hardware_options is ['emulated']; a mapping"),
    "a text for capabilities": ({"capabilities": "identity"}, "capabilities is 'identity'; a set of names"),
    "failures without a reason": ({"expected_failures": {"DRV-22": None}}, "expected_failures is {'DRV-22': None}; a mapping"),
    "no title": ({"title": None}, "title is None"),
}


@pytest.mark.parametrize(("changed", "text"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_malformed_declaration_fails_by_its_rule(changed: dict[str, Any], text: str) -> None:
    found = judged(_driver("declare", replace(Reference().declare(), **changed)))
    assert {finding.rule for finding in found} == {"DRV-01"}
    assert all(text in finding.text for finding in found)


def test_trust_is_for_x86_64() -> None:
    found = judged(_driver("declare", replace(Reference().declare(), arch=("aarch64",))))
    assert any(finding.rule == "DRV-03" and finding.text.startswith("trust is declared, but on aarch64") for finding in found)
