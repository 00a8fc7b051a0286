"""Smoke: first the suite itself, then whether a vendor boots and answers at all.

A suite that cannot tell right from wrong says so and judges nobody.  A vendor that does not boot a trivial machine is not
examined any further.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from iommukit.errors import InputError
from iommukit.kernel.cmdline import KernelOption, OptionReport
from iommukit.kernel.profiles import PROFILES, STABLE
from iommukit.scenario.model import ANY_KERNEL
from iommukit_conformance.case import Case, CaseList, Finding, Findings, Scope, Stage, case, hold
from iommukit_conformance.drills import drills
from iommukit_conformance.lab import NIC, Lab
from iommukit_conformance.reference import Reference
from iommukit_conformance.rules import RULES
from iommukit_conformance.scenarios import scenarios, unreadable

HOOKS_OF_A_DEVICE = (
    "def_domain_type",
    "prefer_dma_api_fq",
    "flush_queue_options",
    "get_resv_regions",
    "is_attach_deferred",
)
ROLES = ("identity-required", "strict-required", "lazy-preferred", "no-lazy", "direct-region", "relaxable-region")

ANSWERS_TO_ALL = ("DRV-02", "DRV-10", "DRV-07", "DRV-17", "DRV-20", "DRV-50", "DRV-60")
"""Rules of which a breach means that a hook is unusable."""


# ---- the suite itself ------------------------------------------------------------------------------------------------


def _kernels(lab: Lab) -> Findings:
    yield hold(PROFILES, "there is no kernel profile")
    for name, kernel in PROFILES.items():
        yield hold(kernel.name == name, f"the profile {name!r} calls itself {kernel.name!r}")
        system = lab.with_kernel(kernel).boot(NIC)
        yield hold(system.devices["nic"].group is not None, f"{name} gives the reference's device no group")


def _scenarios(lab: Lab) -> Findings:
    yield hold(not unreadable(), f"the shipped scenarios cannot be read: {unreadable()}")
    names = {*PROFILES, *STABLE, ANY_KERNEL}
    for scenario in scenarios():
        unknown = set(scenario.expect) - names
        yield hold(not unknown, f"scenario {scenario.scenario} expects something of {', '.join(sorted(unknown))}: no such kernel")
    yield hold(drills(), "there are no drills")


def _right(lab: Lab) -> Findings:
    from iommukit_conformance.wrong.runner import judge_control

    yield None
    for ran in judge_control(Reference, ("rfc",)):
        for finding in ran.verdict.findings:
            yield f"the reference is rejected: {finding} [{ran.case.name}]"


def _wrong(lab: Lab) -> Findings:
    from iommukit_conformance.wrong import SMOKE
    from iommukit_conformance.wrong.runner import judge_wrong

    for driver in SMOKE:
        judged = judge_wrong(driver)
        yield hold(judged.named, f"the wrong driver {driver.label()} is accepted: {driver.mistake}")


def _harness_cases() -> list[Case]:
    checks = {
        "kernels_load": _kernels,
        "scenarios_load": _scenarios,
        "a_right_driver_passes": _right,
        "a_wrong_driver_fails": _wrong,
    }
    title = RULES["SUITE-1"].statement
    return [Case(name, check, "SUITE-1", title, Stage.HARNESS, Scope.SUITE) for name, check in checks.items()]


HARNESS = CaseList(_harness_cases)


# ---- a vendor --------------------------------------------------------------------------------------------------------


@case("DRV-06", stage=Stage.SMOKE)
def test_an_ordinary_machine_boots(lab: Lab) -> Findings:
    """One network card on the root bus, as the kernel is built by default."""
    try:
        system = lab.boot(NIC)
    except InputError as error:
        yield f"a machine of one network card cannot be booted: {error}"
        return
    yield hold(system.units, "no unit is found")
    names = [unit.name for unit in system.units]
    yield hold(len(set(names)) == len(names), f"two units have one name: {', '.join(names)}")
    yield hold(system.devices["nic"].group is not None, "the network card is in no group")


@case("DRV-06", stage=Stage.SMOKE)
def test_every_hook_answers(lab: Lab) -> Findings:
    """What the core asks of a device, asked once."""
    device = lab.plain()
    for hook in HOOKS_OF_A_DEVICE:
        getattr(lab.ops, hook)(device=device)
    lab.ops.capable(device=device, capability="cache_coherency")
    yield None
    yield from _unusable(lab)


@case("DRV-07", stage=Stage.SMOKE)
def test_what_a_vendor_lists_can_be_used(lab: Lab) -> Findings:
    """Firmware formats, options, and an example for each role; the recorder looks at the answers."""
    yield None
    state = lab.boot_state()
    lab.ops.firmware_formats()
    for role in ROLES:
        lab.ops.example_device(role=role, boot=state)
    options = lab.ops.kernel_options(boot=state)
    found = [finding for finding in lab.recorder.findings if finding.rule in ("DRV-07", "DRV-23")]
    yield from found
    for option in () if found else options or ():
        yield from _readers(lab, option)


def _readers(lab: Lab, option: KernelOption) -> Findings:
    """An option's reader, given no value and a word that it does not know."""
    for value in (None, "no-such-word"):
        state = lab.boot_state()
        call = f"apply({value!r}, boot) of the option {option.name}"
        if not _takes(option.apply, value, state):
            yield f"{call}: it must take the value and the boot state"
            return
        answer: object = option.apply(value, state)
        if not isinstance(answer, Iterable) or isinstance(answer, str):
            yield f"{call} answered {answer!r:.80}, not OptionReports"
            return
        for report in answer:
            yield hold(isinstance(report, OptionReport), f"{call} yielded {report!r:.80}, not an OptionReport")


def _takes(function: object, *arguments: object) -> bool:
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True  # Written in C, and nobody knows.
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _unusable(lab: Lab) -> Sequence[Finding]:
    return [finding for finding in lab.recorder.findings if finding.rule in ANSWERS_TO_ALL]
