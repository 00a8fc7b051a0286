"""Listening to a driver: a hook wrapper that checks each answer against the hook's documentation.

It stands around the vendors of a registry, as a tracer would, and notes what it finds.  It never changes an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from iommukit.device import Device, Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.group import Group
from iommukit.hookspecs import ExampleDevice, FlushQueueOptions, hookimpl
from iommukit.hw.fault import Fault
from iommukit.hw.platform import Addresses
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption
from iommukit.machine.acpi import TableFormat
from iommukit.policy import DmaApiPolicy
from iommukit.regions import RegionType, ReservedRegion
from iommukit_conformance.case import CRASH_RULE, Finding

LAST = (1 << 64) - 1

ANSWERS: dict[str, tuple[str, type, str]] = {
    "def_domain_type": ("DRV-20", DmaApiPolicy, "a DmaApiPolicy"),
    "prefer_dma_api_fq": ("DRV-17", bool, "True or False"),
    "capable": ("DRV-17", bool, "True or False"),
    "is_attach_deferred": ("DRV-17", bool, "True or False"),
    "set_dev_blocked": ("DRV-17", bool, "True or False"),
    "flush_queue_options": ("DRV-40", FlushQueueOptions, "FlushQueueOptions"),
    "domain_alloc": ("DRV-30", Domain, "a domain or None"),
    "device_group": ("DRV-60", Group, "a group"),
    "probe_device": ("DRV-10", Unit, "a unit or None"),
    "example_device": ("DRV-23", ExampleDevice, "an ExampleDevice or None"),
    "map_pages": ("DRV-18", int, "a number of bytes"),
    "unmap_pages": ("DRV-18", int, "a number of bytes"),
    "iova_to_phys": ("DRV-18", np.ndarray, "an array"),
    "requester": ("DRV-18", int, "a number"),
}
"""The rule that a hook's answer belongs to, and what it must be.  ``None`` is the default everywhere."""

LISTS: dict[str, tuple[str, type, str]] = {
    "discover": ("DRV-07", Unit, "Units"),
    "kernel_options": ("DRV-07", KernelOption, "KernelOptions"),
    "firmware_formats": ("DRV-07", TableFormat, "TableFormats"),
    "get_resv_regions": ("DRV-50", ReservedRegion, "ReservedRegions"),
    "take_faults": ("DRV-18", Fault, "Faults"),
}
"""Hooks that answer a sequence: the rule, what each member must be, and what such members are called."""

MAY_REFUSE = frozenset(
    {
        "probe_device",
        "device_group",
        "flush_queue_options",
        "domain_alloc",
        "attach_dev",
        "create_unit",
        "start_unit",
        "map_pages",
        "iotlb_sync_map",
    }
)
"""Hooks that may raise ``IommuError``."""

MAY_ATTACH = frozenset({"attach_dev", "set_dev_blocked", "release_device"})
"""Hooks that may change ``device.attached``."""

HEARD: dict[str, str | None] = {
    CRASH_RULE: None,
    "DRV-07": None,
    "DRV-10": "probe_device",
    "DRV-15": None,
    "DRV-17": None,
    "DRV-18": "map_pages",
    "DRV-20": "def_domain_type",
    "DRV-21": "def_domain_type",
    "DRV-30": "domain_alloc",
    "DRV-31": "domain_alloc",
    "DRV-34": "attach_dev",
    "DRV-35": "attach_dev",
    "DRV-38": "domain_alloc",
    "DRV-40": "flush_queue_options",
    "DRV-50": "get_resv_regions",
    "DRV-53": "get_resv_regions",
    "DRV-60": "device_group",
}
"""The rules that are heard in a driver's answers, and the hook without which there is nothing to hear."""

Wrapper = Generator[None, Any, Any]


class Recorder:
    """What the hooks of one registry do.

    ``begin`` starts afresh; ``findings`` is what has been found since, ``checked`` how often each rule was looked at.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.checked: Counter[str] = Counter()
        self.refused = 0
        """Attachments that were refused."""
        self._handed: dict[int, tuple[Domain, DomainType]] = {}
        self._said: dict[tuple[str, Device], Any] = {}
        self._default: tuple[bool, bool] | None = None

    def begin(self) -> None:
        """Forget everything."""
        self.findings = []
        self.checked = Counter()
        self.refused = 0
        self._handed = {}
        self._said = {}
        self._default = None

    def asked_for(self, domain: Domain) -> DomainType | None:
        """What the core asked for when the driver answered this domain; ``None`` for a domain that it never answered."""
        known = self._handed.get(id(domain))
        return known[1] if known else None

    def note(self, rule: str, text: str) -> None:
        """Note something that must not be, once."""
        finding = Finding(rule, text)
        if finding not in self.findings:
            self.findings.append(finding)

    def check(self, rule: str, condition: object, otherwise: str) -> None:
        """Look at a rule."""
        self.checked[rule] += 1
        if not condition:
            self.note(rule, otherwise)

    def _same(self, rule: str, hook: str, device: Device, answer: Any) -> None:
        """Hold an answer about a device against the one before."""
        before = self._said.setdefault((hook, device), answer)
        self.checked[rule] += 1
        if before != answer:
            self.note(rule, f"{hook}({device.label}) answers {_shown(answer)}, and before {_shown(before)}")

    def look_at_default(self, boot: BootState) -> None:
        """Hold the system's default against what it was when the units had been found."""
        now = boot.default.passthrough(), boot.default.strict
        self.check("DRV-15", self._default in (None, now), "a hook has changed the system's default after the units were found")

    # ---- what all hooks have in common -------------------------------------------------------------------------------

    def _watch(self, hook: str, subject: str, device: Device | None = None) -> Wrapper:
        """Pass a call on; check its errors, its answer's kind, and that the core's state stays as it was."""
        before = _core_state(device, hook) if device is not None else None
        try:
            answer = yield
        except IommuError as error:
            self.check(CRASH_RULE, hook in MAY_REFUSE, f"{hook}({subject}) raised {error}, but may not refuse")
            raise
        except (InputError, NotApplicable):
            self.check(CRASH_RULE, hook in ("discover", "early_quirks"), f"{hook}({subject}) objects to its machine too late")
            raise
        except Exception as error:
            self.check(CRASH_RULE, False, f"{hook}({subject}) raised {type(error).__name__}: {error}")
            raise
        self.check(CRASH_RULE, True, "")
        if device is not None:
            self.checked["DRV-15"] += 1
            after = _core_state(device, hook)
            if after != before:
                changed = ", ".join(name for name, old, new in zip(_STATE, before or (), after, strict=True) if old != new)
                self.note("DRV-15", f"{hook}({subject}) changed {changed}")
        if hook in ANSWERS and answer is not None:
            rule, kind, wanted = ANSWERS[hook]
            self.checked[rule] += 1
            if not isinstance(answer, kind):
                self.note(rule, f"{hook}({subject}) answered {repr(answer)[:80]}, not {wanted}")
        if hook in LISTS and answer is not None:
            rule, kind, wanted = LISTS[hook]
            fine = _is_list(answer) and all(isinstance(member, kind) for member in answer)
            self.check(rule, fine, f"{hook}({subject}) answered {repr(answer)[:80]}, not a sequence of {wanted}")
        return answer

    # ---- hooks of no device --------------------------------------------------------------------------------------------

    @hookimpl(wrapper=True)
    def firmware_formats(self) -> Wrapper:
        """A sequence."""
        return (yield from self._watch("firmware_formats", ""))

    @hookimpl(wrapper=True)
    def kernel_options(self, boot: BootState) -> Wrapper:
        """A sequence."""
        return (yield from self._watch("kernel_options", boot.arch))

    @hookimpl(wrapper=True)
    def example_device(self, role: str, boot: BootState) -> Wrapper:
        """An example, or none."""
        return (yield from self._watch("example_device", role))

    # ---- hooks of a device that answer plainly -----------------------------------------------------------------------

    @hookimpl(wrapper=True)
    def probe_finalize(self, device: Device) -> Wrapper:
        """No answer."""
        return (yield from self._watch("probe_finalize", device.label, device))

    @hookimpl(wrapper=True)
    def release_device(self, device: Device) -> Wrapper:
        """No answer."""
        return (yield from self._watch("release_device", device.label, device))

    @hookimpl(wrapper=True)
    def is_attach_deferred(self, device: Device) -> Wrapper:
        """True or False."""
        return (yield from self._watch("is_attach_deferred", device.label, device))

    @hookimpl(wrapper=True)
    def def_domain_type(self, device: Device) -> Wrapper:
        """A policy, the same each time."""
        answer = yield from self._watch("def_domain_type", device.label, device)
        if isinstance(answer, DmaApiPolicy):
            self._same("DRV-21", "def_domain_type", device, answer)
        return answer

    @hookimpl(wrapper=True)
    def prefer_dma_api_fq(self, device: Device) -> Wrapper:
        """True or False."""
        return (yield from self._watch("prefer_dma_api_fq", device.label, device))

    @hookimpl(wrapper=True)
    def capable(self, device: Device, capability: str) -> Wrapper:
        """True or False."""
        return (yield from self._watch("capable", f"{device.label}, {capability}", device))

    # ---- hooks whose answers have more to them -----------------------------------------------------------------------

    @hookimpl(wrapper=True)
    def discover(self, machine: Any, boot: BootState) -> Wrapper:
        """Units with names of their own; the last moment at which a driver may change the system's default."""
        units = yield from self._watch("discover", machine.machine)
        self._default = boot.default.passthrough(), boot.default.strict
        names = [unit.name for unit in _members(units, Unit)]
        self.check("DRV-06", len(set(names)) == len(names), f"discover({machine.machine}): two units have one name: {names}")
        return units

    @hookimpl(wrapper=True)
    def probe_device(self, device: Device, units: Any) -> Wrapper:
        """One of the units, or none."""
        unit = yield from self._watch("probe_device", device.label, device)
        known = unit is None or any(unit is each for each in units)
        self.check("DRV-10", known, f"probe_device({device.label}) answered {_name(unit)}, which discover did not return")
        return unit

    @hookimpl(wrapper=True)
    def device_group(self, device: Device) -> Wrapper:
        """A group that the system knows."""
        group = yield from self._watch("device_group", device.label, device)
        if isinstance(group, Group):
            known = device.system.groups.get(group.id) is group
            self.check("DRV-60", known, f"device_group({device.label}) answered group {group.id}, which this system does not have")
        return group

    @hookimpl(wrapper=True)
    def get_resv_regions(self, device: Device) -> Wrapper:
        """Well-formed regions; direct ones are the same each time, others may depend on what is attached."""
        regions = yield from self._watch("get_resv_regions", device.label, device)
        known = _members(regions, ReservedRegion)
        for region in known:
            fine = isinstance(region.type, RegionType) and 0 <= region.start <= region.end <= LAST
            self.check("DRV-50", fine, f"get_resv_regions({device.label}) answered {_region(region)}")
        direct = {_region(region) for region in known if isinstance(region.type, RegionType) and region.type.is_direct}
        self._same("DRV-53", "get_resv_regions", device, direct)
        return regions

    @hookimpl(wrapper=True)
    def flush_queue_options(self, device: Device) -> Wrapper:
        """A power of two, and a timeout."""
        options = yield from self._watch("flush_queue_options", device.label, device)
        if isinstance(options, FlushQueueOptions):
            size, timeout = options.entries, options.timeout_ns
            subject = f"flush_queue_options({device.label})"
            self.check("DRV-40", size > 1 and not size & (size - 1), f"{subject}: {size} entries are no power of two")
            self.check("DRV-40", timeout > 0, f"{subject}: a timeout of {timeout} ns never comes")
        return options

    @hookimpl(wrapper=True)
    def domain_alloc(self, device: Device, type: DomainType) -> Wrapper:
        """A domain of that type, of its own or static; since the posted patch a queue is not asked for."""
        subject = f"domain_alloc({device.label}, {type.name})"
        domain = yield from self._watch("domain_alloc", f"{device.label}, {type.name}", device)
        if not isinstance(domain, Domain):
            return domain
        self.check("DRV-30", domain.type is type, f"{subject} answered a domain of type {domain.type.name}")
        if not domain.static:
            fresh = id(domain) not in self._handed
            self.check("DRV-31", fresh, f"{subject} answered a domain that it gave before, and does not call it static")
            self.check("DRV-38", not domain.freed, f"{subject} answered a domain that was given back")
        self._handed[id(domain)] = (domain, type)
        return domain

    @hookimpl(wrapper=True)
    def attach_dev(self, domain: Domain, device: Device) -> Wrapper:
        """Attached, or refused and nothing changed."""
        before = device.attached
        self.check("DRV-38", not domain.freed, f"attach_dev({domain.type.name}, {device.label}): the domain was given back before")
        subject = f"attach_dev({domain.type.name}, {device.label})"
        try:
            answer = yield from self._watch("attach_dev", f"{domain.type.name}, {device.label}", device)
        except IommuError as error:
            self.refused += 1
            at = f"{subject} refused ({error}), but the device is {_where(device)}"
            self.check("DRV-36", device.attached is before, at)
            raise
        self.check("DRV-35", device.attached is domain, f"{subject} succeeded, but the device is {_where(device)}")
        if domain.type.uses_dma_api or domain.type is DomainType.UNMANAGED:
            first, last = domain.aperture
            sizes = domain.page_sizes
            self.check("DRV-34", 0 <= first < last <= LAST, f"{subject}: the aperture {first:#x}..{last:#x} is empty")
            self.check("DRV-34", sizes and not sizes & 0xFFF, f"{subject}: no pages of {sizes:#x} bytes can be mapped")
        return answer

    @hookimpl(wrapper=True)
    def set_dev_blocked(self, device: Device) -> Wrapper:
        """Out of every domain, if it says so."""
        answer = yield from self._watch("set_dev_blocked", device.label, device)
        if answer is True:
            at = f"set_dev_blocked({device.label}) answered True, but the device is {_where(device)}"
            self.check("DRV-37", device.attached is None, at)
        return answer

    @hookimpl(wrapper=True)
    def domain_free(self, domain: Domain) -> Wrapper:
        """No answer; a static domain is never given back."""
        self.check("DRV-38", not domain.static, f"domain_free({domain.type.name}): the domain is static")
        return (yield from self._watch("domain_free", domain.type.name))

    # ---- hooks of hardware -------------------------------------------------------------------------------------------

    @hookimpl(wrapper=True)
    def create_unit(self, unit: Unit) -> Wrapper:
        """A model, or none."""
        return (yield from self._watch("create_unit", unit.name))

    @hookimpl(wrapper=True)
    def start_unit(self, unit: Unit) -> Wrapper:
        """No answer."""
        return (yield from self._watch("start_unit", unit.name))

    @hookimpl(wrapper=True)
    def requester(self, device: Device) -> Wrapper:
        """A number."""
        return (yield from self._watch("requester", device.label, device))

    @hookimpl(wrapper=True)
    def take_faults(self, unit: Unit) -> Wrapper:
        """A sequence."""
        return (yield from self._watch("take_faults", unit.name))

    @hookimpl(wrapper=True)
    def map_pages(self, iova: int, pgsize: int, pgcount: int) -> Wrapper:
        """Bytes."""
        return (yield from self._watch("map_pages", f"{iova:#x}, {pgcount} x {pgsize:#x}"))

    @hookimpl(wrapper=True)
    def unmap_pages(self, iova: int, pgsize: int, pgcount: int) -> Wrapper:
        """Bytes."""
        return (yield from self._watch("unmap_pages", f"{iova:#x}, {pgcount} x {pgsize:#x}"))

    @hookimpl(wrapper=True)
    def iova_to_phys(self, iova: Addresses) -> Wrapper:
        """As many addresses as were asked about, of 64 bits."""
        answer = yield from self._watch("iova_to_phys", f"{iova.size} addresses")
        if isinstance(answer, np.ndarray):
            fine = answer.shape == iova.shape and answer.dtype == np.uint64
            self.check("DRV-18", fine, f"iova_to_phys of {iova.shape} addresses answered {answer.shape} of {answer.dtype}")
        return answer

    @hookimpl(wrapper=True)
    def flush_iotlb_all(self, domain: Domain) -> Wrapper:
        """No answer."""
        return (yield from self._watch("flush_iotlb_all", domain.type.name))

    @hookimpl(wrapper=True)
    def iotlb_sync(self, domain: Domain) -> Wrapper:
        """No answer."""
        return (yield from self._watch("iotlb_sync", domain.type.name))

    @hookimpl(wrapper=True)
    def iotlb_sync_map(self, domain: Domain) -> Wrapper:
        """No answer; it may refuse since 6.7."""
        return (yield from self._watch("iotlb_sync_map", domain.type.name))


_STATE = ("trust", "group", "unit", "driver", "presence", "mapping calls", "attachment")


def _core_state(device: Device, hook: str) -> tuple[Any, ...]:
    """What a hook must leave alone; before 6.12 ``probe_finalize`` sets up the mapping calls."""
    return (
        device.untrusted,
        device.group,
        device.unit,
        device.driver,
        device.present,
        None if hook == "probe_finalize" else device.dma_ops,
        None if hook in MAY_ATTACH else device.attached,
    )


def _is_list(answer: Any) -> bool:
    """Whether an answer can be gone through as often as wanted; a text is one thing, not many."""
    return isinstance(answer, Sequence) and not isinstance(answer, str | bytes)


def _members(answer: Any, kind: type) -> list[Any]:
    """The members of a list that are what they should be."""
    return [member for member in answer if isinstance(member, kind)] if _is_list(answer) else []


def _shown(answer: Any) -> str:
    if isinstance(answer, set):
        return ", ".join(sorted(answer)) or "no direct region"
    return str(getattr(answer, "name", answer))


def _name(unit: Any) -> str:
    return str(getattr(unit, "name", unit))


def _region(region: Any) -> str:
    if isinstance(region, ReservedRegion) and isinstance(region.start, int) and isinstance(region.end, int):
        return f"{region.start:#x}..{region.end:#x} {getattr(region.type, 'value', region.type)}"
    return f"{region!r:.80}"


def _where(device: Device) -> str:
    return f"in a domain of type {device.attached.type.name}" if device.attached else "in no domain"
