"""What is watched in every run: the invariants, after boot and after each step.

A watched rule is a function from a ``Moment`` to findings, as a case is; ``Watch`` carries a run's memory from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from iommukit.device import Device, DmaOps
from iommukit.domain import Domain, DomainType
from iommukit.group import Group
from iommukit.kernel.system import System
from iommukit.policy import SYSFS_POLICY, DmaApiPolicy
from iommukit.regions import RegionType
from iommukit.scenario.model import Scenario, Step
from iommukit.scenario.result import StepResult
from iommukit_conformance.case import hold
from iommukit_conformance.recorder import Recorder

RFC = ("rfc",)

WHOLE_GROUP = ("rfc", "6.12", "7.2")
"""Kernels that set up a group as a whole."""

TYPE_OF = {DmaApiPolicy.IDENTITY: "identity", DmaApiPolicy.STRICT: "DMA", DmaApiPolicy.LAZY: "DMA-FQ"}


@dataclass(frozen=True, slots=True)
class GroupPicture:
    """A group as it was: its domains, its type and where its devices were."""

    members: frozenset[str]
    default: Domain | None
    type: str
    attached: tuple[tuple[Device, Domain | None], ...]
    domain: Domain | None


Picture = dict[int, GroupPicture]


def take_picture(system: System) -> Picture:
    """All groups at this moment."""
    return {
        number: GroupPicture(
            frozenset(device.name for device in group.devices),
            group.default_domain,
            group.sysfs_type,
            tuple((device, device.attached) for device in group.devices),
            group.domain,
        )
        for number, group in system.groups.items()
    }


@dataclass(frozen=True, slots=True)
class Moment:
    """A running system after boot (``step`` is ``None``) or after a step; ``before`` is the picture at the moment before."""

    system: System
    step: StepResult | None
    spec: Step | None
    before: Picture
    boot: Picture
    injected: bool
    """Some fault has been injected so far."""
    asked_for: Callable[[Domain], DomainType | None]
    """What the driver was asked for when it answered a domain."""
    unsettled: bool
    """An attachment was refused in a kernel that does not always put devices back."""

    @property
    def writes(self) -> str | None:
        """The keyword that this step has written, if it is a write; one newline belongs to the file, not to the word."""
        return self.spec.write.type.removesuffix("\n") if self.spec is not None and self.spec.write is not None else None

    @property
    def written(self) -> Group | None:
        """The group that this step has written to."""
        if self.spec is None or self.spec.write is None:
            return None
        return self.system.devices[self.spec.write.group_of].group


Findings = Iterator[str | None]
Rule = Callable[[Moment], Findings]


@dataclass(frozen=True, slots=True)
class Watched:
    """A watched rule, the only kernels that it is for (none: all), and what a vendor must have for it to mean anything."""

    rule: str
    look: Rule
    kernels: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    not_on: Mapping[str, str] = field(default_factory=dict)
    """Architectures that it is not for, with the reason."""


WATCHED: list[Watched] = []


def watched(
    rule: str, *, kernels: tuple[str, ...] = (), requires: tuple[str, ...] = (), not_on: Mapping[str, str] | None = None
) -> Callable[[Rule], Rule]:
    """Register a watched rule."""

    def register(look: Rule) -> Rule:
        WATCHED.append(Watched(rule, look, kernels, requires, not_on or {}))
        return look

    return register


# ---- the resolved engine ---------------------------------------------------------------------------------------------


@watched("INV-01", kernels=RFC, requires=("trust",))
def untrusted_is_strict(moment: Moment) -> Findings:
    """I1.  Blocking in an unmanaged domain is an owner's doing, not the core's."""
    for device in moment.system.present_devices():
        if not device.untrusted or device.group is None:
            continue
        held = {domain.type for domain in (device.attached, device.group.default_domain) if domain is not None}
        if device.group.owner is not None:
            held.discard(DomainType.UNMANAGED)
        loose = held - {DomainType.DMA, DomainType.BLOCKED}
        yield hold(not loose, f"{device.label} is untrusted, but in {', '.join(sorted(kind.name for kind in loose))}")


@watched("INV-02", kernels=RFC)
def strict_is_a_promise(moment: Moment) -> Findings:
    """I2."""
    if moment.step is None and moment.system.boot.default.strict:
        for group in moment.system.groups.values():
            yield hold(group.sysfs_type != "DMA-FQ", f"group {group.id} booted DMA-FQ although the system is strict")


@watched("INV-03", kernels=RFC)
def failed_write_changes_nothing(moment: Moment) -> Findings:
    """I3."""
    if moment.writes is None or moment.step is None or moment.step.result == "ok":
        return
    now = take_picture(moment.system)
    for number, before in moment.before.items():
        what = f"writing {moment.writes!r} failed ({moment.step.result}), but"
        after = now.get(number)
        yield hold(after is not None, f"{what} group {number} has gone")
        if after is None:
            continue
        yield hold(after.type == before.type, f"{what} group {number} went from {before.type} to {after.type}")
        same = after.default is before.default and after.domain is before.domain
        yield hold(same, f"{what} group {number} has another domain")
        yield hold(after.attached == before.attached, f"{what} a device of group {number} was moved")


@watched("INV-04", kernels=RFC)
def equal_write_is_nothing(moment: Moment) -> Findings:
    """I4."""
    group = moment.written
    if moment.step is None or moment.step.result != "ok" or group is None or moment.writes is None:
        return
    before = moment.before.get(group.id)
    if before is None or TYPE_OF.get(SYSFS_POLICY.get(moment.writes, DmaApiPolicy.ANY)) != before.type:
        return
    text = f"writing {moment.writes!r} to group {group.id}, which is {before.type},"
    yield hold(group.default_domain is before.default, f"{text} replaced its domain")
    yield hold(not moment.step.attaches, f"{text} moved a device")


@watched("INV-06", kernels=RFC, requires=("direct-regions",))
def direct_regions_stay(moment: Moment) -> Findings:
    """I6."""
    yield from _direct_regions(moment)


@watched("INV-07", kernels=RFC)
def auto_is_the_boot_decision(moment: Moment) -> Findings:
    """I7, for groups that have the members that they had after boot."""
    group = moment.written
    if moment.writes != "auto" or group is None or moment.injected or moment.step is None or moment.step.result != "ok":
        return
    members = frozenset(device.name for device in group.devices)
    at_boot = next((picture for picture in moment.boot.values() if picture.members == members), None)
    if at_boot is not None:
        text = f"group {group.id} is {group.sysfs_type} after auto, and was {at_boot.type} after boot"
        yield hold(group.sysfs_type == at_boot.type, text)


@watched("INV-09", kernels=RFC)
def the_log_tells_the_truth(moment: Moment) -> Findings:
    """I9.  A driver may make the system strict after the line was printed."""
    if moment.step is not None:
        return
    default = moment.system.boot.default
    for line in moment.system.boot.log:
        if "invalidation policy: strict" in line:
            yield hold(default.policy() is not DmaApiPolicy.LAZY, f"the log says strict, the policy is lazy: {line}")
        elif "invalidation policy: lazy" in line:
            fine = default.policy() is DmaApiPolicy.LAZY or default.strict or default.passthrough()
            yield hold(fine, f"the log says lazy, the policy is {default.policy().name}: {line}")
        elif "Default domain type: Passthrough" in line:
            yield hold(default.passthrough(), f"the log says Passthrough, the policy is {default.policy().name}")


@watched("INV-10", kernels=RFC)
def no_queue_without_support(moment: Moment) -> Findings:
    """I10."""
    prefer = moment.system.vendor.ops.prefer_dma_api_fq
    for group in moment.system.groups.values():
        if group.sysfs_type == "DMA-FQ":
            without = [device.label for device in group.devices if not prefer(device=device)]
            yield hold(not without, f"group {group.id} is DMA-FQ, but {', '.join(without)} has no queue")


# ---- every kernel ----------------------------------------------------------------------------------------------------


@watched("INV-05")
def the_type_is_the_domain(moment: Moment) -> Findings:
    """I5.  The core turns a strict domain lazy, and back where the queue does not start; nothing else."""
    for group in moment.system.groups.values():
        default = group.default_domain
        if default is None:
            continue
        asked = moment.asked_for(default)
        yield hold(asked is not None, f"group {group.id} has a default domain that the driver never gave")
        if asked is not None and not (asked.uses_dma_api and default.type.uses_dma_api):
            text = f"group {group.id} is {default.type.sysfs}, but the driver was asked for {asked.name}"
            yield hold(default.type is asked, text)


@watched(
    "DRV-16",
    kernels=("6.1", "6.1.192", "rfc-as-posted", "rfc-unconverted"),
    not_on={"aarch64": "arm64 sets up the DMA API itself when a driver binds"},
)
def mapping_calls_reach_the_domain(moment: Moment) -> Findings:
    """After boot."""
    system = moment.system
    if moment.step is not None:
        return
    for device in system.present_devices():
        if device.unit is None or not device.unit.default_domains or device.attached is None or device.attach_deferred:
            continue
        if device.attached.type.uses_dma_api:
            text = f"{device.label} is in a {device.attached.type.sysfs} domain, but its mapping calls go to {device.dma_ops.value}"
            yield hold(device.dma_ops is DmaOps.IOMMU, text)


@watched("DRV-14")
def nothing_is_deferred(moment: Moment) -> Findings:
    """Machines whose file says that translation is on already (a kdump kernel) are left out."""
    if moment.step is None and not _is_kdump(moment.system):
        for device in moment.system.present_devices():
            if device.group is not None:
                yield hold(not device.attach_deferred, f"the attachment of {device.label} is deferred")


@watched("DRV-38")
def given_back_is_gone(moment: Moment) -> Findings:
    """No device and no group holds a domain that was freed."""
    for device in moment.system.present_devices():
        if device.attached is not None and device.group is not None:
            yield hold(not device.attached.freed, f"{device.label} is in a domain that was given back")
    for group in moment.system.groups.values():
        for domain in (group.default_domain, group.domain):
            if domain is not None:
                yield hold(not domain.freed, f"group {group.id} holds a domain that was given back")


@watched("DRV-39")
def devices_are_where_their_group_is(moment: Moment) -> Findings:
    """Unless a refused attachment left them apart: 6.1 stops in the middle, and a release since 6.12 leaves a device behind.

    6.1 and the posted patch attach only the newcomer when a group that has had no default domain gets one (H12).
    """
    if moment.unsettled:
        return
    partly = moment.system.kernel.name not in WHOLE_GROUP
    for group in moment.system.groups.values():
        for device in group.devices:
            if not device.attach_deferred and group.domain is not None and not (partly and device.attached is None):
                where = device.attached.type.name if device.attached else "no domain"
                text = f"{device.label} is in {where}, its group {group.id} in {group.domain.type.name}"
                yield hold(device.attached is group.domain, text)


@watched("DRV-52", requires=("direct-regions",))
def direct_regions_at_boot(moment: Moment) -> Findings:
    """Every kernel maps them before or after the first attachment."""
    if moment.step is None:
        yield from _direct_regions(moment)


def _direct_regions(moment: Moment) -> Findings:
    for device in moment.system.present_devices():
        domain = device.attached
        if device.group is None or domain is None or not domain.type.uses_dma_api:
            continue
        for region in moment.system.regions(device):
            if region.type is RegionType.DIRECT:
                mapped = any(start <= region.start and region.end <= end for start, end in domain.direct)
                yield hold(mapped, f"{device.label}: {region.sysfs} is not mapped in the domain that translates the device")


def _is_kdump(system: System) -> bool:
    """Whether the machine file says that translation is on before the kernel starts."""
    return any("pre_enabled" in name and value for name, value in system.machine.hardware.items())


# ---- a run -----------------------------------------------------------------------------------------------------------

PUTS_BACK = ("rfc",)
"""Kernels in which a refused move changes nothing, whatever fails."""


class Watch:
    """Watches one run of a scenario; an instance serves one run."""

    def __init__(self, scenario: Scenario, recorder: Recorder, kernel: str) -> None:
        self._steps = iter(scenario.steps)
        self._recorder = recorder
        self._kernel = kernel
        self._rules = [rule for rule in WATCHED if not rule.kernels or kernel in rule.kernels]
        self._before: Picture = {}
        self._boot: Picture = {}
        self._injected = False

    def __call__(self, system: System, step: StepResult | None) -> list[str]:
        """Look at the system; what is wrong goes to the recorder, so that the run is judged by its own expectations."""
        spec = None if step is None else next(self._steps)
        if step is None:
            self._boot = self._before = take_picture(system)
        elif step.op == "inject":
            self._injected = True
        unsettled = self._recorder.refused > 0 and self._kernel not in PUTS_BACK
        moment = Moment(system, step, spec, self._before, self._boot, self._injected, self._recorder.asked_for, unsettled)
        self._recorder.look_at_default(system.boot)
        when = "after boot" if step is None else f"after {step.op}"
        for rule in self._rules:
            for text in rule.look(moment):
                self._recorder.checked[rule.rule] += 1
                if text is not None:
                    self._recorder.note(rule.rule, f"{when}: {text}")
        self._before = take_picture(system)
        return []
