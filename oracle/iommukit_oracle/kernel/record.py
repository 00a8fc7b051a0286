"""What real kernels did with scenarios, as data: one boot, and the scenarios that were played in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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

    def states(self) -> tuple[GroupState, ...]:
        """As in a result."""
        return tuple(GroupState(group.id, group.type, group.devices) for group in self.groups)


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


class RunRecord(_Entry):
    """A scenario in a boot.

    ``digest`` is that of its machine, boot and steps: a scenario that has been changed since is told by it.  ``undecided`` says why
    it was not played, and is empty where it was.  ``names`` maps the machine's devices to their addresses in the guest.
    """

    scenario: str
    digest: str
    undecided: str = ""
    names: dict[str, str] = Field(default_factory=dict)
    default: str = ""
    boot: StateRecord | None = None
    reserved: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    notes: tuple[str, ...] = ()


class BootRecord(_Entry):
    """A boot of a real kernel and what was played in it.

    ``kernel`` is the profile's name, ``package`` the package or image, ``qemu`` QEMU's version and variant.  ``log`` are the lines
    about DMA protection of boot.  The remaining keys are as in ``Recording``.  Without ``uname`` nothing was booted: the runs of such a
    record could not be realised.
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
    runs: Annotated[tuple[RunRecord, ...], Field(min_length=1)]

    def recording(self) -> Recording:
        """The boot as a recording, from which the machine that was really booted can be told (``qemu_machine.machine_of``)."""
        return Recording(
            id=f"{self.kernel}-{self.vendor}-{self.runs[0].scenario}",
            iommu_log=self.log,
            **{name: getattr(self, name) for name in _SHARED},
        )

    def result(self, run: RunRecord) -> Result:
        """A run as an executor's answer, not judged."""
        result = Result(run.scenario, self.kernel, self.vendor, EXECUTOR, reason=run.undecided)
        state = run.boot
        if state is None:
            return result
        result.boot = BootResult(
            log=self.log,
            groups=state.states(),
            types=dict(state.types),
            members=state.members,
            default=run.default,
            reserved=dict(run.reserved),
        )
        steps = []
        for step in run.steps:
            state = step.state or state
            steps.append(
                StepResult(
                    op=step.op,
                    result=step.result,
                    log=step.log,
                    groups=state.states(),
                    types=dict(state.types),
                    members=state.members,
                    value=step.value,
                    attaches=step.attaches,
                    reason=step.reason,
                )
            )
        result.steps = tuple(steps)
        return result


_SHARED = ("kernel", "vendor", "arch", "cmdline", "qemu_args", "groups", "uname", "qemu", "iommus", "pci")
