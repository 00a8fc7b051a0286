"""A guest's trace of its IOMMU layer: ``trace_event=iommu`` on the command line, lines in tracefs, events here."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from iommukit.errors import HardwareLost, InputError
from iommukit_oracle.guest.boot import Guest

CMDLINE = "trace_event=iommu trace_buf_size=4M trace_clock=global"
"""A kernel that finds its clock unstable, as on a busy host, changes to this clock by itself and forgets the trace so far."""
TRACE = "/sys/kernel/tracing/trace"
STATS = "/sys/kernel/tracing/per_cpu/cpu0/stats"
QUIET = 0.2
"""Seconds without an event after which a guest is quiet; queues of flushes are emptied every 10 ms."""
PATIENCE = 30.0
"""Seconds after which a guest that is not quiet will not be."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the group ``iommu``: nanoseconds since boot (the kernel prints microseconds), its name, and its fields as text.

    Of a range ``iova=START - END`` the start is kept.
    """

    time: int
    name: str
    fields: dict[str, str]

    def number(self, field: str) -> int:
        """A field as a number.  Raises ``InputError`` where it is none."""
        try:
            return int(self.fields[field], 0)
        except (KeyError, ValueError):
            raise InputError(f"the event {self.name} has no number {field}: {self.fields}") from None


_LINE = re.compile(r"\[\d{3,}\].*? (\d+)\.(\d{6}): (\w+): IOMMU: ?(.*)$")
_FIELD = re.compile(r"(\w+)=(\S+)")
_COUNTS = re.compile(r"# entries-in-buffer/entries-written: (\d+)/(\d+) ")


def parse_trace(lines: Sequence[str]) -> list[Event]:
    """The events of ``tracing/trace``.  Raises ``InputError`` where some were lost, or where a line is no such event."""
    counts = next((found for line in lines if (found := _COUNTS.match(line))), None)
    if counts is None:
        raise InputError("this is no trace: a line '# entries-in-buffer/entries-written: …' was expected")
    if counts[1] != counts[2]:
        raise InputError(f"the trace is not complete: {counts[1]} of {counts[2]} events were kept")
    events = []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.search(line)
        if found is None:
            raise InputError(f"this is no event of the IOMMU layer: {line.strip()}")
        fields = dict(_FIELD.findall(found[4]))
        if found[3] == "io_page_fault":  # the only one that begins with values
            fields.update(zip(("driver", "device"), found[4].split(), strict=False))
        events.append(Event(int(found[1] + found[2]) * 1000, found[3], fields))
    if len(events) != int(counts[1]):
        raise InputError(f"{len(events)} events were printed of {counts[1]}")
    return events


def quiet_trace(guest: Guest) -> list[Event]:
    """All events since boot, once no more come.  Raises ``HardwareLost`` where a guest never rests, else as ``parse_trace``."""
    until = time.monotonic() + PATIENCE
    before: list[str] = []
    while True:
        now = [line for line in guest.ask("read", STATS) if line.startswith(("entries:", "overrun:"))]
        if now == before:
            return parse_trace(guest.ask("read", TRACE))
        if time.monotonic() > until:
            raise HardwareLost(f"the guest still maps and unmaps after {PATIENCE:.0f} s")
        before = now
        time.sleep(QUIET)
