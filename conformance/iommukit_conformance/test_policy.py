"""What a driver requires of the core's policy."""

from __future__ import annotations

from collections.abc import Callable

from iommukit.device import Device
from iommukit.domain import DomainType
from iommukit.errors import NotApplicable
from iommukit.policy import DmaApiPolicy
from iommukit.regions import RegionType
from iommukit_conformance.case import Case, CaseList, Findings, Undecided, case, hold
from iommukit_conformance.drills import BOOTS, OUTSIDE
from iommukit_conformance.lab import ISOLATED, NIC, SECOND, Lab
from iommukit_conformance.rules import RULES

REQUIREMENTS = ("identity-required", "strict-required", "lazy-preferred", "no-lazy", "direct-region", "relaxable-region")


def _answer(device: Device) -> DmaApiPolicy:
    answer: DmaApiPolicy = device.system.vendor.ops.def_domain_type(device=device)
    return answer


def _name(answer: object) -> str:
    return answer.name if isinstance(answer, DmaApiPolicy) else repr(answer)


@case("DRV-21")
def test_requirements_stay_the_same(lab: Lab) -> Findings:
    """Three calls, before and after a neighbour was asked, in both orders of the machine file."""
    specs = [NIC, *({"name": "nic", "role": role} for role in REQUIREMENTS if lab.example(role))]
    for spec in specs:
        heard = []
        for devices in ((spec,), (spec, SECOND), (SECOND, spec)):
            try:
                system = lab.boot(*devices)
            except NotApplicable:
                continue
            device = system.devices["nic"]
            if device.unit is None:
                continue
            for _ in range(3):
                heard.append(_answer(device))
                for other in system.devices.values():
                    if other.unit is not None:
                        _answer(other)
        if heard:
            shown = ", ".join(_name(answer) for answer in heard)
            yield hold(len(set(heard)) == 1, f"{spec.get('role', 'an ordinary device')} answers {shown}")


@case("DRV-22")
def test_an_ordinary_device_requires_nothing(lab: Lab) -> Findings:
    """However the kernel was started."""
    allowed = {DmaApiPolicy.ANY}
    if lab.vendor.has("lazy-preferred"):
        allowed.add(DmaApiPolicy.LAZY)
    for boot in BOOTS:
        answer = _answer(lab.plain(**boot))
        yield hold(answer in allowed, f"a network card requires {_name(answer)} (booted {boot})")


QUESTIONS = (
    "cache_coherency",
    "deferred_flush",
    "interrupt_remapping",
    "noexec",
    "pre_boot_protection",
    "enforce_cache_coherency",
    "dirty_tracking",
)


@case("DRV-17")
def test_yes_or_no_is_answered_so(lab: Lab) -> Findings:
    """By every hook that is asked so."""
    device = lab.plain()
    for question in QUESTIONS:
        answer = lab.ops.capable(device=device, capability=question)
        yield hold(isinstance(answer, bool), f"capable({question}) answers {answer!r}")
    for hook in ("prefer_dma_api_fq", "is_attach_deferred"):
        answer = getattr(lab.ops, hook)(device=device)
        yield hold(isinstance(answer, bool), f"{hook} answers {answer!r}")


def _requires(policy: DmaApiPolicy) -> Callable[[Device], str | None]:
    def look(device: Device) -> str | None:
        return hold(_answer(device) is policy, f"it answers {_name(_answer(device))}, not {policy.name}")

    return look


def _no_queue(device: Device) -> str | None:
    ops = device.system.vendor.ops
    domain = ops.domain_alloc(device=device, type=DomainType.DMA)
    return hold(
        not ops.prefer_dma_api_fq(device=device) and not (domain is not None and domain.generic_pt),
        "it has a flush queue all the same",
    )


def _region(kind: RegionType) -> Callable[[Device], str | None]:
    def look(device: Device) -> str | None:
        kinds = {region.type for region in device.system.regions(device)}
        return hold(kind in kinds, f"it has no {kind.value} region")

    return look


ROLES: dict[str, tuple[str, Callable[[Device], str | None]]] = {
    "identity-required": ("identity-required", _requires(DmaApiPolicy.IDENTITY)),
    "strict-required": ("strict-required", _requires(DmaApiPolicy.STRICT)),
    "lazy-preferred": ("lazy-preferred", _requires(DmaApiPolicy.LAZY)),
    "no-lazy": ("no-lazy", _no_queue),
    "direct-region": ("direct-regions", _region(RegionType.DIRECT)),
    "relaxable-region": ("relaxable-regions", _region(RegionType.DIRECT_RELAXABLE)),
}
"""The capability that a role needs, and how its example shows."""


def _role_cases() -> list[Case]:
    cases = []
    for role, (capability, look) in ROLES.items():

        def check(lab: Lab, role: str = role, look: Callable[[Device], str | None] = look) -> Findings:
            yield look(lab.role(role))

        name = f"the_example_for_{role.replace('-', '_')}"
        cases.append(Case(name, check, "DRV-23", RULES["DRV-23"].statement, requires=(capability,)))
    return cases


EXAMPLES = CaseList(_role_cases)


@case("DRV-24", requires=("trust", "identity-required"))
def test_quirks_do_not_apply_to_untrusted_devices(lab: Lab) -> Findings:
    """The example that requires identity, plugged in below an external port."""
    if lab.example("identity-required") is None:
        raise NotApplicable(f"{lab.vendor.name} has no device for the role identity-required in {lab.kernel.name}")
    device = {"name": "nic", "role": "identity-required", "parent": "port"}
    system = lab.boot({**OUTSIDE, "acs": ISOLATED}, device)
    guest = system.devices["nic"]
    if not guest.untrusted:
        raise Undecided(f"the device is not untrusted in {lab.kernel.name}")
    if guest.unit is None:
        # The core has refused it; whoever refuses a device does not let it through.
        guest.unit = next(iter(system.units), None)
    answer = _answer(lab.translated(guest))
    yield hold(answer is not DmaApiPolicy.IDENTITY, f"{guest.label} is untrusted, and the driver requires identity for it")


@case("DRV-13")
def test_a_device_that_returns_is_new(lab: Lab) -> Findings:
    """Removed and added, each device has the unit, the requirement, the regions and the type of before."""
    for spec in (NIC, *({"name": "nic", "role": role} for role in REQUIREMENTS if lab.example(role))):
        try:
            system = lab.boot(spec)
        except NotApplicable:
            continue
        device = system.devices["nic"]
        if device.unit is None:
            continue
        before = _portrait(device)
        for time in ("first", "second"):
            lab.kernel.remove(system, device)
            lab.kernel.add(system, device)
            # Where devices meet their unit at bind, a driver must come by.
            lab.kernel.bind(system, device, "driver", managed=True)
            lab.kernel.unbind(system, device)
            for (part, old), new in zip(before.items(), _portrait(device).values(), strict=True):
                text = f"{spec.get('role', 'a network card')}: after the {time} return its {part} is {new}, and was {old}"
                yield hold(new == old, text)


def _portrait(device: Device) -> dict[str, object]:
    if device.unit is None:
        return {"unit": "none", "requirement": "none", "type": "none", "regions": "none"}
    regions = sorted(region.sysfs for region in device.system.regions(device))
    return {
        "unit": device.unit.name,
        "requirement": _name(_answer(device)),
        "type": device.sysfs_type,
        "regions": ", ".join(regions),
    }
