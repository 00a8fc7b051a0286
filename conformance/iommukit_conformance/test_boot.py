"""Boot: options, order, and what one boot leaves behind for the next."""

from __future__ import annotations

from typing import Any

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.cmdline import Verdict
from iommukit.kernel.system import System
from iommukit_conformance.case import Findings, Undecided, case, hold
from iommukit_conformance.drills import BOOTS, MACHINES, PORT
from iommukit_conformance.lab import Lab, Spec
from iommukit_conformance.options import option_names, reports_of, strict_word, told

NONSENSE = "no-such-word"


def _signature(system: System) -> dict[str, Any]:
    """What people see of a boot."""
    return {"log": system.boot.log, "lines": system.lines, "groups": system.snapshot()}


@case("DRV-05")
def test_a_boot_leaves_no_trace(lab: Lab) -> Findings:
    """Every machine between two boots of the same one."""
    first = {name: _try(lab, devices) for name, devices in MACHINES.items()}
    for name in reversed(list(MACHINES)):
        before, after = first[name], _try(lab, MACHINES[name])
        if before is None or after is None:
            yield hold(before is after, f"machine {name!r} could be booted only the {'second' if after else 'first'} time")
            continue
        for part, value in before.items():
            text = f"machine {name!r}: the {part} of the second boot differ: {_difference(value, after[part])}"
            yield hold(after[part] == value, text)


def _try(lab: Lab, devices: Any) -> dict[str, Any] | None:
    try:
        return _signature(lab.boot(*devices))
    except (NotApplicable, InputError):
        return None


def _difference(before: list[Any], after: list[Any]) -> str:
    for old, new in zip(before, after, strict=False):
        if old != new:
            return f"{old!r} became {new!r}"
    return f"{len(before)} entries became {len(after)}"


@case("DRV-11")
def test_iommu_off_is_off(lab: Lab) -> Findings:
    """On x86, where the option exists; the machine has nothing that could overrule it."""
    if "x86_64" not in lab.vendor.declaration.arch:
        raise NotApplicable("iommu=off is an option of x86")
    system = lab.boot(*MACHINES["alone"], cmdline="iommu=off")
    yield hold(not system.units, f"{len(system.units)} units are found")


@case("DRV-70")
def test_options_are_reported(lab: Lab) -> Findings:
    """No value may pass without a word."""
    for name in option_names(lab):
        for text in (name, f"{name}=", f"{name}={NONSENSE}", f"{name}=strict", f"{name}=off", f"{name}=1"):
            reports = reports_of(told(lab, text), name)
            yield hold(reports, f"{text!r} passed without a report")
            for report in reports:
                yield hold(report.note.strip(), f"{text!r} is {report.verdict.value}, and nothing says why")
                if NONSENSE in text:
                    yield hold(report.verdict is not Verdict.EFFECTIVE, f"{text!r} is reported as effective: {report.note}")


@case("DRV-71", requires=("legacy-strict-option",))
def test_strictness_is_only_added(lab: Lab) -> Findings:
    """The vendor's word before and after ``iommu.strict=0``."""
    word = strict_word(lab)
    if word is None:
        raise NotApplicable(f"{lab.vendor.name} has no such option in {lab.kernel.name}")
    for cmdline in (word, f"{word} iommu.strict=0", f"iommu.strict=0 {word}"):
        state = told(lab, cmdline)
        yield hold(state.default.strict, f"{cmdline!r} leaves translation lazy")
        state.default.settle("lazy", False)
        yield hold(state.default.policy().name != "LAZY", f"{cmdline!r} leaves the default lazy")
    for kconfig in ("passthrough",):
        state = told(lab, word)
        state.default.settle(kconfig, False)
        yield hold(state.default.passthrough(), f"{word!r} takes identity away, which is not its business")


@case("INV-08", kernels=("rfc",), requires=("pci",))
def test_the_order_of_devices_does_not_matter(lab: Lab) -> Findings:
    """Two functions of one group, in either order, with every pair of requirements that the vendor has examples for."""
    roles = [role for role in ("identity-required", "strict-required", "lazy-preferred") if lab.example(role)]
    for boot in BOOTS:
        for one, two in [(role, other) for role in roles for other in (None, *roles) if other != role]:
            first, second = _function("first", 0, one), _function("second", 1, two)
            try:
                forward = lab.boot(PORT, first, second, **boot)
                backward = lab.boot(PORT, second, first, **boot)
            except (NotApplicable, InputError):
                continue
            for name in ("first", "second"):
                types = [system.devices[name].sysfs_type for system in (forward, backward)]
                text = f"{name} of {one} and {two or 'plain'}, booted {boot}: {types[0]} in one order, {types[1]} in the other"
                yield hold(types[0] == types[1], text)
    if not roles:
        raise Undecided(f"{lab.vendor.name} has no device with a requirement in {lab.kernel.name}")


def _function(name: str, number: int, role: str | None) -> Spec:
    spec: dict[str, Any] = {"name": name, "address": f"0000:01:00.{number}", "parent": "port", "multifunction": True}
    return {**spec, "role": role} if role else {**spec, "id": "8086:10d3", "class": "020000"}
