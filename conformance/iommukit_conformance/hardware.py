"""What the hardware cases run on, and how they are written.

A case is a function of a ``Rig``.  It is carried out once on a machine of two network cards, or on the vendor's own document of
such a machine, and once more on each variant: on the model the ``hardware_variants`` of the vendor's declaration, on an emulator
those of its ``Emulation``; each time on a fresh rig.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from iommukit.errors import HardwareLost, InputError, IommuError, NotApplicable
from iommukit.hookspecs import Emulation
from iommukit.hw.platform import WindowClosed
from iommukit.hw.platforms import model, platform_factory
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import PROFILES
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit.policy import Era
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_conformance.case import Case, Finding, Findings, Stage, Undecided
from iommukit_conformance.lab import MODEL, Lab
from iommukit_conformance.rig import Rig
from iommukit_conformance.rules import RULES
from iommukit_conformance.watched_bus import WatchedPlatform

DOCUMENTED = (7, 2)
"""The version of QEMU whose machine the model takes as well."""
PLAIN = ""
"""The machine without a variant."""


def needs_hardware(lab: Lab) -> None:
    """Raise ``NotApplicable`` where a vendor has no page tables, or no hardware of this kind."""
    name, there = lab.vendor.name, lab.ops.implemented
    if "map_pages" not in there:
        raise NotApplicable(f"{name} has no page tables")
    wanted = "create_unit" if lab.hardware == MODEL else "emulation"
    if wanted not in there:
        raise NotApplicable(f"{name} models no hardware" if lab.hardware == MODEL else f"{name} names no machine of QEMU")


def variants(lab: Lab) -> Iterator[str]:
    """The machines to try: variants once for each generation of drivers.  Raises what ``open_rig`` raises."""
    yield PLAIN
    if lab.kernel is _first_of(lab.era):
        emulation = emulation_of(lab)
        yield from emulation.variants if emulation is not None else lab.vendor.declaration.hardware_variants


def emulation_of(lab: Lab) -> Emulation | None:
    """The emulated machine with its variants; ``None`` on the model.  Raises what ``open_rig`` raises."""
    if lab.hardware != MODEL and lab.emulation is None:
        with _platform(lab, lab.vendor, PLAIN) as platform:
            lab.emulation = platform.emulation
    return lab.emulation


def _platform(lab: Lab, vendor: Vendor, variant: str) -> WatchedPlatform:
    """Fresh hardware.  Raises what ``open_rig`` raises."""
    try:
        make = model if lab.hardware == MODEL else platform_factory(lab.hardware)
        return WatchedPlatform(make(vendor, variant))
    except InputError as error:
        if os.environ.get("CI"):
            raise
        raise Undecided(f"there is no {lab.hardware} here: {error}") from error


def _first_of(era: Era) -> Kernel:
    return next(kernel for kernel in PROFILES.values() if kernel.era is era)


def open_rig(
    lab: Lab,
    variant: str = PLAIN,
    *,
    devices: tuple[Mapping[str, Any], ...] = (),
    absent: str = "",
    registry: VendorRegistry | None = None,
    **boot: Any,
) -> Rig:
    """Boot on fresh hardware; to be closed.  Other ``devices`` than two network cards only on the model.

    The device ``absent`` is there, but the kernel does not know of it before it is added.

    Raises ``NotApplicable`` where the vendor has no such hardware, ``Undecided`` where it cannot be had on this computer.
    """
    needs_hardware(lab)
    registry = registry or lab.registry
    vendor = registry.get(lab.vendor.name)
    platform = _platform(lab, vendor, variant)
    try:
        emulation = platform.emulation
        if emulation is not None:
            if lab.trying in emulation.absent:
                raise NotApplicable(f"{platform.name}: {emulation.absent[lab.trying]}")
            boot.setdefault("config", emulation.config)
        machine = _machine(lab, platform, variant, devices, absent)
        boot.setdefault("kconfig", "strict")
        system = start_system(lab.kernel, vendor, registry, machine, BootSpec(**boot), platform=platform)
        if system.platform is None:
            raise NotApplicable(f"{vendor.name} finds no unit on {platform.name}")
        return Rig(system, platform)
    except BaseException:
        platform.close()
        raise


def _machine(lab: Lab, platform: WatchedPlatform, variant: str, devices: tuple[Mapping[str, Any], ...], absent: str) -> Machine:
    document = _document(lab, platform, variant, devices)
    if absent:
        fields = document.model_dump(exclude_unset=True, by_alias=True)
        for device in fields["devices"]:
            if device["name"] == absent:
                device["present"] = False
        document = lab.document(fields)
    return document


def _document(lab: Lab, platform: WatchedPlatform, variant: str, devices: tuple[Mapping[str, Any], ...]) -> Machine:
    if devices:
        if not platform.is_model:
            raise NotApplicable(f"{platform.name} has other devices than this needs")
        return lab.machine(*devices, hardware=lab.vendor.declaration.hardware_variants.get(variant))
    emulation = platform.emulation or (lab.ops.emulation(version=DOCUMENTED) if variant == PLAIN else None)
    if emulation is not None:
        return lab.document(emulation.machine)
    return lab.machine(*lab.two_cards, hardware=lab.vendor.declaration.hardware_variants.get(variant))


RigCheck = Callable[[Rig], Findings]


def on_hardware(rule: str, **options: Any) -> Callable[[RigCheck], Case]:
    """Make a case of a function of a rig.  Further options are those of ``Case``."""

    def decorate(check: RigCheck) -> Case:
        def run(lab: Lab) -> Findings:
            yield from on_each(lab, rule, lambda variant: _once(lab, variant, check))

        name = check.__name__.removeprefix("test_")
        return Case(name, run, rule, RULES[rule].statement, stage=Stage.HARDWARE, **options)

    return decorate


def with_lab(rule: str, **options: Any) -> Callable[[Callable[[Lab, str], Findings]], Case]:
    """Make a case of a function of a lab and a variant, which opens rigs of its own."""

    def decorate(check: Callable[[Lab, str], Findings]) -> Case:
        def run(lab: Lab) -> Findings:
            yield from on_each(lab, rule, lambda variant: check(lab, variant))

        name = check.__name__.removeprefix("test_")
        return Case(name, run, rule, RULES[rule].statement, stage=Stage.HARDWARE, **options)

    return decorate


def _once(lab: Lab, variant: str, check: RigCheck) -> Findings:
    with open_rig(lab, variant) as rig:
        yield from check(rig)


def on_each(lab: Lab, rule: str, check: Callable[[str], Findings]) -> Findings:
    """A rule's check on each machine; not applicable where it is so on all.

    What an emulated machine gets wrong is expected of it, and must be found.
    """
    needs_hardware(lab)
    lab.trying = rule
    reasons: list[NotApplicable] = []
    looked = False
    for variant in variants(lab):
        emulation = emulation_of(lab)
        deviations = emulation.machine_of(variant).deviations if emulation is not None else {}
        place = f"with {variant}: " if variant else ""
        wrong: set[str] = set()
        answers = 0
        for answer in _answers(check, variant, reasons):
            answers += 1
            if answer is None:
                yield None
                continue
            finding = answer if isinstance(answer, Finding) else Finding(rule, answer)
            wrong.add(finding.rule)
            yield replace(finding, text=place + finding.text, expected=deviations.get(finding.rule, ""))
        if answers and rule in deviations and rule not in wrong:
            yield Finding(rule, f"{place}passes, though it is declared to fail: {deviations[rule]}")
        looked = looked or bool(answers)
    if reasons and not looked:
        raise reasons[0]


def _answers(check: Callable[[str], Findings], variant: str, reasons: list[NotApplicable]) -> Findings:
    """What a check finds on one machine; how it ends before its time is a finding, or one more of the ``reasons``."""
    try:
        yield from check(variant)
    except NotApplicable as error:
        reasons.append(error)
    except IommuError as error:
        yield f"the driver refuses what it should do: {error}"
    except WindowClosed as error:
        yield str(error)
    except HardwareLost as error:
        yield f"the hardware does not survive it: {error}"
