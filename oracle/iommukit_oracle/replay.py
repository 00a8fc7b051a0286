"""A recording replayed on the model: the same machine, the same boot, the same steps; then everything that was seen is compared.

``replay(recording, registry)`` answers one ``Replay``.  As a program::

    python -m iommukit_oracle.replay FILE…

prints the table of observations and every difference, and exits with 1 if there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as changed
from pathlib import Path
from types import MappingProxyType
from typing import Any

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import Run
from iommukit.scenario.model import Scenario, Step
from iommukit.scenario.result import UNDECIDED, StepResult
from iommukit.vendors import VendorRegistry
from iommukit_oracle.events import SOME_ERROR, Bind, Driver, OpenWrite, Owned, Presence, Race, errno_of
from iommukit_oracle.known import known_reason
from iommukit_oracle.logs import about_dma, compare_lines, compare_order, joins, modelled, policy_lines
from iommukit_oracle.observations import Observation, Replay, Verdict, summary
from iommukit_oracle.qemu_machine import binds_at_boot, boot_of, machine_of, profile_of
from iommukit_oracle.recording import GroupEntry, Recording, WriteEntry, iter_recordings, recording_files
from iommukit_oracle.timeline import Item, Snapshot, Tried, Writes, timeline

TYPES = ("identity", "DMA", "DMA-FQ")
"""The types of a matrix of writes."""
WRITTEN = (*TYPES, "auto")
"""What is written from each of them."""
OWNER = "vfio"


def replay(recording: Recording, registry: VendorRegistry) -> Replay:
    """Hold one recording against the model.

    Raises ``InputError`` for a recording that cannot be understood: arguments, events, an unknown kernel or vendor.
    """
    outcome = Replay(recording.id, recording.kernel, recording.vendor)
    try:
        session = Session(recording, registry, outcome)
    except NotApplicable as error:
        outcome.observations.append(Observation("boot", recording.id, "a boot", "none", Verdict.UNDECIDED, str(error)))
        return outcome
    session.boot()
    order = timeline(recording)
    for number, item in enumerate(order):
        session.do(item, order[number + 1 :])
    outcome.scenario = session.run.scenario.model_copy(update={"steps": tuple(session.steps)})
    return outcome


class Session:
    """A running model with a recording beside it; ``ahead`` are steps that will be performed, where they need hardware.

    ``later`` are further devices that are not there at boot (``machine_of``).
    """

    def __init__(
        self,
        recording: Recording,
        registry: VendorRegistry,
        outcome: Replay,
        *,
        later: Mapping[str, str] = MappingProxyType({}),
        ahead: tuple[Step, ...] = (),
    ) -> None:
        self.recording = recording
        self.outcome = outcome
        machine = machine_of(recording, later)
        boot = boot_of(recording)
        scenario = Scenario(scenario=machine.machine, machine=machine, vendor=recording.vendor, boot=boot, steps=ahead)
        self.run = Run(scenario, get_kernel(profile_of(recording)), registry.get(recording.vendor), registry)
        self.steps: list[Step] = []
        self.last = StepResult("none", "ok")
        """The latest step's result."""
        self.grouped: set[str] = {device for group in recording.groups for device in group.devices}
        """The devices that have a group, as far as the recording has told."""
        self.told: dict[str, str] = {device: group.type for group in recording.groups for device in group.devices}
        """The type of each device's group after what was recorded last, where nothing unrecorded has followed."""
        self.raced: set[str] = set()
        self.last_unbound: str | None = None
        self.owned: str | None = None

    # ---- comparing ---------------------------------------------------------------------------------------------------

    def compare(self, kind: str, where: str, expected: str, got: str, *, undecided: str = "") -> None:
        """Note one observation; ``undecided`` says why it cannot be decided."""
        verdict = Verdict.UNDECIDED if undecided else Verdict.AGREES if expected == got else Verdict.DIFFERS
        seen = Observation(kind, f"{self.recording.id}, {where}", expected, got, verdict, undecided)
        if verdict is Verdict.DIFFERS:
            reason = known_reason(self.recording, seen)
            if reason is not None:
                seen = changed(seen, verdict=Verdict.KNOWN, reason=reason)
        self.outcome.observations.append(seen)

    def compare_groups(self, where: str, groups: Iterable[GroupEntry]) -> None:
        """All groups: numbers, members, types, reserved regions."""
        modelled_groups = {state.id: state for state in self.run.state()[0]}
        for group in groups:
            place = f"{where}, group {group.id}"
            state = modelled_groups.pop(group.id, None)
            self.compare("group", place, _names(group.devices), _names(state.devices) if state else "none")
            if state is None:
                continue
            raced = "a race decided it" if self.raced.intersection(group.devices) else ""
            self.compare("type", place, group.type, state.type, undecided=raced)
            regions = self.perform("read", group_of=state.devices[0], file="reserved_regions").value or ()
            self.compare("regions", place, ", ".join(group.regions), ", ".join(regions))
        for number, state in modelled_groups.items():
            self.compare("group", f"{where}, group {number}", "none", _names(state.devices))

    # ---- steps -------------------------------------------------------------------------------------------------------

    def perform(self, op: str, **arguments: Any) -> StepResult:
        """Carry out a step on the model and keep it."""
        step = Step.model_validate({op: arguments})
        self.steps.append(step)
        self.last = self.run.step(step)
        return self.last

    def present(self, device: str) -> bool:
        """Whether the model has the device at this moment."""
        found = self.run.system.devices.get(device)
        return found is not None and found.present

    def driver(self, device: str) -> str:
        """The driver that the model has bound to a device."""
        return self.run.system.devices[device].driver or ""

    def type_of(self, device: str) -> str:
        """The type of a device's group in the model."""
        found = self.run.system.devices.get(device)
        return found.sysfs_type if found else "none"

    def set_drivers(self, where: str, wanted: Mapping[str, str]) -> None:
        """Bind and unbind until each device has the driver that it had in the recording (empty: none)."""
        for device, driver in wanted.items():
            if not self.present(device) or self.driver(device) == driver:
                continue
            if self.driver(device):
                self.perform("unbind", device=device)
            if driver:
                result = self.perform("bind", device=device, driver=driver).result
                self.compare("bind", f"{where}, {driver} of {device}", "ok", result)

    # ---- the items of the timeline -----------------------------------------------------------------------------------

    def boot(self) -> None:
        """Compare what boot has printed and made."""
        recorded = policy_lines(self.recording.iommu_log, self.recording.policy_log)
        joined = self.run.system.lines.copy()
        printed = self.run.boot_result().log
        for expected, got in compare_lines(recorded, modelled(printed)):
            self.compare("log", "boot", expected, got)
        self.compare("log order", "boot", *compare_order(recorded, modelled(self.run.system.boot.log)))
        for driver, device in binds_at_boot(self.recording):
            self.set_drivers("boot", {device: driver})
            joined += self.last.log
        later = {device for _, device in binds_at_boot(self.recording)}
        self.set_drivers("boot", {entry.bdf: entry.driver for entry in self.recording.functions if entry.bdf in later})
        for expected, got in compare_lines(joins(self.recording.iommu_log), joins(joined)):
            self.compare("log", "boot", expected, got)
        self.compare("log order", "boot", *compare_order(joins(self.recording.iommu_log), joins(joined)))
        self.compare_groups("boot", self.recording.groups)

    def do(self, item: Item, following: Sequence[Item]) -> None:
        """Replay one item."""
        match item:
            case Writes():
                self.matrix(item.entries) if item.matrix else self.writes(item.entries)
            case Snapshot(name, groups):
                self.snapshot(f"snapshot {name}", groups)
            case Driver(device, driver):
                self.set_drivers("driver", {device: driver})
                self.last_unbound = device if not driver else self.last_unbound
            case Bind():
                self.bind(item)
            case Presence(device, True):
                self.perform("add", device=device)
                self.grouped.add(device)
            case Presence(device, False):
                self.leave(device)
            case Owned(group):
                self.own(group, following)
            case Tried():
                self.test(item)
            case Race(what):
                self.compare("race", "race", what, "unknown", undecided="two processes raced")
                if self.last_unbound is not None:
                    self.raced.add(self.last_unbound)
            case OpenWrite(result):
                self.open_write(result, following)

    def writes(self, entries: Iterable[WriteEntry]) -> None:
        """Recorded writes, one after the other."""
        for write in entries:
            self.write(write)

    def write(self, write: WriteEntry) -> None:
        """One write: the state before it, its result, its log, the state after it."""
        where = f"write {write.tag} of {write.wrote!r} to group {write.group}"
        member = self.member_of(write)
        if member is None:
            self.compare("write", where, write.result, "no such group")
            return
        self.set_drivers(where, {device: write.bound.get(device, "") for device in write.members})
        self.catch_up(where, write.members, write.type_before)
        self.compare("type", f"{where}, before", write.type_before, self.type_of(member))
        done = self.perform("write", group_of=member, type=written_text(write.wrote))
        expected = errno_of(write.result)
        if expected == SOME_ERROR and done.result != "ok":
            expected = done.result
        self.compare("write", where, expected, done.result)
        self.compare("type", f"{where}, after", write.type_after, self.type_of(member))
        self.told.update(dict.fromkeys(write.members, write.type_after))
        printed = modelled(done.log)
        recorded = about_dma(write.dmesg)
        # A refusal's line may be missing (printk limits them), a success must not print what the kernel did not.
        expected_lines = [line for line in printed if line in recorded or write.result == "ok"]
        for expected, got in compare_lines(dict.fromkeys(recorded), dict.fromkeys(expected_lines)):
            self.compare("write log", where, expected, got)

    def member_of(self, write: WriteEntry) -> str | None:
        """A device by which the model can address the group of a write."""
        return next((device for device in write.members if self.present(device)), None)

    def matrix(self, entries: Sequence[WriteEntry]) -> None:
        """The guest's matrix of writes: a sequence, then every type from every type; unrecorded writes lead to each.

        The guest skips a write where its start is not to be had, and leaves the group with ``auto``.
        """
        member = self.member_of(entries[0])
        if member is None:
            return self.writes(entries)
        waiting = list(entries)
        while waiting and "/from-" not in waiting[0].tag:
            self.write(waiting.pop(0))
        if waiting:
            for start in TYPES:
                for wrote in WRITTEN:
                    reached = self.reach(member, start)
                    self.forget(entries[0].members)
                    write = waiting[0] if waiting else None
                    if write is not None and write.tag.endswith(f"/from-{start}") and write.wrote == wrote:
                        self.write(waiting.pop(0))
                    elif reached:
                        where = f"matrix {entries[0].tag} of group {entries[0].group}"
                        self.compare("type", where, f"no way to {start}", start)
        self.writes(waiting)
        self.perform("write", group_of=member, type="auto")
        return self.forget(entries[0].members)

    def reach(self, member: str, start: str) -> bool:
        """Write as the guest does to get a group to a type: directly, then by way of ``DMA``."""
        for wrote in (start, "DMA", start):
            if self.type_of(member) == start:
                return True
            self.perform("write", group_of=member, type=wrote)
        return self.type_of(member) == start

    def forget(self, devices: Iterable[str]) -> None:
        """Something unrecorded has been written to the group of these devices, or it is not the same group any more."""
        for device in devices:
            self.told.pop(device, None)

    def catch_up(self, where: str, devices: Sequence[str], kind: str) -> None:
        """Write what somebody must have written unrecorded where the recording's own types do not follow from each other."""
        told = {self.told[device] for device in devices if device in self.told}
        self.forget(devices)
        if told and kind not in told and kind in TYPES and self.type_of(devices[0]) in told:
            self.perform("write", group_of=devices[0], type=kind)
            self.compare("write", f"{where}, before", kind, self.type_of(devices[0]), undecided="an unrecorded write made it")

    def snapshot(self, where: str, groups: Sequence[GroupEntry]) -> None:
        """Remove, add, bind and unbind what the snapshot shows to have come, gone or changed, then compare the groups."""
        shown_devices = {device for group in groups for device in group.devices}
        for device in sorted(self.grouped - shown_devices):
            self.leave(device)
        for device in sorted(shown_devices - self.grouped):
            if not self.present(device):
                self.perform("add", device=device)
        self.grouped = shown_devices
        for group in groups:
            self.catch_up(where, group.devices, group.type)
            self.told.update(dict.fromkeys(group.devices, group.type))
        for group in sorted(groups, key=_number):
            self.set_drivers(where, {device: group.bound.get(device, "") for device in group.devices})
        self.compare_groups(where, groups)

    def leave(self, device: str) -> None:
        """A device goes, with what is behind it."""
        self.forget([device])
        self.grouped.discard(device)
        if self.present(device):
            self.perform("remove", device=device)

    def bind(self, event: Bind) -> None:
        """A bind through sysfs."""
        before = "" if event.result == "ok" else event.after or ""
        self.set_drivers("bind", {event.device: before})
        result = self.perform("bind", device=event.device, driver=event.driver).result
        self.compare("bind", f"bind {event.driver} to {event.device}", event.result, result)

    def own(self, group: int | None, following: Sequence[Item]) -> None:
        """VFIO takes a group, or gives it back."""
        if group is None:
            if self.owned is not None:
                self.perform("release", group_of=self.owned, owner=OWNER)
                self.owned = None
            return
        found = self.run.system.groups.get(group)
        self.owned = found.devices[0].name if found and found.devices else None
        if self.owned is not None:
            self.catch_up_ahead(group, self.owned, following)
        result = self.perform("claim", group_of=self.owned, owner=OWNER).result if self.owned else "no such group"
        self.compare("claim", f"{OWNER} takes group {group}", "ok", result)

    def catch_up_ahead(self, group: int, device: str, following: Sequence[Item]) -> None:
        """Once a group is owned nobody can write to it: do now what the next sight of the group shows to have been written."""
        for item in following:
            if isinstance(item, Writes) and device in item.first.members:
                return self.catch_up(f"group {group}", [device], item.first.type_before)
            if isinstance(item, Snapshot):
                for entry in item.groups:
                    if device in entry.devices:
                        return self.catch_up(f"group {group}", [device], entry.type)
        return None

    def test(self, item: Tried) -> None:
        """A functional test: a device that was dead must be dead in the model, one that worked must not be."""
        test, device = item.test, item.device
        where = f"test {test.tag} of {test.driver}"
        if device is None or not self.present(device):
            self.compare("dma", where, "works" if test.works else "dead", "no such device")
            return
        for again in item.rescanned:
            self.leave(again)
            self.grouped.add(again)
            self.perform("add", device=again)
        self.set_drivers(where, {device: test.driver})
        self.compare("type", where, test.type, self.type_of(device))
        result = self.perform("dma", device=device).result
        # What policy leaves to the page tables works there.
        got = "dead" if result == "EIO" else "works" if result in ("ok", UNDECIDED) else result
        self.compare("dma", where, "works" if test.works else "dead", got)
        if test.gave_up:
            self.set_drivers(where, {device: ""})

    def open_write(self, expected: str, following: Sequence[Item]) -> None:
        """A ``type`` file is written whose group has lost its last device: the one that the next snapshot lacks."""
        later = next((item.groups for item in following if isinstance(item, Snapshot)), ())
        numbers = {group.id for group in later}
        gone = [group.devices for group in self.recording.groups if group.id not in numbers and len(group.devices) == 1]
        if not gone:
            self.compare("write", "write to a file held open", expected, "unknown", undecided="no group has gone")
            return
        device = gone[0][0]
        self.leave(device)
        result = self.perform("write", group_of=device, type="DMA").result
        self.compare("write", f"write to a file held open, group of {device}", expected, result)


def written_text(wrote: str) -> str:
    """The bytes that reached the kernel, as text: ``raw:`` texts are formats of ``printf``, others got a newline."""
    if not wrote.startswith("raw:"):
        return wrote + "\n"
    return wrote.removeprefix("raw:").replace("\\n", "\n").replace("\\0", "\0")


def _names(devices: Iterable[str]) -> str:
    return ", ".join(sorted(devices))


def _number(group: GroupEntry) -> int:
    return group.id


def replay_files(paths: Iterable[Path], registry: VendorRegistry) -> list[Replay]:
    """Replay every recording of files and folders.  Raises ``InputError``."""
    return [replay(recording, registry) for path in recording_files(paths) for recording in iter_recordings(path)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and every difference; 1 if there is one, 2 for bad input."""
    paths = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    if not paths:
        print("usage: python -m iommukit_oracle.replay FILE…", file=sys.stderr)
        return 2
    try:
        replays = replay_files(paths, VendorRegistry.installed())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(summary(replays))
    differences = [difference for outcome in replays for difference in outcome.differences]
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
