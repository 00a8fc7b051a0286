"""Checking that expectations make sense for their scenario, before anything runs."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from iommukit.domain import DomainType
from iommukit.errors import InputError
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy
from iommukit.scenario.model import EXPECTATION_KEYS, OPERATIONS, Scenario
from iommukit.scenario.result import UNDECIDED

TYPES = frozenset({kind.sysfs for kind in DomainType} | {"none", "absent", UNDECIDED})
"""What a device's type can read: sysfs' words, ``none`` outside any group, ``absent`` while it is not there."""
DEFAULTS = frozenset(policy.name for policy in DmaApiPolicy if policy is not DmaApiPolicy.ANY)


def is_result(value: Any) -> bool:
    """Whether a value can be a step's result."""
    return isinstance(value, str) and (value in ("ok", UNDECIDED, "EPROBE_DEFER") or (value[:1] == "E" and hasattr(errno, value)))


def says_nothing(wanted: Any) -> bool:
    """Whether an expectation expects nothing: no key, or only keys without content."""
    if not isinstance(wanted, dict):
        return False
    for key, value in wanted.items():
        if key == "boot" or key.isdecimal():
            empty = says_nothing(value)
        else:
            empty = key in ("log", "no_log", "groups", "reserved") and not value
        if not empty:
            return False
    return True


class _Check:
    """The expectations of one scenario; ``place`` is where the walk is."""

    def __init__(self, scenario: Scenario, machine: Machine, source: str) -> None:
        self.scenario = scenario
        self.source = source
        self.devices = {device.name for device in machine.devices}

    def fail(self, place: str, message: str) -> InputError:
        return InputError(message, source=self.source, place=place)

    def mapping(self, place: str, wanted: Any, upto: int) -> None:
        """Check what must hold after ``upto`` steps; 0 is boot."""
        if not isinstance(wanted, dict):
            raise self.fail(place, "a mapping was expected")
        for key, value in wanted.items():
            here = f"{place}.{key}"
            if key in self.devices and (key in OPERATIONS or key in SPECIAL or key.isdecimal()):
                raise self.fail(here, f"{key!r} is a word of expectations and a device as well; name the device otherwise")
            if key.isascii() and key.isdecimal():
                self.step(here, key, value)
            elif key in OPERATIONS:
                self.operation(here, key, value, upto)
            elif key in SPECIAL:
                SPECIAL[key](self, here, value, upto)
            elif key in self.devices:
                if value not in TYPES if isinstance(value, str) else True:
                    raise self.fail(here, f"no type {_shown(value)}; there are {', '.join(sorted(TYPES))}")
            else:
                known = ", ".join([*OPERATIONS, *EXPECTATION_KEYS, *sorted(self.devices)])
                raise self.fail(place, f"no {key!r} to expect something of; there are {known}")

    def step(self, place: str, key: str, value: Any) -> None:
        number = int(key[:9])
        if not 1 <= number <= len(self.scenario.steps):
            raise self.fail(place, f"there is no step {number}")
        if isinstance(value, str):
            self.result(place, value, number)
        elif isinstance(value, dict):
            self.mapping(place, value, number)
        else:
            raise self.fail(place, "a result or a mapping was expected")

    def operation(self, place: str, op: str, value: Any, upto: int) -> None:
        done = sum(step.op == op for step in self.scenario.steps[:upto])
        if not done:
            raise self.fail(place, f"no step does {op}")
        if op == "read":
            if not (_texts(value) or is_result(value) or (isinstance(value, list) and all(map(_texts, value)))):
                raise self.fail(place, "a list of lines was expected, a list of such lists, or an errno name")
            if not _texts(value) and isinstance(value, list) and len(value) != done:
                raise self.fail(place, f"{done} steps read, {len(value)} results expected")
            return
        for each in value if isinstance(value, list) else [value]:
            self.result(place, each, upto)
        if isinstance(value, list) and len(value) != done:
            raise self.fail(place, f"{done} steps {op}, {len(value)} results expected")

    def result(self, place: str, value: Any, upto: int) -> None:
        if not upto:
            raise self.fail(place, "a boot has no result")
        if not is_result(value):
            raise self.fail(place, f"ok or an errno name was expected, got {_shown(value)}")

    def boot(self, place: str, value: Any, upto: int) -> None:
        self.mapping(place, value, 0)

    def log(self, place: str, value: Any, upto: int) -> None:
        if not all(isinstance(each, str) for each in (value if isinstance(value, list) else [value])):
            raise self.fail(place, "log and no_log expect a text or a list of texts")

    def names(self, place: str, names: Any) -> None:
        for name in names:
            if name not in self.devices:
                raise self.fail(place, f"no device {name!r} in the machine; there are {', '.join(sorted(self.devices)) or 'none'}")

    def groups(self, place: str, value: Any, upto: int) -> None:
        if not (isinstance(value, list) and all(_texts(names) and names for names in value)):
            raise self.fail(place, "a list of lists of devices was expected")
        for names in value:
            self.names(place, names)

    def reserved(self, place: str, value: Any, upto: int) -> None:
        if not (isinstance(value, dict) and all(map(_texts, value.values()))):
            raise self.fail(place, "a mapping from devices to lists of lines was expected")
        self.names(place, value)

    def attaches(self, place: str, value: Any, upto: int) -> None:
        if not upto:
            raise self.fail(place, "attachments are counted for steps")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(place, f"a number was expected, got {_shown(value)}")

    def default(self, place: str, value: Any, upto: int) -> None:
        if not isinstance(value, str) or value not in DEFAULTS:
            raise self.fail(place, f"one of {', '.join(sorted(DEFAULTS))} was expected, got {_shown(value)}")


SPECIAL: dict[str, Callable[[_Check, str, Any, int], None]] = {
    "boot": _Check.boot,
    "log": _Check.log,
    "no_log": _Check.log,
    "groups": _Check.groups,
    "reserved": _Check.reserved,
    "attaches": _Check.attaches,
    "result": _Check.result,
    "default": _Check.default,
}


def check_expectations(scenario: Scenario, machine: Machine, source: str) -> None:
    """Check every kernel's expectation: keys, devices, steps and values.

    Raises ``InputError`` for the first that makes no sense.
    """
    check = _Check(scenario, machine, source)
    for kernel, wanted in scenario.expect.items():
        check.mapping(f"expect.{kernel}", wanted, len(scenario.steps))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | int | None) else type(value).__name__
    return shown if len(shown) <= 60 else shown[:57] + "…"
