"""In which order things happened in the guest.

A recording keeps three lists, each in order: writes, events and snapshots.  How they interleave is not said.  Where the names of
writes and snapshots are those of a guest script that is known (``SCRIPTS``), their order is.  For the rest, each entry tells
something of the state that it was made in: the drivers and members of a group, its type before a write, all groups of a
snapshot.  The order sought is the one in which the fewest of these contradict what came before.  A shortest path over (events,
writes, snapshots) done so far finds it; where several are as good, the difference cannot be seen in the recording either.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from iommukit.kernel.kernel import KEYWORDS
from iommukit_oracle.events import Bind, Driver, Event, Grouped, Line, OpenWrite, Owned, Presence, Race, Test, parse_events
from iommukit_oracle.qemu_arguments import parse_qemu_arguments, place_devices
from iommukit_oracle.recording import GroupEntry, Recording, WriteEntry


@dataclass(frozen=True, slots=True)
class Writes:
    """Writes that followed each other: same experiment, same group, same drivers."""

    entries: tuple[WriteEntry, ...]

    @property
    def first(self) -> WriteEntry:
        """The first one."""
        return self.entries[0]

    @property
    def matrix(self) -> bool:
        """A matrix of types: unrecorded writes lie between and after the recorded ones."""
        return "/seq" in self.first.tag or "/from-" in self.first.tag


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All groups at a moment."""

    name: str
    groups: tuple[GroupEntry, ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """A functional test of a device, and the devices that were removed and rescanned for it."""

    test: Test
    device: str | None
    rescanned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """Kernel lines that were printed when the snapshot of this number was taken."""

    snapshot: int


Done = Driver | Bind | Presence | Owned | Tried | Race | OpenWrite | Mark
"""An event that a step follows from, or that tells when something else happened."""
Item = Writes | Snapshot | Done


# ---- the three lists -------------------------------------------------------------------------------------------------


def stem(tag: str) -> str:
    """A write's tag without the part of its matrix."""
    return re.sub(r"/(seq|from-.*)$", "", tag)


def write_blocks(recording: Recording) -> list[Writes]:
    """The writes, those of one experiment together."""
    blocks: list[list[WriteEntry]] = []
    for write in recording.writes:
        last = blocks[-1][-1] if blocks else None
        if last is None or _experiment(last) != _experiment(write):
            blocks.append([])
        blocks[-1].append(write)
    return [Writes(tuple(block)) for block in blocks]


def _experiment(write: WriteEntry) -> tuple[str, str, str, bool]:
    return stem(write.tag), write.devices, write.drivers_bound, "/" in write.tag


def done_events(recording: Recording) -> list[Done]:
    """The events that steps follow from, kernel lines put where they belong."""
    found: list[Done] = []
    events = parse_events(recording)
    names = list(_later_snapshots(recording))
    for event in _binds_in_order(events):
        if isinstance(event, Test):
            found.append(Tried(event, _tested(recording, event)))
        elif isinstance(event, Grouped):
            before = found[-1] if found else None
            if isinstance(before, Tried) and before.test.tag == event.tag and not event.joined:
                found[-1] = replace(before, rescanned=(*before.rescanned, event.device))
            elif event.tag in names:
                found.append(Mark(names.index(event.tag)))
        elif isinstance(event, Line):
            if event.tag in names:
                found.append(Mark(names.index(event.tag)))
        else:
            found.append(event)
    return found


def _later_snapshots(recording: Recording) -> dict[str, tuple[GroupEntry, ...]]:
    """The snapshots taken after boot."""
    return {name: groups for name, groups in recording.snapshots.items() if name != "boot"}


def _binds_in_order(events: list[Event]) -> Iterator[Event]:
    """Put the binds of loaded drivers, which only the kernel's lines tell of, before the binds through sysfs that they preceded.

    Only devices that get their group when a driver is bound print such a line.
    """
    joins = [event for event in events if isinstance(event, Grouped) and event.joined and event.driver != "pci"]
    told: set[int] = set()
    for event in events:
        if isinstance(event, Bind) and event.result == "ok":
            own = next((n for n, join in enumerate(joins) if n not in told and join.device == event.device), None)
            for earlier in range(own or 0):
                if earlier not in told:
                    told.add(earlier)
                    yield Driver(joins[earlier].device, joins[earlier].driver)
            if own is not None:
                told.add(own)
        elif isinstance(event, Grouped) and event in joins:
            number = joins.index(event)
            if number not in told:
                told.add(number)
                yield Driver(event.device, event.driver)
            continue
        yield event


def _tested(recording: Recording, test: Test) -> str | None:
    """The device of a functional test: of the QEMU devices of that model the one with something behind it, else the first."""
    slots = place_devices(parse_qemu_arguments(recording))
    candidates = [slot for _, slot in sorted(slots.items()) if slot.device.model == test.driver]
    backed = [slot for slot in candidates if "drive" in slot.device.properties]
    return next((slot.address for slot in (*backed, *candidates)), None)


# ---- what is known at a moment ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What the recording has told so far, by device.

    ``members`` has an entry for each device that has a group, empty where its members are not known; ``types`` and ``drivers`` have
    one where type and driver are known.  ``gone`` are devices that were there and have left, ``wrote`` the last text written
    to a device's group.
    """

    drivers: Mapping[str, str]
    types: Mapping[str, str]
    members: Mapping[str, frozenset[str]]
    owned: int | None = None
    gone: frozenset[str] = frozenset()
    wrote: Mapping[str, str] = field(default_factory=dict)


def _at_boot(recording: Recording) -> Known:
    drivers = {entry.bdf: entry.driver for entry in recording.functions}
    types = {device: group.type for group in recording.groups for device in group.devices}
    return Known(drivers, types, _members(recording.groups))


def _members(groups: tuple[GroupEntry, ...]) -> dict[str, frozenset[str]]:
    return {device: frozenset(group.devices) for group in groups for device in group.devices}


Step = tuple[int, Known]
"""What speaks against an item at a moment, as a number, and what is known after it."""

_OWNED = re.compile(r"(?<!not-)owned$")


def _consume_writes(known: Known, block: Writes) -> Step:
    write = block.first
    cost = 0
    for device in write.members:
        driver = write.bound.get(device, "")
        before = known.drivers.get(device, driver)
        cost += 0 if before == driver else 3 if before else 2
        before_members = known.members.get(device)
        cost += 2 if before_members is None else 5 if before_members and before_members != frozenset(write.members) else 0
        cost += 0 if known.types.get(device, write.type_before) == write.type_before else 3
    if (known.owned is not None and known.owned == write.group) != bool(_OWNED.search(write.tag)):
        cost += 4
    after = "" if block.matrix else block.entries[-1].type_after
    types = {device: kind for device, kind in known.types.items() if device not in write.members}
    if after:
        types.update(dict.fromkeys(write.members, after))
    drivers = {**known.drivers, **{device: write.bound.get(device, "") for device in write.members}}
    members = {**known.members, **dict.fromkeys(write.members, frozenset(write.members))}
    wrote = {**known.wrote, **dict.fromkeys(write.members, block.entries[-1].wrote)}
    return cost, replace(known, drivers=drivers, types=types, members=members, wrote=wrote)


def _consume_snapshot(known: Known, snapshot: Snapshot) -> Step:
    cost = 0
    members = _members(snapshot.groups)
    cost += 2 * len(members.keys() ^ known.members.keys())
    types: dict[str, str] = {}
    drivers = dict(known.drivers)
    for group in snapshot.groups:
        same = all(known.members.get(device) == members[device] for device in group.devices)
        for device in group.devices:
            cost += 4 if same and known.types.get(device, group.type) != group.type else 0
            types[device] = group.type
            driver = group.bound.get(device, "")
            cost += known.drivers.get(device, driver) != driver
            drivers[device] = driver
    gone = known.gone.union(known.members).difference(members)
    return cost, replace(known, drivers=drivers, types=types, members=members, gone=gone)


def _consume_event(known: Known, event: Done) -> Step:
    match event:
        case Driver(device, driver):
            before = known.drivers.get(device, driver)
            cost = 0 if before == driver or not driver else 2 if before else 1
            return cost + _absent(known, device, driver), replace(known, drivers={**known.drivers, device: driver})
        case Bind(device, driver, result, after):
            before = known.drivers.get(device, "")
            cost = (2 if before else 0) if result == "ok" else (0 if before == (after or "") else 2)
            driver = driver if result == "ok" else after or ""
            return cost + _absent(known, device, "bound"), replace(known, drivers={**known.drivers, device: driver})
        case Presence(device, present):
            return _consume_presence(known, device, present)
        case Owned(group):
            return 0, replace(known, owned=group)
        case Tried(test, device, rescanned):
            return (0, known) if device is None else _consume_test(known, test, device, bool(rescanned))
    return 0, known


def _absent(known: Known, device: str, driver: str) -> int:
    """A driver needs its device."""
    return 3 if driver and device in known.gone else 0


def _consume_presence(known: Known, device: str, present: bool) -> Step:
    cost = 0 if (device in known.members) is not present else 3
    members = {name: group for name, group in known.members.items() if name != device}
    types = {name: kind for name, kind in known.types.items() if name != device}
    if present:
        members[device] = frozenset()
        return cost, replace(known, members=members, types=types, gone=known.gone - {device})
    return cost, replace(known, members=members, types=types, drivers={**known.drivers, device: ""}, gone=known.gone | {device})


def _consume_test(known: Known, test: Test, device: str, rescanned: bool) -> Step:
    cost = 0 if rescanned or known.types.get(device, test.type) == test.type else 5
    cost += known.drivers.get(device, test.driver) != test.driver
    cost += 0 if rescanned else _absent(known, device, test.driver)
    wrote = known.wrote.get(device)
    if test.tag == "boot" and wrote is not None:
        cost += 3
    if test.tag.removeprefix("after-") in KEYWORDS and wrote != test.tag.removeprefix("after-"):
        cost += 3
    drivers = {**known.drivers, device: "" if test.gave_up else test.driver}
    return cost, replace(known, drivers=drivers, types={**known.types, device: test.type})


# ---- what the guest scripts say --------------------------------------------------------------------------------------

SCRIPTS = (
    "single-nodrv syntax bridge-multi-nodrv multifn-multi-nodrv rootport-pcieport [after-nodrv] [drivers-loaded] bound-e1000e"
    " bound-nvme nvme-unbound-again rebind/1 [nvme-rebound-identity] rebind/bound rebind/unbound [nvme-rebound-DMA]"
    " rebind/bound-DMA-to-FQ rebind/bound-FQ-to-DMA rebind/bound-auto bound-pci-stub bound-vfio-pci multifn-one-of-two-vfio"
    " multifn-one-vfio [end]",
    "[drivers] bound-pci-stub bound-e1000e bound-nvme bridge-multi-bound single-nodrv nvme-unbound bridge-multi-unbound"
    " multifn-one-bound multifn-multi-nodrv rebind/0 rebind/bound-DMA-to-FQ rebind/bound-FQ-to-DMA [end]",
    "[drivers] bound-virtio single-nodrv rebind/0 rebind/bound-DMA-to-FQ rebind/bound-FQ-to-DMA s2 [slot2-off] [slot2-on] [end]",
    "[h0] [h1-added] hp-identity [h2-identity] [h3-removed] [h4-other-device-added] edu-identity [h5-edu-removed] [h6-rescan]"
    " [h7-one-member-left] half-group [h8-member-back] [h9-two-removed] [h10-rescan]",
    "untrusted trusted-sibling untrusted-bound [port-removed] [port-back]",
    "[drivers] untrusted-bound untrusted-unbound untrusted-port-unbound [end]",
    "[vfio-bound] vfio-bound-not-owned [owned] vfio-owned [owned-removed] [owned-back] [end]",
    "[start] [owned] [joined] joined-owned joined-released [end]",
    "[before] before-join [before2] [joined] after-join-bound after-join [end]",
)
"""The order of writes and snapshots (in brackets) in the guest scripts that have both; a recording may lack some of them."""


def snapshot_spans(writes: list[Writes], names: list[str]) -> list[tuple[int, int]]:
    """For each snapshot, how many blocks of writes come before it: at least, at most.

    A snapshot called ``end`` comes last in any script.
    """
    spans = [(len(writes), len(writes)) if name == "end" else (0, len(writes)) for name in names]
    stems = [stem(block.first.tag) for block in writes]
    wanted = {*stems, *(f"[{name}]" for name in names)}
    for script in SCRIPTS:
        position = {word: at for at, word in enumerate(script.split())}
        if not wanted <= position.keys():
            continue
        places = [position[name] for name in stems]
        if places == sorted(places):
            before = [sum(place < position[f"[{name}]"] for place in places) for name in names]
            if before == sorted(before):
                return [(count, count) for count in before]
    return spans


# ---- the order -------------------------------------------------------------------------------------------------------

Place = tuple[int, int, int]
"""How many events, writes and snapshots are done."""

CONTRADICTION = 1_000_000
"""Weight of one contradiction against the likely places of writes and snapshots."""


def timeline(recording: Recording) -> list[Item]:
    """All writes, events and snapshots in the likeliest order."""
    events, writes = done_events(recording), write_blocks(recording)
    snapshots = [Snapshot(name, groups) for name, groups in _later_snapshots(recording).items()]
    spans = snapshot_spans(writes, [snapshot.name for snapshot in snapshots])
    goal = len(events), len(writes), len(snapshots)
    start = (0, 0, 0)
    came: dict[Place, tuple[Place, Item]] = {}
    best: dict[Place, int] = {start: 0}
    states: dict[Place, Known] = {start: _at_boot(recording)}
    queue: list[tuple[int, Place]] = [(0, start)]
    settled: set[Place] = set()
    while queue:
        cost, place = heapq.heappop(queue)
        if place in settled:
            continue
        settled.add(place)
        if place == goal:
            break
        for item, following, (against, known), late in _next(place, states[place], events, writes, snapshots, spans):
            total = cost + against * CONTRADICTION + late
            if following not in settled and total < best.get(following, total + 1):
                best[following], states[following], came[following] = total, known, (place, item)
                heapq.heappush(queue, (total, following))
    order: list[Item] = []
    place = goal
    while place != start:
        place, item = came[place]
        order.append(item)
    return order[::-1]


def _next(
    place: Place,
    known: Known,
    events: list[Done],
    writes: list[Writes],
    snapshots: list[Snapshot],
    spans: list[tuple[int, int]],
) -> Iterator[tuple[Item, Place, Step, int]]:
    """What can come next, with its step and how far it is from where it is likely: writes early, snapshots after events."""
    done, written, seen = place
    if done < len(events):
        event = events[done]
        if isinstance(event, Mark):
            step = (0 if event.snapshot in (seen, seen - 1) else 3), known
        else:
            step = _consume_event(known, event)
        yield event, (done + 1, written, seen), step, 0
    if written < len(writes) and all(written < most for _, most in spans[seen:]):
        yield writes[written], (done, written + 1, seen), _consume_writes(known, writes[written]), done
    if seen < len(snapshots) and written >= spans[seen][0]:
        late = len(events) - done + written
        yield snapshots[seen], (done, written, seen + 1), _consume_snapshot(known, snapshots[seen]), late
