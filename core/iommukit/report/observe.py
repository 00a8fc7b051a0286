"""What a run leaves behind in its devices, stage by stage: more than sysfs shows, for comparing two kernels."""

from __future__ import annotations

from dataclasses import dataclass

from iommukit.device import Device, DmaOps
from iommukit.kernel.system import System
from iommukit.scenario.result import StepResult


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device at one moment.

    ``dead`` says why a driver's DMA would fail; empty where it would not, or where an owner such as VFIO has blocked it on purpose.
    ``stuck``: nobody owns the group, and yet it is not in its default domain.
    """

    type: str
    together: tuple[str, ...]
    dead: str
    stuck: bool
    owned: bool
    untrusted: bool
    own_code: bool
    """The architecture's own DMA code serves the device."""


Stage = dict[str, DeviceState]
"""The devices that are there, by name."""


class Observer:
    """A watcher that objects to nothing and remembers every stage: ``stages[0]`` is boot, ``stages[n]`` follows step ``n``."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def __call__(self, system: System, step: StepResult | None) -> list[str]:
        """Remember the stage."""
        self.stages.append({device.name: device_state(device) for device in system.present_devices()})
        return []


def device_state(device: Device) -> DeviceState:
    """A device as it is now."""
    group = device.group
    owned = group is not None and group.owner is not None
    stuck = (
        group is not None
        and not owned
        and group.default_domain is not None
        and group.domain is not None
        and group.domain is not group.default_domain
    )
    return DeviceState(
        type=device.sysfs_type,
        together=tuple(sorted(other.name for other in group.devices)) if group else (),
        dead="" if owned else why_dead(device),
        stuck=stuck,
        owned=owned,
        untrusted=device.untrusted,
        own_code=device.dma_ops is DmaOps.PLATFORM,
    )


def why_dead(device: Device) -> str:
    """Why DMA of the device's driver fails, or nothing.

    A device on arm64 is given its DMA operations whenever a driver binds, so nothing can be said of one without a driver of the DMA
    API; one whose attachment waits for its driver's first mapping (kdump) is in no domain, and rightly so.
    """
    at_bind = device.system.boot.arch == "aarch64" or (device.unit is not None and device.unit.probes_at_bind)
    if at_bind and (device.driver is None or device.driver_managed_dma):
        return ""
    if device.dma_works() is not False:
        return ""
    if device.attached is None:
        return "" if device.attach_deferred else "in no domain"
    if device.attached.type.uses_dma_api:
        return "mappings bypass the domain"
    kind = device.attached.type.sysfs
    return f"in {'an' if kind[0] in 'aeiou' else 'a'} {kind} domain"
