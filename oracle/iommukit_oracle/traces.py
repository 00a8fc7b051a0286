"""Traces: what a real kernel mapped and unmapped for one device at work, as a file that can be replayed.

A file is JSON lines, ``.jsonl`` plain or ``.jsonl.xz`` compressed: the header, an object, and then an event a line, an array of
time, name and fields.  ``docs/traces.md`` says what each means.  The same trace gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from iommukit.errors import InputError
from iommukit_oracle.compact import compress, write_files
from iommukit_oracle.guest.tracing import Event
from iommukit_oracle.recording import SUFFIXES, Address, parse_line, read_lines, shipped_recordings

FORMAT: Final = "iommukit-trace"
VERSION: Final = 1

Hex = Annotated[str, Field(pattern=r"^0x[0-9a-f]+$")]


class _Entry(BaseModel):
    """A part of a header: immutable, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TraceDevice(_Entry):
    """A PCI function: ``id`` as ``vendor:device``, ``class`` as six digits, the bound driver or nothing, its group or none."""

    address: Address
    id: str = Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")
    class_code: str = Field(alias="class", pattern=r"^[0-9a-f]{6}$")
    driver: str = ""
    group: int | None = None


class TraceGroup(_Entry):
    """A group after the work: its number and type, and its regions as ``(first, last, type)`` of ``reserved_regions``."""

    id: int
    type: str
    regions: tuple[tuple[Hex, Hex, str], ...] = ()

    @property
    def direct(self) -> list[tuple[int, int]]:
        """First and last address of the regions that the kernel maps to themselves."""
        return [(int(first, 0), int(last, 0)) for first, last, kind in self.regions if kind.startswith("direct")]


class Phase(_Entry):
    """A part of the trace: ``boot``, ``probe`` (modules loaded), ``work``, ``rest``; and how many events it has."""

    name: str
    events: int = Field(ge=0)


class Work(_Entry):
    """What the device did: a ``disk`` or ``nvme`` disk read ``amount`` bytes from its start, a ``nic`` had a question answered.

    A card has ``amount`` seconds to get the answer.
    """

    kind: Literal["disk", "nvme", "nic"]
    device: Address
    amount: int = Field(ge=0)
    result: str


class TraceHeader(_Entry):
    """Where a trace comes from.

    ``kernel`` is the profile's name, ``package`` Debian's package or the image, ``vendor`` the plugin's name.  ``page_size`` is the
    granule of mappings in bytes; ``resolution_ns`` that of times.  ``work.device`` is the only one that does DMA.
    """

    format: Literal["iommukit-trace"] = FORMAT
    version: Literal[1] = VERSION
    kernel: str
    package: str
    uname: str
    qemu: str
    vendor: str
    arch: str
    cmdline: str
    qemu_args: str
    page_size: int = Field(gt=0)
    resolution_ns: int = Field(gt=0)
    work: Work
    devices: tuple[TraceDevice, ...]
    groups: tuple[TraceGroup, ...]
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event: the kernel's names of its fields, in order; which are addresses, written 0x…, and which text."""

    fields: tuple[str, ...]
    addresses: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset({"device", "driver"})


_PLACES = frozenset({"iova", "paddr"})
KINDS: Mapping[str, Kind] = {
    "map": Kind(("iova", "paddr", "size"), _PLACES),
    "unmap": Kind(("iova", "size", "unmapped_size"), _PLACES),
    "add_device_to_group": Kind(("groupID", "device")),
    "remove_device_from_group": Kind(("groupID", "device")),
    "attach_device_to_domain": Kind(("device",)),
    "detach_device_from_domain": Kind(("device",)),
    "io_page_fault": Kind(("device", "driver", "iova", "flags"), frozenset({"iova", "flags"})),
}
"""The events of ``include/trace/events/iommu.h``."""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """An event: nanoseconds since boot, its name in ``KINDS``, and its fields in that order."""

    time: int
    name: str
    values: tuple[int | str, ...]

    def number(self, field: str) -> int:
        """A field that is a number."""
        return int(self.values[KINDS[self.name].fields.index(field)])

    @property
    def iova(self) -> int:
        """Of a map, an unmap or a fault: where it starts."""
        return self.number("iova")

    @property
    def size(self) -> int:
        """Of a map or an unmap: how many bytes it changes."""
        return self.number("size" if self.name == "map" else "unmapped_size")


@dataclass(frozen=True, slots=True)
class Trace:
    """A header and its events."""

    header: TraceHeader
    events: tuple[TraceEvent, ...]

    @property
    def group(self) -> int | None:
        """The number of the working device's group."""
        work = self.header.work.device
        return next((device.group for device in self.header.devices if device.address == work), None)

    def attributed(self) -> Iterator[tuple[TraceEvent, int | None]]:
        """The maps and unmaps, each with the group in whose domain it is; ``None`` where the device has no group.

        The kernel does not say the domain.  A map of an address to itself within a group's direct region is that group's, and where
        several groups have the region each gets one in turn.  What is mapped there is unmapped there.  All else is the device's.
        """
        own = self.group
        direct: dict[tuple[int, int], list[int]] = {}
        for event in self.events:
            if event.name not in ("map", "unmap"):
                continue
            place = event.iova, event.size
            held = direct.setdefault(place, [])
            if event.name == "unmap":
                yield event, held.pop(0) if held else own
            elif event.iova != event.number("paddr"):
                yield event, own
            else:
                last = event.iova + event.size - 1
                having = [g.id for g in self.header.groups if any(a <= event.iova and last <= b for a, b in g.direct)]
                group = next((number for number in having if number not in held), own)
                if group != own and group is not None:
                    held.append(group)
                yield event, group


def from_kernel(events: Iterable[Event]) -> tuple[TraceEvent, ...]:
    """The events of a guest.  Raises ``InputError`` for one that is not known or lacks a field."""
    return tuple(_from_kernel(event) for event in events)


def _from_kernel(event: Event) -> TraceEvent:
    kind = KINDS.get(event.name)
    if kind is None:
        raise InputError(f"{event.name} is no event that traces know; there are {', '.join(KINDS)}")
    missing = [name for name in kind.fields if name not in event.fields]
    if missing:
        raise InputError(f"{event.name} has no field {missing[0]}: {event.fields}")
    return TraceEvent(
        event.time,
        event.name,
        tuple(event.fields[name] if name in kind.texts else event.number(name) for name in kind.fields),
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def trace_lines(trace: Trace) -> Iterator[str]:
    """The lines of a trace's file."""
    yield _json(trace.header.model_dump(mode="json", by_alias=True))
    for event in trace.events:
        kind = KINDS[event.name]
        fields = zip(kind.fields, event.values, strict=True)
        yield _json([event.time, event.name, *(hex(int(value)) if name in kind.addresses else value for name, value in fields)])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace, compressed where the name ends in ``.xz``.  Raises ``InputError`` where it cannot be written."""
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"a name ending in {' or '.join(SUFFIXES)} was expected", source=str(path))
    lines = list(trace_lines(trace))
    data = compress(lines) if path.suffix == ".xz" else "".join(f"{line}\n" for line in lines).encode()
    write_files({path: data}, path.parent)


def read_trace(path: Path) -> Trace:
    """Read a trace.  Raises ``InputError`` naming file and line for what is none."""
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError("is empty: the header of a trace was expected", source=str(path))
    header = parse_header(lines[0], f"{path}:1")
    events = []
    before = 0
    for number, line in enumerate(lines[1:], start=2):
        event = parse_event(line, f"{path}:{number}")
        if event.time < before:
            raise InputError(f"an event of {event.time} ns behind one of {before} ns", source=f"{path}:{number}")
        before = event.time
        events.append(event)
    said = sum(phase.events for phase in header.phases)
    if said != len(events):
        raise InputError(f"{said} events were expected, and {len(events)} are there", source=str(path), place="phases")
    return Trace(header, tuple(events))


def parse_header(line: str, source: str) -> TraceHeader:
    """The first line of a trace.  Raises ``InputError``, of another version before all else."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict):
        if data.get("format") != FORMAT:
            raise InputError(f"is no trace: {FORMAT!r} was expected", source=source, place="format")
        if data.get("version") != VERSION:
            raise InputError(f"version {VERSION} was expected, not {data.get('version')!r}", source=source, place="version")
    return parse_line(TraceHeader, line, source)


def parse_event(line: str, source: str) -> TraceEvent:
    """A line with an event.  Raises ``InputError``."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError("is no JSON", source=source) from error
    match data:
        case [int(time), str(name), *values] if not isinstance(time, bool) and time >= 0:
            pass
        case _:
            raise InputError("an event was expected: [TIME, NAME, FIELDS…]", source=source)
    kind = KINDS.get(name)
    if kind is None:
        raise InputError(f"{name!r} is no event; there are {', '.join(KINDS)}", source=source)
    if len(values) != len(kind.fields):
        raise InputError(f"{name} has the fields {', '.join(kind.fields)}, and {len(values)} are there", source=source)
    return TraceEvent(time, name, tuple(_value(kind, *pair, source) for pair in zip(kind.fields, values, strict=True)))


def _value(kind: Kind, field: str, value: Any, source: str) -> int | str:
    if field in kind.texts:
        if isinstance(value, str):
            return value
        raise InputError(f"text was expected, not {value!r}", source=source, place=field)
    try:
        if field in kind.addresses:
            number = int(value, 16) if isinstance(value, str) and value.startswith("0x") else -1
        else:
            number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        form = "0x…" if field in kind.addresses else "a number"
        raise InputError(f"{form} of 64 bits was expected, not {value!r}", source=source, place=field)
    return number


def shipped_traces() -> Path:
    """The folder of the traces that come with the project."""
    return shipped_recordings() / "traces"
