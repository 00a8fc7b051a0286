"""Fault injection by hook wrapper: the next call of a hook fails with an errno."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from iommukit.errors import IommuError
from iommukit.hookspecs import hookimpl
from iommukit.vendors import VendorRegistry


@dataclass(slots=True)
class _Fault:
    error: IommuError
    device: str | None
    times: int
    after: int


class Faults:
    """A plugin that wraps the hooks which may fail; quiet until told otherwise."""

    def __init__(self) -> None:
        self._pending: dict[str, list[_Fault]] = {}

    def add(self, hook: str, error: IommuError, *, device: str | None = None, times: int = 1, after: int = 0) -> None:
        """Let ``times`` calls of a hook fail once ``after`` of them have passed, for one device or for any."""
        self._pending.setdefault(hook, []).append(_Fault(error, device, times, after))

    def clear(self) -> None:
        """Forget all faults."""
        self._pending.clear()

    def _strike(self, hook: str, device: Any) -> None:
        for fault in self._pending.get(hook, ()):
            if not fault.times or fault.device not in (None, device.name):
                continue
            if fault.after:
                fault.after -= 1
            else:
                fault.times -= 1
                raise IommuError(fault.error.name, "injected")

    @hookimpl(wrapper=True)
    def attach_dev(self, device: Any) -> Any:
        """Fail an attachment."""
        self._strike("attach_dev", device)
        return (yield)

    @hookimpl(wrapper=True)
    def domain_alloc(self, device: Any) -> Any:
        """Fail an allocation."""
        self._strike("domain_alloc", device)
        return (yield)

    @hookimpl(wrapper=True)
    def flush_queue_options(self, device: Any) -> Any:
        """Fail the start of a flush queue."""
        self._strike("flush_queue_options", device)
        return (yield)

    @hookimpl(wrapper=True)
    def probe_device(self, device: Any) -> Any:
        """Fail a probe."""
        self._strike("probe_device", device)
        return (yield)

    @hookimpl(wrapper=True)
    def device_group(self, device: Any) -> Any:
        """Fail the choice of a group."""
        self._strike("device_group", device)
        return (yield)


_registries: WeakKeyDictionary[VendorRegistry, tuple[VendorRegistry, Faults]] = WeakKeyDictionary()


def faulty_registry(registry: VendorRegistry) -> tuple[VendorRegistry, Faults]:
    """The same vendors with fault injection around them, quiet, made once for each registry."""
    known = _registries.get(registry)
    if known is None:
        faults = Faults()
        known = _registries[registry] = (registry.wrapped(faults), faults)
    known[1].clear()
    return known
