"""What real kernels were seen to do in which situation: the recordings replayed, and everything noted where the model agreed.

``see(recordings, registry)`` answers ``Seen``; ``Seen.vouches(facts)`` looks up all that must have been seen for a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from iommukit.device import Device
from iommukit.errors import NotApplicable
from iommukit.group import Group
from iommukit.scenario.model import Step
from iommukit.scenario.result import StepResult
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel.situations import Fact, Situations, Unlike, answer_of
from iommukit_oracle.observations import Replay, Verdict
from iommukit_oracle.qemu_machine import profile_of
from iommukit_oracle.recording import GroupEntry, Recording, WriteEntry
from iommukit_oracle.replay import Session
from iommukit_oracle.timeline import timeline


@dataclass(slots=True)
class Seen:
    """Situations with the answers that real kernels gave in them, each with the recordings that show it."""

    answers: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def note(self, fact: Fact, recording: str) -> None:
        """Take in what one recording shows."""
        situation, answer = fact
        shown = self.answers.setdefault(situation, {}).setdefault(answer, [])
        if recording not in shown:
            shown.append(recording)

    def shows(self, fact: Fact) -> Sequence[str]:
        """The recordings that show a fact; none where kernels gave several answers: such a situation is told too coarsely."""
        situation, answer = fact
        found = self.answers.get(situation, {})
        return found.get(answer, ()) if len(found) == 1 else ()

    def against(self, facts: Sequence[Sequence[Fact]]) -> tuple[str, ...]:
        """A recording in whose situation a kernel gave another answer, where no alternative was seen and no kernel gave both."""
        for alternatives in facts:
            if any(self.shows(fact) for fact in alternatives):
                continue
            for situation, answer in alternatives:
                found = self.answers.get(situation, {})
                if len(found) == 1 and answer not in found:
                    return tuple(next(iter(found.values()))[:1])
        return ()

    def vouches(self, facts: Sequence[Sequence[Fact]]) -> tuple[str, ...]:
        """As few recordings as show one alternative of each of the facts; empty where something was not seen."""
        shown = []
        for alternatives in facts:
            found = [name for fact in alternatives for name in self.shows(fact)]
            if not found:
                return ()
            shown.append(set(found))
        chosen: list[str] = []
        left = shown
        while left:
            names = sorted({name for each in left for name in each})
            best = max(names, key=lambda name: sum(name in each for each in left))
            chosen.append(best)
            left = [each for each in left if best not in each]
        return tuple(chosen)


def see(recordings: Iterable[Recording], registry: VendorRegistry) -> Seen:
    """Replay recordings and note what they show.  Raises ``InputError`` for one that cannot be understood."""
    seen = Seen()
    for recording in recordings:
        try:
            session = SeeingSession(recording, registry, seen)
        except NotApplicable:
            continue
        session.boot()
        order = timeline(recording)
        for number, item in enumerate(order):
            session.do(item, order[number + 1 :])
    return seen


class SeeingSession(Session):
    """A replay that notes what the kernel was seen to do, where it was compared and the model agreed."""

    def __init__(self, recording: Recording, registry: VendorRegistry, seen: Seen) -> None:
        super().__init__(recording, registry, Replay(recording.id, recording.kernel, recording.vendor))
        self.seen = seen
        self.situations = Situations(self.run.system, profile_of(recording))
        self._asked: dict[str, str] = {}
        """The situation of the latest step of each kind."""
        self._written: Fact | None = None
        self._pending: dict[str, list[Fact]] = {}
        """What the type of a device's group will show of a device that was plugged in."""

    def _note(self, *facts: Fact) -> None:
        for fact in facts:
            self.seen.note(fact, self.recording.id)

    def _agreed_since(self, start: int) -> bool:
        new = self.outcome.observations[start:]
        return all(each.verdict is Verdict.AGREES for each in new if each.kind in ("group", "type"))

    def boot(self) -> None:
        """Note the default and every group, if all of them agree."""
        start = len(self.outcome.observations)
        super().boot()
        lines = [each for each in self.outcome.observations[start:] if each.kind.startswith("log")]
        if self._agreed_since(start) and not any(each.verdict is Verdict.DIFFERS for each in lines):
            with contextlib.suppress(Unlike):
                self._note(*list(self.situations.boot()))

    def perform(self, op: str, **arguments: Any) -> StepResult:
        """Remember the situation of the step; what follows from it alone is noted at once."""
        step = Step.model_validate({op: arguments})
        name = next(iter(step.device_names), "")
        device = self.run.system.devices.get(name)
        self._asked.pop(op, None)
        if device is None:
            return super().perform(op, **arguments)
        group = self._group(name)
        before = {number: self.situations.group(each) for number, each in self.run.system.groups.items()} if op == "add" else {}
        with contextlib.suppress(Unlike):
            self._asked[op] = self.situations.step(step, self._group)
        if op == "write" and group is not None:
            for member in group.devices:
                self._pending.pop(member.name, None)
        done = super().perform(op, **arguments)
        self._follow(op, device, done, before)
        return done

    def _group(self, name: str) -> Group | None:
        return self.run.system.devices[name].group or self.run.last_group.get(name)

    def _follow(self, op: str, device: Device, done: StepResult, before: dict[int, str]) -> None:
        """The guest did it, so it was seen: nobody would have recorded what came after otherwise."""
        if op in ("unbind", "release", "remove", "add") and done.result == "ok" and op in self._asked:
            self._note((self._asked[op], answer_of(op, done, device.sysfs_type)))
        if op == "remove":
            self._pending.pop(device.name, None)
        if op == "add" and done.result == "ok":
            self.situations.plugged(device)
            group = device.group
            told = self.situations.joined(device, before.get(group.id, "") if group is not None else "")
            with contextlib.suppress(Unlike):
                self._pending[device.name] = list(told)

    def compare(self, kind: str, where: str, expected: str, got: str, *, undecided: str = "") -> None:
        """Note what the step before it is now known to have answered."""
        super().compare(kind, where, expected, got, undecided=undecided)
        agrees = self.outcome.observations[-1].verdict is Verdict.AGREES
        if kind in ("bind", "claim", "dma") and agrees and kind in self._asked:
            self._note((self._asked.pop(kind), answer_of(kind, self.last, "")))
        elif kind == "write" and agrees and where.startswith("write to a file") and "write" in self._asked:
            self._note((self._asked.pop("write"), f"{self.last.result} none"))

    def write(self, write: WriteEntry) -> None:
        """Note a write with its result and the type after it, if both agree."""
        start = len(self.outcome.observations)
        self._asked.pop("write", None)
        super().write(write)
        new = [each for each in self.outcome.observations[start:] if each.kind in ("write", "type")]
        member = self.member_of(write)
        if all(each.verdict is Verdict.AGREES for each in new) and member is not None and "write" in self._asked:
            self._note((self._asked.pop("write"), answer_of("write", self.last, self.type_of(member))))

    def compare_groups(self, where: str, groups: Iterable[GroupEntry]) -> None:
        """Note what became of devices that were plugged in, if all groups agree."""
        start = len(self.outcome.observations)
        shown = list(groups)
        super().compare_groups(where, shown)
        if self._agreed_since(start):
            for name in {device for group in shown for device in group.devices} & set(self._pending):
                self._note(*self._pending.pop(name))
