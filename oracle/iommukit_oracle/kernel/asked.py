"""What must have been seen of a real kernel for a scenario's run to be vouched for: everything that the run shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from iommukit.group import Group
from iommukit.kernel.system import System
from iommukit.scenario.model import Step
from iommukit.scenario.result import StepResult
from iommukit_oracle.kernel.situations import Fact, Situations, Unlike, answer_of


class Asked:
    """Follows a run (``iommukit.scenario.executor.Watcher``) and collects everything that must have been seen for it.

    ``facts`` has alternatives: one of each must have been seen.  ``unlike`` says why nothing recorded can be like the run.
    """

    def __init__(self, steps: Iterable[Step], profile: str) -> None:
        self.facts: list[list[Fact]] = []
        self.unlike = ""
        self._steps = iter(steps)
        self._step: Step | None = None
        self._profile = profile
        self._situations: Situations | None = None
        self._last: dict[str, Group] = {}
        self._types: dict[str, str] = {}
        self._key = ""
        self._groups: dict[int, str] = {}

    def __call__(self, system: System, done: StepResult | None) -> list[str]:
        """Look at the system after boot and after each step."""
        if not self.unlike:
            try:
                self._look(system, done)
            except Unlike as error:
                self.unlike = str(error)
        return []

    def _look(self, system: System, done: StepResult | None) -> None:
        if self._situations is None:
            self._situations = Situations(system, self._profile)
            _, *others = self._situations.boot()
            self.facts.append(self._situations.defaults_alike())
            self.facts += [[fact] for fact in others]
        elif done is not None and self._step is not None:
            self.facts += [[fact] for fact in self._answers(self._step, done)]
        self._remember(system)
        self._step = next(self._steps, None)
        if self._step is not None:
            self._key = self._situations.step(self._step, self._find)
            if self._step.op in ("add", "bind"):
                self._groups = {number: self._situations.group(group) for number, group in system.groups.items()}

    def _find(self, name: str) -> Group | None:
        assert self._situations is not None
        return self._situations.system.devices[name].group or self._last.get(name)

    def _remember(self, system: System) -> None:
        assert self._situations is not None
        self._last.update({device.name: device.group for device in system.devices.values() if device.group is not None})
        self._types = {device.name: device.sysfs_type for device in system.devices.values() if device.present}

    def _answers(self, step: Step, done: StepResult) -> Iterator[Fact]:
        assert self._situations is not None
        system = self._situations.system
        name = next(iter(step.device_names))
        device = system.devices[name]
        yield self._key, answer_of(step.op, done, device.sysfs_type)
        concerned = {name}
        if step.op == "write":
            group = self._find(name)
            concerned |= {member.name for member in group.devices} if group is not None else set()
        if step.op in ("add", "bind") and done.result == "ok" and self._types.get(name, "none") == "none":
            if step.op == "add":
                self._situations.plugged(device)
            group = device.group
            yield from self._situations.joined(device, self._groups.get(group.id, "") if group is not None else "")
        for other, kind in self._types.items():
            if other not in concerned and system.devices[other].present and system.devices[other].sysfs_type != kind:
                raise Unlike(f"{step.op} changes others")
