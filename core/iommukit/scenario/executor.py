"""The model as an executor: one scenario under one kernel with one vendor's driver, in well under a millisecond."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from iommukit.device import Device, DmaOps
from iommukit.domain import DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.group import Group
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.start import start_system
from iommukit.kernel.system import System
from iommukit.machine.model import Machine
from iommukit.scenario.faults import Faults, faulty_registry
from iommukit.scenario.model import Scenario, Step
from iommukit.scenario.result import UNDECIDED, BootResult, GroupState, Outcome, Result, StepResult
from iommukit.vendors import Vendor, VendorRegistry

if TYPE_CHECKING:
    from iommukit.hw.platform import Platform

MEMORY = 4 << 30
"""Bytes of memory of the machines that scenarios run on."""


class Run:
    """One run in progress; ``system`` is the running kernel."""

    def __init__(self, scenario: Scenario, kernel: Kernel, vendor: Vendor, registry: VendorRegistry) -> None:
        assert isinstance(scenario.machine, Machine)
        self.faults: Faults | None = None
        if any(step.op == "inject" for step in scenario.steps):
            registry, self.faults = faulty_registry(registry)
            vendor = registry.get(vendor.name)
        for capability in scenario.requires:
            if not vendor.has(capability):
                raise NotApplicable(f"{vendor.name} lacks {capability}")
        self.scenario = scenario
        platform = _platform() if any(step.op == "dma" for step in scenario.steps) else None
        self.system = start_system(kernel, vendor, registry, scenario.machine, scenario.boot, platform=platform)
        self.kernel = kernel
        self.owners: dict[str, object] = {}
        self.last_group: dict[str, Group] = {}
        """Which group each device was in, so that a step can address it after the device has gone."""

    def boot_result(self) -> BootResult:
        """What boot has printed and made."""
        system = self.system
        warnings = [line for line in system.take_lines() if "iommu group" not in line or "Adding" not in line]
        groups, types, members = self.state()
        wanted = any(
            "reserved" in expectation or "reserved" in expectation.get("boot", ()) for expectation in self.scenario.expect.values()
        )
        regions = {}
        if wanted:
            for device in system.devices.values():
                if device.group is not None:
                    regions[device.name] = tuple(region.sysfs for region in system.group_regions(device.group))
        return BootResult(
            log=(*system.boot.log, *warnings),
            groups=groups,
            types=types,
            members=members,
            default=system.boot.default.policy().name,
            options=tuple((report.option, report.verdict.value, report.note) for report in system.boot.reports),
            reserved=regions,
        )

    def state(self) -> tuple[tuple[GroupState, ...], dict[str, str], dict[str, int]]:
        """The groups, and each present device's type and group number."""
        types = {device.name: "none" for device in self.system.devices.values() if device.present}
        members: dict[str, int] = {}
        groups: list[GroupState] = []
        for number, group in sorted(self.system.groups.items()):
            kind = group.sysfs_type
            for device in group.devices:
                types[device.name] = kind
                members[device.name] = number
                self.last_group[device.name] = group
            groups.append(GroupState(number, kind, tuple([device.label for device in group.devices])))
        return tuple(groups), types, members

    def step(self, step: Step) -> StepResult:
        """Carry out one step."""
        system = self.system
        before = system.attaches
        result, value, reason = "ok", None, ""
        try:
            answer = OPERATIONS[step.op](self, step.arguments)
        except IommuError as error:
            result, reason = error.name, error.reason
        else:
            if isinstance(answer, tuple):
                value = answer
            elif isinstance(answer, str):
                result = answer
        if result == UNDECIDED:
            reason = self.why_undecided(step.arguments)
        groups, types, members = self.state()
        return StepResult(
            op=step.op,
            result=result,
            log=tuple(system.take_lines()),
            groups=groups,
            types=types,
            members=members,
            value=value,
            attaches=system.attaches - before,
            reason=reason,
        )

    def why_undecided(self, arguments: Any) -> str:
        """Why nobody can say what becomes of a device's DMA."""
        if self.device(arguments.device).dma_ops is DmaOps.PLATFORM:
            return "the architecture's own mapping code is not modelled"
        return "page tables are not modelled for this vendor"

    def close(self) -> None:
        """Give the hardware back."""
        if self.system.platform is not None:
            self.system.platform.close()

    def device(self, name: str) -> Device:
        """The device of that name."""
        return self.system.devices[name]

    def group(self, name: str) -> Group:
        """The group of a device, also of one that has left; raises ``ENOENT`` if there never was one."""
        group = self.system.devices[name].group or self.last_group.get(name)
        if group is None:
            raise IommuError("ENOENT", f"{name} is in no group")
        if self.system.groups.get(group.id) is not group:
            raise IommuError("ENODEV", f"{name}'s group has gone with its last device")
        return group


def _bind(run: Run, arguments: Any) -> None:
    run.kernel.bind(run.system, run.device(arguments.device), arguments.driver, managed=arguments.driver_managed_dma)


def _unbind(run: Run, arguments: Any) -> None:
    run.kernel.unbind(run.system, run.device(arguments.device))


def _write(run: Run, arguments: Any) -> None:
    run.kernel.write_type(run.system, run.group(arguments.group_of), arguments.type, privileged=arguments.privileged)


def _claim(run: Run, arguments: Any) -> None:
    owner = run.owners.setdefault(arguments.owner, object())
    run.kernel.claim(run.system, run.group(arguments.group_of), owner)


def _release(run: Run, arguments: Any) -> None:
    group = run.group(arguments.group_of)
    owner = run.owners.setdefault(arguments.owner, object())
    if group.owner is not owner:
        raise IommuError("EINVAL", f"{arguments.owner} does not own the group")
    run.kernel.release(run.system, group)


def _remove(run: Run, arguments: Any) -> None:
    run.kernel.remove(run.system, run.device(arguments.device))


def _add(run: Run, arguments: Any) -> None:
    run.kernel.add(run.system, run.device(arguments.device))


def _platform() -> Platform:
    """Hardware of the vendor's own making; only runs that do DMA need it."""
    from iommukit.hw.platform import ModelPlatform

    return ModelPlatform(MEMORY)


def _dma(run: Run, arguments: Any) -> str:
    """Map memory and let the device use it: by its tables where there are any, else as far as policy decides."""
    device = run.device(arguments.device)
    if not device.present:
        raise IommuError("ENODEV", f"{device.name} is not there")
    works = device.dma_works()
    on_hardware = device.unit is not None and device.unit.bus is not None and device.dma_ops is not DmaOps.PLATFORM
    if on_hardware:
        from iommukit.dma.transfer import transfer

        works = transfer(device, arguments.bytes, arguments.direction)
    if works is None:
        return UNDECIDED
    if not works:
        raise IommuError("EIO", _why_dead(device))
    return "ok"


def _why_dead(device: Device) -> str:
    if device.attached is None:
        return "the device is in no domain"
    if device.attached.type.uses_dma_api:
        return "its mappings bypass the domain that translates its DMA"
    if device.attached.type is DomainType.IDENTITY:
        return "its mappings go to a domain that it is not attached to"
    return f"the device is in a {device.attached.type.sysfs} domain"


def _read(run: Run, arguments: Any) -> tuple[str, ...]:
    group = run.group(arguments.group_of)
    if arguments.file == "type":
        return (group.sysfs_type,)
    return tuple(region.sysfs for region in run.system.group_regions(group))


def _inject(run: Run, arguments: Any) -> None:
    assert run.faults is not None
    run.faults.add(
        arguments.hook, IommuError(arguments.error), device=arguments.device, times=arguments.times, after=arguments.after
    )


OPERATIONS: dict[str, Callable[[Run, Any], Any]] = {
    "bind": _bind,
    "unbind": _unbind,
    "write": _write,
    "claim": _claim,
    "release": _release,
    "remove": _remove,
    "add": _add,
    "dma": _dma,
    "read": _read,
    "inject": _inject,
}

Watcher = Callable[[System, StepResult | None], list[str]]
"""Looks at a running system after boot (``None``) and after each step; returns what must not be, one line each."""


def execute(
    scenario: Scenario,
    kernel: Kernel,
    vendor: Vendor,
    registry: VendorRegistry,
    *,
    watchers: tuple[Watcher, ...] = (),
) -> Result:
    """Run a scenario on the model, without judging it.

    The outcome is UNDECIDED, N/A with its reason, or FAIL where a watcher objected.  Raises ``InputError`` for what the scenario or
    its machine gets wrong.
    """
    result = Result(scenario.scenario, kernel.name, vendor.name)
    try:
        run = Run(scenario, kernel, vendor, registry)
    except NotApplicable as error:
        result.outcome, result.reason = Outcome.NOT_APPLICABLE, str(error)
        return result
    findings: list[str] = []
    steps: list[StepResult] = []
    with closing(run):
        result.boot = run.boot_result()
        for watch in watchers:
            findings.extend(f"after boot: {line}" for line in watch(run.system, None))
        for number, step in enumerate(scenario.steps, start=1):
            for name in step.device_names:
                if name not in run.system.devices:
                    raise InputError(
                        f"no device {name!r} in machine {run.system.machine.machine}", source=f"step {number} ({step.op})"
                    )
            done = run.step(step)
            steps.append(done)
            for watch in watchers:
                findings.extend(f"after step {number} ({step.op}): {line}" for line in watch(run.system, done))
    result.steps = tuple(steps)
    if findings:
        result.outcome, result.findings = Outcome.FAIL, tuple(findings)
    return result
