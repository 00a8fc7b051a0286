"""What real kernels did with scenarios, as data: one boot, and the scenarios that were played in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from iommukit.kernel.boot import BY_CMDLINE
from iommukit.scenario.result import BootResult, GroupState, Result, StepResult
from iommukit_oracle.recording import GroupEntry, IommuEntry, PciEntry, Recording

EXECUTOR = "kernel"
"""The executor that results name."""


class _Entry(BaseModel):
    """A part of a record: immutable, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupRecord(_Entry):
    """A group that a device of the scenario is in: its number in the guest, its type, and its members.

    Members that the scenario's machine has are called as there; others by their address.
    """

    id: int
    type: str
    devices: tuple[str, ...]


class StateRecord(_Entry):
    """The groups at a moment; a device that is there and in no group has type ``none``, one that is not there is missing."""

    groups: tuple[GroupRecord, ...] = ()
    types: dict[str, str] = Field(default_factory=dict)

    @property
    def members(self) -> dict[str, int]:
        """Each device's group number."""
        return {name: group.id for group in self.groups for name in group.devices if name in self.types}


class StepRecord(_Entry):
    """One step: ``ok``, an errno name, or ``UNDECIDED`` with the reason where it could not be carried out or seen.

    ``log`` are the kernel's new lines about DMA protection, as they were printed; ``attaches`` is how many attachments the kernel's
    tracepoint told of, ``None`` where it was not watched; ``state`` is ``None`` where it is that of the step before.
    """

    op: str
    result: str
    reason: str = ""
    log: tuple[str, ...] = ()
    value: tuple[str, ...] | None = None
    attaches: int | None = None
    state: StateRecord | None = None


class SetUpRecord(_Entry):
    """What was done to a device before the first step, so that the guest is as the machine file says: ``bind`` or ``unbind``."""

    op: str
    device: str = Field(description="its address")
    driver: str


class RunRecord(_Entry):
    """A scenario in a boot.

    ``digest`` is that of its machine, boot and steps: a scenario that has been changed since is told by it.  ``undecided`` says why
    it was not played, and is empty where it was.  ``known_steps`` is the number of steps after which nothing is known, ``None``
    where all could be carried out.  ``unsaid`` are parts of lines of boot that end in ``BY_CMDLINE`` only because a word of the
    command line stood for the kernel's configuration.  ``names`` maps the machine's devices to their addresses in the guest.
    """

    scenario: str
    digest: str
    undecided: str = ""
    names: dict[str, str] = Field(default_factory=dict)
    default: str = ""
    boot: StateRecord | None = None
    reserved: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    known_steps: int | None = None
    unsaid: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class BootRecord(_Entry):
    """A boot of a real kernel and what was played in it.

    ``kernel`` is the profile's name, ``package`` the package or image, ``qemu`` QEMU's version and variant.  ``log`` are the
    lines about DMA protection of boot, ``groups`` and ``pci`` what sysfs showed at its end; ``set_up`` is what was done then,
    before the runs began; ``later`` are QEMU's models of what was not there at boot, by address.  The remaining keys
    are as in ``Recording``.  Without ``uname`` nothing was booted: the runs of such a record could not be realised.
    """

    kernel: str
    vendor: str
    package: str = ""
    uname: str = ""
    qemu: str = ""
    arch: str = ""
    cmdline: str = ""
    qemu_args: str = ""
    tables: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    groups: tuple[GroupEntry, ...] = ()
    iommus: tuple[IommuEntry, ...] = ()
    pci: tuple[PciEntry, ...] = ()
    set_up: tuple[SetUpRecord, ...] = ()
    later: dict[str, str] = Field(default_factory=dict)
    firmware: dict[str, tuple[str, ...]] | None = None
    runs: Annotated[tuple[RunRecord, ...], Field(min_length=1)]

    def recording(self) -> Recording:
        """The boot as a recording, from which the machine that was really booted can be told (``qemu_machine.machine_of``)."""
        return Recording(
            id=f"{self.kernel}-{self.vendor}-{self.runs[0].scenario}",
            iommu_log=self.log,
            **{name: getattr(self, name) for name in _SHARED},
        )

    def result(self, run: RunRecord) -> Result:
        """A run as an executor's answer, not judged.

        Groups have the numbers that they would have without the bystanders, the functions of QEMU's own chipset.
        """
        result = Result(run.scenario, self.kernel, self.vendor, EXECUTOR, reason=run.undecided, known_steps=run.known_steps)
        state = run.boot
        if state is None:
            return result
        numbers = _Numbers(run.names)
        blank = " " if self.uname.startswith(PRINTS_BLANK) else ""
        log = tuple(_as_configured(line, run.unsaid, blank) for line in self.log if JOINS not in line)
        groups, members = numbers.see(state)
        result.boot = BootResult(
            log=log,
            groups=groups,
            types=dict(state.types),
            members=members,
            default=run.default,
            reserved=dict(run.reserved),
        )
        steps = []
        for step in run.steps:
            state = step.state or state
            before = dict(numbers.own)
            groups, members = numbers.see(state)
            steps.append(
                StepResult(
                    op=step.op,
                    result=step.result,
                    log=tuple(_renumbered(line, before if LEAVES in line else numbers.own) for line in step.log),
                    groups=groups,
                    types=dict(state.types),
                    members=members,
                    value=step.value,
                    attaches=step.attaches,
                    reason=step.reason,
                )
            )
        result.steps = tuple(steps)
        return result


JOINS, LEAVES = "Adding to iommu group", "Removing from iommu group"
PRINTS_BLANK = "Linux version 6.1."
"""A kernel that prints a blank where it does not say that the command line was the reason."""


class _Numbers:
    """The numbers that groups would have without bystanders: like the kernel, always the lowest that is free."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.own: dict[int, int] = {}
        self._names = names

    def see(self, state: StateRecord) -> tuple[tuple[GroupState, ...], dict[str, int]]:
        """The groups of a state, by address, and each device's group."""
        there = sorted(group.id for group in state.groups)
        self.own = {real: own for real, own in self.own.items() if real in there}
        for real in there:
            if real not in self.own:
                self.own[real] = next(own for own in range(len(there)) if own not in self.own.values())
        groups = sorted(
            (
                GroupState(self.own[group.id], group.type, tuple(self._names.get(name, name) for name in group.devices))
                for group in state.groups
            ),
            key=lambda group: group.id,
        )
        return tuple(groups), {name: self.own[number] for name, number in state.members.items()}


def _renumbered(line: str, own: Mapping[int, int]) -> str:
    """A line about a group, with the group's own number."""
    return re.sub(r"(?<=iommu group )[0-9]+", lambda found: str(own.get(int(found[0]), found[0])), line)


def _as_configured(line: str, unsaid: Sequence[str], blank: str) -> str:
    """A line as it would read had the kernel been configured so."""
    return line.replace(f" {BY_CMDLINE}", blank) if any(part in line for part in unsaid) else line


_SHARED = ("kernel", "vendor", "arch", "cmdline", "qemu_args", "groups", "uname", "qemu", "iommus", "pci", "firmware")
