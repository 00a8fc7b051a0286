"""The abstract situation in which a kernel does something, told from the model's state: the same for a recording and a scenario.

Two moments are alike if nothing that Linux looks at tells them apart.  So a situation names, beside profile and vendor,

- of the hardware what the machine file can choose (pass-through, SNP, …), memory encryption, build options, and the ids of the
  functions that quirks look for;
- the system's default policy, where it is asked for: when a group is made and at ``auto``.  What it came from is a situation of its
  own (``default``): the build, the words of the command line in their order, caching mode and what else makes Linux strict;
- of a group whether it has several devices, and of its devices trust, what the driver requires of them (and then of what class they
  are: the reason may lie there), whether a flush queue suits them, and whether firmware shares memory with them;
- the type, whether the group sits in its default domain, device by device, whether that has its address space yet, and an owner;
- which kinds of driver are bound: none, one that uses the DMA API, one that manages DMA itself;
- the text that is written, but for one newline, and with which rights;
- of a place in the topology whether it and the bridges above it isolate and how that is known, the bridges' kinds, and whether
  functions share a slot.  Of a function that is no bridge the kernel asks nothing more; on s390 it sees no topology at all.

Names, addresses and the numbers of groups and devices beyond one are left out: no kernel decides by them.  So are lines, some of
which printk drops.  A situation that is told too coarsely would show: two recordings with two answers, which then vouch for
nothing, or a scenario that ends otherwise than they do.

6.1 stands for its stable series, which the recordings are of.  It reads the same rules but for trust, for groups that meet several
units and, of late, for ``iommu=off``: where a device is trusted in one and not in the other, nothing is alike; several units are
part of the situation; and what a platform's wish makes of ``iommu=off`` shows in the answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iommukit.device import Device
from iommukit.group import Group
from iommukit.kernel.acs import acs_enabled
from iommukit.kernel.kernel import DRIVERS_MANAGING_DMA, device_answer
from iommukit.kernel.profiles import STABLE
from iommukit.kernel.system import System
from iommukit.kernel.trust import is_untrusted
from iommukit.policy import DmaApiPolicy
from iommukit.scenario.model import Step
from iommukit.scenario.result import StepResult
from iommukit_oracle.qemu_machine import PROFILE

Fact = tuple[str, str]
"""A situation, and what was answered in it."""

_RECORDED_AS = dict.fromkeys(STABLE, "6.1")
_ON_BY_BUILD = {"intel_vtd": "INTEL_IOMMU_DEFAULT_ON"}
_BUILDS = frozenset(_ON_BY_BUILD.values())
_ON = "intel_iommu=on"
_SAME_AS_BUILD: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "lazy": (("lazy", ()), ("strict", ("iommu.strict=0",))),
    "strict": (("strict", ()), ("lazy", ("iommu.strict=1",))),
    "passthrough": (("passthrough", ()), ("lazy", ("iommu.passthrough=1",)), ("strict", ("iommu.passthrough=1",))),
}
"""A build option and what says the same: words of the command line on another build."""
_SAYS_STRICT = re.compile(r"iommu\.strict=[01yn]")
"""After it nobody asks whether the build was lazy or strict."""


class Unlike(Exception):
    """Nothing that was recorded can be like this."""


# ---- the hardware ----------------------------------------------------------------------------------------------------

_CACHING_MODE = 1 << 7
_PASS_THROUGH, _SCALABLE = 1 << 6, 1 << 43
"""Bits of VT-d's capability and extended capability registers (VT-d 11.4.2, 11.4.3)."""
_SAYS_NOTHING = frozenset({"described_by", "memory_size", "host_address_width", "units", "efr", "efr2", "efr_sup"})
"""What policy does not depend on, or what is told by other words: how firmware describes a unit shows in when devices meet it."""
_USUAL = frozenset(f"{word}=True" for word in ("interrupt_remapping", "pass_through", "guest_translation", "ppr")) | {
    "np_cache=False",
    "caching_mode=False",
    "version=3",
}
"""What QEMU's hardware has where nobody asks for something else."""
_OFF = re.compile(r"(^|\s)iommu=(\S*,)?off")
_ASKED_AT_BOOT = frozenset({"caching_mode=True", "np_cache=True", "platform_opt_in=True"})
"""What makes the default strict or translated; nobody asks for it afterwards."""
_BRIDGES = frozenset({0x0600, 0x0601})
_GRAPHICS, _INTEL = 0x03, 0x8086
_ORDINARY = frozenset({(0x8086, 0x29C0), (0x8086, 0x2918), (0x1B36, 0x0008)})
"""Bridges of QEMU's machines, which no quirk looks for."""


def _hardware(system: System) -> set[str]:
    hardware = system.machine.hardware
    words = {f"{name}={value}" for name, value in hardware.items() if name not in _SAYS_NOTHING}
    for unit in hardware.get("units", ()):
        cap, ecap = (unit.get(name) for name in ("cap", "ecap"))
        if isinstance(cap, int) and isinstance(ecap, int):
            words |= {"caching_mode=True"} if cap & _CACHING_MODE else set()
            words |= {"scalable_mode=True"} if ecap & _SCALABLE else set()
            words |= set() if ecap & _PASS_THROUGH else {"pass_through=False"}
        else:
            words.add(f"unit={unit}")
    words |= {f"{name}={value}" for name, value in system.boot.config.items() if name not in _BUILDS}
    for each in system.devices.values():
        facts = each.facts
        quirky = facts.class_code >> 8 in _BRIDGES or (facts.base_class == _GRAPHICS and facts.vendor_id == _INTEL)
        if quirky and facts.ids not in _ORDINARY:
            words.add("{:04x}:{:04x}".format(*facts.ids))
    words |= set(system.machine.firmware)
    words |= {"encrypted"} if system.boot.memory_encryption else set()
    if hardware.get("platform_opt_in") and not system.boot.off_is_final and _OFF.search(system.boot.cmdline):
        words.add("overrules iommu=off")
    return words - _USUAL


# ---- devices and groups ----------------------------------------------------------------------------------------------


class Situations:
    """Tells the situations of one running system."""

    def __init__(self, system: System, profile: str) -> None:
        self.system = system
        self.profile = _RECORDED_AS.get(profile, profile)
        self._who = f"{self.profile} {system.vendor.name}"
        self._hardware = _hardware(system)
        self._where = f"{self._who} [{','.join(sorted(self._hardware - _ASKED_AT_BOOT))}]"
        self._default = system.boot.default.policy().name
        self._traits: dict[Device, str] = {}
        self.added: set[str] = set()
        """Devices that were plugged in after boot."""

    def _key(self, kind: str, *parts: str) -> str:
        return " | ".join((kind, self._where, *parts))

    def plugged(self, device: Device) -> None:
        """A device has been plugged in, perhaps not for the first time."""
        self.added.add(device.name)
        self._traits.pop(device, None)

    def trait(self, device: Device) -> str:
        """What a device brings into its group's decisions."""
        found = self._traits.get(device)
        if found is None:
            if self.profile in PROFILE and device.untrusted != is_untrusted(
                device, STABLE[PROFILE[self.profile]].trust_rule, self.system.boot.arch
            ):
                raise Unlike("trust")
            ops = self.system.vendor.ops
            wanted = device_answer(device)
            regions = sorted({region.type.value for region in self.system.regions(device) if region.type.is_direct})
            words = [
                "untrusted" if device.untrusted else "trusted",
                wanted.name if wanted is DmaApiPolicy.ANY else f"{wanted.name} of {device.facts.class_code >> 8:#x}",
                "" if ops.prefer_dma_api_fq(device=device) else "no queue",
                *regions,
            ]
            found = self._traits[device] = " ".join(filter(None, words))
        return found

    def _members(self, group: Group) -> str:
        traits = dict.fromkeys(map(self.trait, group.devices))
        return f"{'several' if len(group.devices) > 1 else 'one'}: {', '.join(traits)}"

    def group(self, group: Group | None, kind: Callable[[Device], str] | None = None) -> str:
        """A group as a kernel sees it before it does something to it; ``kind`` tells drivers apart."""
        kind = kind or driver_kind
        if group is None:
            return "no group"
        if self.system.groups.get(group.id) is not group:
            return "gone"
        domain = group.default_domain
        drivers = sorted({kind(device) for device in group.devices})
        attached = dict.fromkeys(_attached(device, group) for device in group.devices)
        words = [
            self._members(group),
            group.sysfs_type + (" ready" if domain is not None and domain.iova_initialised else ""),
            "in " + ", ".join(attached),
            "owned" if group.owner is not None else "" if group.domain is domain else "moved",
            f"drivers {', '.join(drivers)}",
        ]
        return "; ".join(filter(None, words))

    def place(self, device: Device) -> str:
        """Where a device is: itself and the functions above it."""
        chain = []
        above: Device | None = device
        while above is not None:
            chain.append(self._function(above))
            above = above.parent
        return " < ".join(chain)

    def _function(self, device: Device) -> str:
        facts = device.facts
        added = "added" if device.name in self.added else ""
        if self.system.boot.arch == "s390x":
            return f"function {added}"
        if facts.acs_unknown:
            raise Unlike("ACS")
        told = facts.acs is not None or "acs_capability" in facts.attributes
        slot = device.bus.slots.get(facts.pci.slot, ()) if device.bus is not None and facts.pci is not None else ()
        others = [acs_enabled(other) for other in slot if other is not device]
        words = (
            facts.kind.value if facts.kind.is_bridge or not facts.kind.is_pci else "function",
            "isolated" if acs_enabled(device) else "open",
            "by ACS" if told else "",
            "" if not others else "shares its slot" if all(others) else "shares its slot with open ones",
            "multifunction" if device.multifunction else "",
            "aliases" if device.dma_aliases or facts.real_dma_device else "",
            added,
        )
        return " ".join(filter(None, words))

    # ---- what there is to be seen ------------------------------------------------------------------------------------

    def boot(self) -> Iterator[Fact]:
        """The default, who shares a group, and each group's type.  Raises ``Unlike``."""
        yield self.default()
        for group in self.system.groups.values():
            yield self.partition(group)
            yield self.type_at_start(group)
        for device in self.system.present_devices():
            if device.group is None:
                yield self.outside(device)

    def default(self, kconfig: str = "", words: tuple[str, ...] | None = None) -> Fact:
        """What a build and a command line make of the default, and whether there are units at all."""
        boot = self.system.boot
        said = tuple(report.option for report in boot.reports) if words is None else words
        off = ""
        if not boot.config.get(_ON_BY_BUILD.get(self.system.vendor.name, ""), True):
            off = "" if _ON in said else " off by build"
        external = ""
        if self.system.machine.hardware.get("platform_opt_in"):
            external = (
                "external port" if any(device.facts.external_facing for device in self.system.devices.values()) else "no port"
            )
        else:
            # It makes one build as another, and nothing else, where the platform does not ask for protection too.
            said = tuple(word for word in said if word != _ON)
        hardware = f"{self._who} [{','.join(sorted(self._hardware))}]"
        key = " | ".join(("default", hardware, external, (kconfig or boot.kconfig) + off, " ".join(said)))
        return key, f"{self._default}{'' if self.system.units else ', off'}"

    def defaults_alike(self) -> list[Fact]:
        """Where the command line says nothing, a build is as good as words that say the same on another one."""
        boot = self.system.boot
        if boot.reports:
            said = any(_SAYS_STRICT.fullmatch(report.option) for report in boot.reports)
            builds = ("lazy", "strict") if said and boot.kconfig != "passthrough" else (boot.kconfig,)
            return [self.default(build) for build in builds]
        return [self.default(kconfig, words) for kconfig, words in _SAME_AS_BUILD[boot.kconfig]]

    def partition(self, group: Group) -> Fact:
        """Who shares a group."""
        places = sorted({self.place(device) for device in group.devices})
        # What the IOMMU can do has no part in it.
        return " | ".join(("group", self._who, "; ".join(places))), "several" if len(group.devices) > 1 else "one"

    def type_at_start(self, group: Group) -> Fact:
        """The type of a group when it is made."""
        late = "one by one" if any(self._late(device) for device in group.devices) else "at boot"
        units = len({device.unit for device in group.devices})
        return self._key("type", self._default, late, "" if units == 1 else "several units", self._members(group)), group.sysfs_type

    def _late(self, device: Device) -> bool:
        return device.name in self.added or (device.unit is not None and device.unit.probes_at_bind)

    def outside(self, device: Device) -> Fact:
        """A device in no group."""
        if not self.system.units:
            return self._key("outside", "no units"), "none"
        refused = "refused" if device.refused else ""
        return self._key("outside", refused, driver_kind(device), self.place(device)), "none"

    def step(self, step: Step, find: Callable[[str], Group | None]) -> str:
        """The situation in which a step is about to be taken; ``find`` tells the group of a device.  Raises ``Unlike``."""
        told = _STEPS.get(step.op)
        if told is None or (step.op == "read" and step.arguments.file != "type"):
            raise Unlike(step.op)
        name = next(iter(step.device_names))
        device = self.system.devices[name]
        group = find(name)
        if step.op == "add":
            return self._key("add", "there" if device.present else "not there", self._above(device))
        if step.op == "dma":
            return self._key("dma", _dma(device))
        there = "" if device.present else "absent"
        if step.op == "write":
            text = told(step.arguments)
            return self._key("write", self.group(group), text, self._default if "auto" in text else "")
        # Whether a driver that manages DMA itself is bound elsewhere in the group, only writes ask.
        own = f"itself {driver_kind(device)}" if step.op in ("bind", "unbind", "remove") else ""
        return self._key(step.op, self.group(group, _uses_dma), own, there, told(step.arguments))

    def _above(self, device: Device) -> str:
        return "" if device.parent is None or device.parent.present else "below nothing"

    def joined(self, device: Device, before: str) -> Iterator[Fact]:
        """What became of a device that was plugged in; ``before`` was the group that it came into, if it was there."""
        group = device.group
        if group is None:
            yield self.outside(device)
            return
        yield self.partition(group)
        if len(group.devices) == 1:
            yield self.type_at_start(group)
        else:
            yield self._key("join", self._default, before, self.trait(device)), group.sysfs_type


def driver_kind(device: Device) -> str:
    """``none``, ``dma`` or ``managed``."""
    if device.driver is None:
        return "none"
    return "managed" if device.driver_managed_dma else "dma"


def _uses_dma(device: Device) -> str:
    return "dma" if driver_kind(device) == "dma" else "none"


def _attached(device: Device, group: Group) -> str:
    domain = device.attached
    if domain is None:
        return "none"
    return "default" if domain is group.default_domain else domain.type.sysfs


def _dma(device: Device) -> str:
    domain = device.attached
    kind = "none" if domain is None else domain.type.sysfs + (" ready" if domain.iova_initialised else "")
    words = [driver_kind(device), kind, device.dma_ops.value, "refused" if device.refused else ""]
    return " ".join(filter(None, [*words, "deferred" if device.attach_deferred else "", "" if device.present else "absent"]))


def _managed(arguments: Any) -> str:
    known = arguments.driver in DRIVERS_MANAGING_DMA
    return "managed" if (known if arguments.driver_managed_dma is None else arguments.driver_managed_dma) else "dma"


_STEPS: Mapping[str, Callable[[Any], str]] = {
    "write": lambda arguments: f"{arguments.type.removesuffix(chr(10))!r}" + ("" if arguments.privileged else " unprivileged"),
    "bind": _managed,
    "unbind": lambda arguments: "",
    "claim": lambda arguments: "",
    "release": lambda arguments: "",
    "remove": lambda arguments: "",
    "add": lambda arguments: "",
    "dma": lambda arguments: "",
    "read": lambda arguments: arguments.file,
}
"""What a step's arguments add to its situation; of a step that is not here nothing was recorded."""


def answer_of(op: str, done: StepResult, kind: str) -> str:
    """What a step has answered: a write with the type afterwards, DMA with whether it works."""
    if op == "dma":
        return "dead" if done.result == "EIO" else "works" if done.result in ("ok", "UNDECIDED") else done.result
    return f"{done.result} {kind}" if op == "write" else done.result
