"""Scenario files: a machine, a boot, steps and what must come of them (a contract)."""

from __future__ import annotations

import errno
from functools import cached_property
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from iommukit.machine.model import BootSpec, Machine, Strict


class BindStep(Strict):
    """Bind a driver to a device."""

    device: str
    driver: str = "driver"
    driver_managed_dma: bool | None = Field(None, description="it manages DMA itself; absent: as known of the driver's name")


class DeviceStep(Strict):
    """A step on one device: unbind, remove, add."""

    device: str


class WriteStep(Strict):
    """Write to the ``type`` file of a device's group."""

    group_of: str
    type: str = Field(description="identity, DMA, DMA-FQ, auto, or anything to see it refused")
    privileged: bool = Field(True, description="false: without CAP_SYS_ADMIN and CAP_SYS_RAWIO")


class OwnerStep(Strict):
    """Claim a device's group for an owner, or release it."""

    group_of: str
    owner: str = "vfio"


class DmaStep(Strict):
    """Map memory for a device and let it access it."""

    device: str
    map: str = Field("4KiB", pattern=r"^[1-9][0-9]*(B|KiB|MiB|GiB)$")
    direction: str = Field("bidirectional", pattern=r"^(to_device|from_device|bidirectional)$")

    @property
    def bytes(self) -> int:
        """The size of what is mapped."""
        number = self.map.rstrip("BKMGi")
        return int(number) << _SHIFTS[self.map.removeprefix(number)]


_SHIFTS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30}


class ReadStep(Strict):
    """Read a file of a device's group: its lines are in the step's result."""

    group_of: str
    file: str = Field(pattern=r"^(type|reserved_regions)$")


class InjectStep(Strict):
    """Let the next calls of a hook fail, or those after some that pass, as broken hardware or exhausted memory would."""

    hook: str = Field(pattern=r"^(attach_dev|domain_alloc|flush_queue_options|probe_device|device_group)$")
    error: str = Field("ENOMEM", description="an errno name")
    device: str | None = Field(None, description="only for this device")
    times: int = Field(1, ge=1, le=1000)
    after: int = Field(0, ge=0, le=1000, description="calls that pass first")

    @field_validator("error")
    @classmethod
    def _errno(cls, value: str) -> str:
        if not hasattr(errno, value):
            raise ValueError(f"an errno name was expected, such as ENOMEM, got {value!r}")
        return value


class Step(Strict):
    """One step: exactly one of the operations."""

    bind: BindStep | None = None
    unbind: DeviceStep | None = None
    write: WriteStep | None = None
    claim: OwnerStep | None = None
    release: OwnerStep | None = None
    remove: DeviceStep | None = None
    add: DeviceStep | None = None
    dma: DmaStep | None = None
    read: ReadStep | None = None
    inject: InjectStep | None = None

    @model_validator(mode="after")
    def _one(self) -> Step:
        if len(self.model_fields_set) != 1 or getattr(self, self.op) is None:
            raise ValueError(f"a step is one operation with its arguments: {', '.join(OPERATIONS)}")
        return self

    @cached_property
    def op(self) -> str:
        """The operation's name."""
        return next(iter(self.model_fields_set), "")

    @cached_property
    def arguments(self) -> Any:
        """The operation's arguments."""
        return getattr(self, self.op)

    @cached_property
    def device_names(self) -> list[str]:
        """The devices that the step names."""
        arguments = self.arguments
        return [name for key in ("device", "group_of") if (name := getattr(arguments, key, None)) is not None]


OPERATIONS = tuple(Step.model_fields)
EXPECTATION_KEYS = ("boot", "log", "no_log", "groups", "reserved", "attaches", "result", "default")
"""Keys of an expectation that are neither an operation, a device nor a step's number."""
ANY_KERNEL = "*"


def _machine_form(value: Any) -> str:
    return "name" if isinstance(value, str) else "inline"


# Told apart first, so that an error in an inline machine names its place.
MachineOrName = Annotated[Annotated[str, Tag("name")] | Annotated[Machine, Tag("inline")], Discriminator(_machine_form)]


class Scenario(Strict):
    """A scenario."""

    scenario: str = Field(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9._-]+$", description="unique id")
    summary: str = ""
    rule: str | None = Field(None, pattern=r"^[A-Z][A-Z0-9]*-[0-9]+$", description="the rule of docs/rules.md that it tests")
    machine: MachineOrName = Field(description="a machine file by name or path, or the machine inline")
    vendor: str | None = Field(None, description="absent: every vendor that can realise the machine")
    requires: tuple[str, ...] = Field((), description="capabilities without which the scenario is not applicable")
    boot: BootSpec = BootSpec()
    steps: tuple[Step, ...] = ()
    expect: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="by kernel (several separated by commas, or * for all others): what must hold",
    )

    @field_validator("machine", mode="before")
    @classmethod
    def _inline(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict):
            return {"machine": info.data.get("scenario", "inline"), **value}
        return value

    @field_validator("expect", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kernels: dict[str, Any] = {}
        for names, expectation in value.items():
            for name in str(names).split(","):
                if name.strip() in kernels:
                    raise ValueError(f"kernel {name.strip()} appears twice")
                if isinstance(expectation, dict):
                    expectation = {str(key): wanted for key, wanted in expectation.items()}
                kernels[name.strip()] = expectation
        return kernels

    def expectation(self, kernel: str) -> dict[str, Any] | None:
        """What the scenario expects of a kernel, ``None`` for nothing."""
        return self.expect.get(kernel, self.expect.get(ANY_KERNEL))
