"""The guest's event lines, parsed.

Each is ``@TAG|field|…``; the guest printed them in the order in which things happened, except for kernel lines (``@N``,
``@X``), which it printed later in one go.

| line | means |
|---|---|
| ``@D|device|driver`` | the device's driver now; nothing after the second bar: none |
| ``@B|device|driver|rc:text`` | the driver was bound through sysfs, with the shell's exit code and error text |
| ``@HOST|command …`` | the host was asked to run a QMP command |
| ``@HP|device|present`` or ``gone`` | the device has appeared or disappeared after that |
| ``@R|vfio|…`` | a program opened a VFIO container with a group, or closed it |
| ``@R|writes|…``, ``@R|binds|…`` | counts of two processes that raced each other |
| ``@R|name|rc:text`` | the outcome of a single experiment |
| ``@F|tag|driver|type=…|outcome`` | a functional test of the device that the driver has, with the type of its group |
| ``@N|[time] line`` | a kernel line since the last time |
| ``@X|tag|[time] line`` | the same; it belongs to the test or snapshot of that tag |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from iommukit.errors import InputError
from iommukit_oracle.recording import Recording

ERRNO = {
    "Operation not permitted": "EPERM",
    "No such file or directory": "ENOENT",
    "Input/output error": "EIO",
    "Resource temporarily unavailable": "EAGAIN",
    "Cannot allocate memory": "ENOMEM",
    "Out of memory": "ENOMEM",
    "Permission denied": "EACCES",
    "Bad address": "EFAULT",
    "Device or resource busy": "EBUSY",
    "File exists": "EEXIST",
    "No such device": "ENODEV",
    "No such device or address": "ENXIO",
    "Invalid argument": "EINVAL",
    "Operation not supported": "EOPNOTSUPP",
    "Not supported": "EOPNOTSUPP",
    "Connection timed out": "ETIMEDOUT",
}
"""Errno names by the C library's texts."""

SOME_ERROR = "some error"
"""An error whose text was not recorded."""


def errno_of(text: str) -> str:
    """``ok``, an errno name, or ``SOME_ERROR`` for a result whose text says nothing."""
    return "ok" if text == "ok" else ERRNO.get(text, SOME_ERROR)


@dataclass(frozen=True, slots=True)
class Driver:
    """A device's driver as seen at this moment; empty for none."""

    device: str
    driver: str


@dataclass(frozen=True, slots=True)
class Bind:
    """A bind through sysfs; ``result`` is ``ok`` or an errno name, ``after`` the device's driver after it, if it was looked at."""

    device: str
    driver: str
    result: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """A device has come or gone."""

    device: str
    present: bool


@dataclass(frozen=True, slots=True)
class Grouped:
    """A kernel line: a device was added to a group (at its probe, or as its driver was bound) or removed from it.

    It happened before the line was printed.  ``tag`` names the test or snapshot that it belongs to, if one was named.
    """

    device: str
    driver: str
    group: int
    joined: bool
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Owned:
    """VFIO has taken a group, or given back what it had (``group`` is then ``None``)."""

    group: int | None


@dataclass(frozen=True, slots=True)
class Test:
    """A functional test of a device with this driver: whether its DMA worked, and the type of its group.

    ``gave_up``: the driver failed its own start and let go of the device.
    """

    tag: str
    driver: str
    type: str
    works: bool
    gave_up: bool = False


@dataclass(frozen=True, slots=True)
class Race:
    """Two processes raced; only the state in the end is known."""

    what: str


@dataclass(frozen=True, slots=True)
class OpenWrite:
    """A write to a ``type`` file that was opened before the group's last device left."""

    result: str


@dataclass(frozen=True, slots=True)
class Line:
    """A kernel line that no step follows from."""

    text: str
    tag: str = ""


Event = Driver | Bind | Presence | Grouped | Owned | Test | Race | OpenWrite | Line


def parse_events(recording: Recording) -> list[Event]:
    """The events of a recording.  Raises ``InputError`` naming the line that cannot be read."""
    events: list[Event] = []
    for number, text in enumerate(recording.events, start=1):
        tag, *fields = text.split("|")
        reader = _READERS.get(tag)
        if reader is None:
            continue
        try:
            event = reader(fields)
        except (IndexError, ValueError) as error:
            raise InputError(f"{text[:60]!r} is no event", source=recording.id, place=f"events[{number - 1}]") from error
        if event is None:
            continue
        last = events[-1] if events else None
        if isinstance(last, Bind) and last.after is None and isinstance(event, Driver) and event.device == last.device:
            events[-1] = replace(last, after=event.driver)
        else:
            events.append(event)
    return events


def _driver(fields: Sequence[str]) -> Event:
    return Driver(fields[0], fields[1])


def _bind(fields: Sequence[str]) -> Event:
    return Bind(fields[0], fields[1], _exit_code(fields[2]))


def _exit_code(text: str) -> str:
    code, _, message = text.partition(":")
    return "ok" if int(code) == 0 else errno_of(message)


def _presence(fields: Sequence[str]) -> Event | None:
    return Presence(fields[0], fields[1] == "present") if fields[1] in ("present", "gone") else None


_CONTAINER = re.compile(r"group (\d+) .*set_container=ok")


def _result(fields: Sequence[str]) -> Event | None:
    if fields[0] == "vfio":
        match = _CONTAINER.match(fields[1])
        return Owned(int(match[1])) if match else Owned(None) if fields[1] == "closing" else None
    if fields[0] in ("writes", "binds"):
        return Race(fields[1])
    return OpenWrite(_exit_code(fields[1])) if fields[0] == "write-after-last-device-left" else None


def _test(fields: Sequence[str]) -> Event:
    outcome = fields[3]
    return Test(fields[0], fields[1], fields[2].removeprefix("type="), outcome.startswith("works"), "driver none" in outcome)


_STAMP = re.compile(r"^\[[^\]]*\] ")
_JOINED = re.compile(r"^(\S+) (\S+): Adding to iommu group (\d+)$")
_LEFT = re.compile(r"^(\S+) (\S+): Removing from iommu group (\d+)$")


def _kernel_line(text: str, tag: str) -> Event:
    text = _STAMP.sub("", text)
    for pattern, joined in ((_JOINED, True), (_LEFT, False)):
        match = pattern.match(text)
        if match:
            return Grouped(match[2], match[1], int(match[3]), joined, tag)
    return Line(text, tag)


_READERS: dict[str, Callable[[Sequence[str]], Event | None]] = {
    "@D": _driver,
    "@B": _bind,
    "@HP": _presence,
    "@R": _result,
    "@F": _test,
    "@N": lambda fields: _kernel_line("|".join(fields), ""),
    "@X": lambda fields: _kernel_line("|".join(fields[1:]), fields[0]),
}


def later_devices(recording: Recording) -> list[tuple[str, str]]:
    """Address and QEMU model of each device that was not there at boot, in the order of their appearance.

    The model is empty for a device that nobody plugged in through QMP.
    """
    models = [str(command.args.get("driver", "")) for command in recording.qmp if command.cmd == "device_add"]
    events = parse_events(recording)
    plugged = [event.device for event in events if isinstance(event, Presence) and event.present]
    found = dict(reversed(list(zip_longest(plugged, models[: len(plugged)], fillvalue=""))))
    for event in events:
        if isinstance(event, Driver | Bind):
            found.setdefault(event.device, "")
    for groups in recording.snapshots.values():
        for device in (device for group in groups for device in group.devices):
            found.setdefault(device, "")
    there = {entry.bdf for entry in recording.functions}
    return [(address, model) for address, model in found.items() if address not in there]
