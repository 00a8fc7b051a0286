"""Reserved regions."""

from __future__ import annotations

from iommukit.device import Device
from iommukit.errors import NotApplicable
from iommukit.kernel.profiles import PROFILES
from iommukit.regions import RegionType
from iommukit_conformance.case import Findings, Scope, Undecided, case, hold
from iommukit_conformance.lab import NIC, Lab, Spec
from iommukit_conformance.test_policy import REQUIREMENTS


def _covered(device: Device) -> Findings:
    reported = device.system.regions(device)
    for region in device.facts.reserved:
        same = [each for each in reported if each.start <= region.start and region.end <= each.end]
        yield hold(same, f"firmware reserves {region.sysfs}, and the driver does not say so")
        kinds = ", ".join(each.type.value for each in same)
        if same:
            yield hold(any(each.type is region.type for each in same), f"firmware reserves {region.sysfs}, the driver says {kinds}")


def _for_role(lab: Lab, role: str) -> Findings:
    device = lab.role(role)
    if not device.facts.reserved:
        raise Undecided("the example's regions are in a firmware table")
    yield from _covered(device)


@case("DRV-51", requires=("direct-regions",))
def test_direct_regions_are_reported(lab: Lab) -> Findings:
    """Those of the vendor's example."""
    yield from _for_role(lab, "direct-region")


@case("DRV-51", requires=("relaxable-regions",))
def test_relaxable_regions_are_reported(lab: Lab) -> Findings:
    """Those of the vendor's example."""
    yield from _for_role(lab, "relaxable-region")


@case("DRV-53")
def test_regions_stay_the_same(lab: Lab) -> Findings:
    """Asked twice, nothing having happened in between."""
    devices = [lab.plain()]
    for role in REQUIREMENTS:
        try:
            devices.append(lab.role(role))
        except NotApplicable:
            continue
    for device in devices:
        heard = [sorted(region.sysfs for region in device.system.regions(device)) for _ in range(3)]
        text = f"{device.facts.role or 'plain'}: {heard[0] or 'none'}, then {heard[1] or 'none'}, then {heard[2] or 'none'}"
        yield hold(heard[0] == heard[1] == heard[2], text)


@case("DRV-54", scope=Scope.VENDOR)
def test_regions_of_the_machine_file_are_not_ignored(lab: Lab) -> Findings:
    """An ordinary device with a region of each type; a release may not read it, but then some other does."""
    for kind in (RegionType.DIRECT, RegionType.DIRECT_RELAXABLE, RegionType.RESERVED, RegionType.MSI):
        device = {**NIC, "reserved": [{"start": 0x1FF0_0000, "end": 0x1FF0_FFFF, "type": kind.value}]}
        seen = [_is_reported(lab.with_kernel(kernel), device) for kernel in PROFILES.values()]
        if None in seen:
            yield None
            continue
        yield hold(any(seen), f"a {kind.value} region is in the machine file, and no release reports it or refuses the machine")


def _is_reported(lab: Lab, spec: Spec) -> bool | None:
    """Whether the driver reports the region; ``None`` where the machine is not applicable."""
    try:
        device = lab.translated(lab.boot(spec).devices["nic"])
    except NotApplicable:
        return None
    (region,) = device.facts.reserved
    return any(
        each.type is region.type and each.start <= region.start and region.end <= each.end for each in device.system.regions(device)
    )
