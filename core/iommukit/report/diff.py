"""What changing the kernel changes, sorted by what it would break."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import STABLE
from iommukit.report.answer import describe, named_devices, subject
from iommukit.report.observe import DeviceState, Observer, Stage
from iommukit.report.page import counted, listed
from iommukit.report.runs import run_case
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import UNDECIDED, Outcome, Result, StepResult
from iommukit.vendors import Vendor, VendorRegistry

if TYPE_CHECKING:
    from iommukit.report.shapes import ChangeJson, DiffJson, Severity


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of change: a stable name, its severity, a heading, and what it means."""

    name: str
    severity: Severity
    title: str
    meaning: str


KINDS: tuple[Kind, ...] = (
    Kind("crash", "breaks", "stopped", "the plugin or the model stopped with an exception"),
    Kind("dma-dies", "breaks", "DMA dies", "a driver's DMA worked and now fails"),
    Kind("group-stuck", "breaks", "group stuck", "a group that nobody owns is left outside its default domain"),
    Kind("less-protection", "weakens", "less protection", "a device is translated less strictly, or not at all"),
    Kind("write-refused", "refuses", "write now refused", "a write to type succeeded and is refused"),
    Kind("step-refused", "refuses", "step now refused", "a bind, claim, add, … succeeded and is refused"),
    Kind("other-errno", "differs", "other errno", "refused before and after, for another reason"),
    Kind("write-accepted", "differs", "write now accepted", "a write to type was refused and succeeds"),
    Kind("step-accepted", "differs", "step now accepted", "a bind, claim, add, … was refused and succeeds"),
    Kind("more-protection", "differs", "stricter", "a device is translated more strictly, and pays for it"),
    Kind("other-groups", "differs", "other groups", "devices share a group, or no longer do"),
    Kind("other-type", "differs", "other type", "the type reads differently; protection cannot be compared"),
    Kind("other-value", "differs", "other value", "a file reads differently"),
    Kind("applies", "differs", "applies to one only", "the scenario cannot be played under one of the kernels"),
    Kind("dma-lives", "improves", "DMA works", "a driver's DMA failed and now works"),
    Kind("group-free", "improves", "group no longer stuck", "a group is no longer left outside its default domain"),
    Kind("attachments", "cosmetic", "other attachments", "same results by more or fewer attachments"),
    Kind("log", "cosmetic", "only log lines", "nothing but the kernel log differs"),
)
BY_NAME = {kind.name: kind for kind in KINDS}
ORDER = {kind.name: position for position, kind in enumerate(KINDS)}

PROTECTION = {"none": 0, "identity": 0, "DMA-FQ": 1, "DMA": 2, "blocked": 3}
"""How much of a device's DMA is stopped; types that are missing (``unknown``) do not compare."""
NO_IOMMU = "no IOMMU"
UNTRUSTED = " (untrusted)"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference of one scenario on one vendor: ``where`` it shows, and how it was and is, in few words."""

    kind: str
    where: str
    before: str
    after: str
    devices: tuple[str, ...] = ()

    @property
    def look(self) -> tuple[str, str, str, str]:
        """What makes two changes the same to a reader."""
        return self.kind, self.where, self.before, self.after


@dataclass(slots=True)
class Entry:
    """The same change in several scenarios, each with its vendors."""

    change: Change
    scenarios: dict[str, tuple[Scenario, list[str]]] = field(default_factory=dict)

    def by_vendors(self) -> dict[tuple[str, ...], list[Scenario]]:
        """The scenarios by the vendors that they differ on."""
        found: dict[tuple[str, ...], list[Scenario]] = {}
        for scenario, vendors in self.scenarios.values():
            found.setdefault(tuple(vendors), []).append(scenario)
        return found


def cases(entries: Iterable[Entry]) -> int:
    """How many cases, a scenario on a vendor, show at least one of the entries."""
    return len({(name, vendor) for entry in entries for name, (_, vendors) in entry.scenarios.items() for vendor in vendors})


@dataclass(slots=True)
class Diff:
    """All changes from one kernel to another."""

    before: str
    after: str
    vendors: tuple[str, ...]
    total: int
    """Scenarios compared."""
    hint: str = ""
    """What the reader should know of the two kernels."""
    entries: list[Entry] = field(default_factory=list)
    applied: int = 0
    """Cases (scenario and vendor) that could be played under at least one of the kernels."""

    @property
    def changed(self) -> list[str]:
        """The ids of the scenarios with a change."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.scenarios))

    def kinds(self) -> dict[Kind, list[Entry]]:
        """Entries by kind, worst kind first; those about untrusted devices, then those with the most cases first."""
        found: dict[Kind, list[Entry]] = {}

        def urgency(entry: Entry) -> tuple[object, ...]:
            return ORDER[entry.change.kind], UNTRUSTED not in entry.change.after, -cases([entry]), entry.change.look

        ordered = sorted(self.entries, key=urgency)
        for entry in ordered:
            found.setdefault(BY_NAME[entry.change.kind], []).append(entry)
        return found

    def to_json(self) -> DiffJson:
        """The diff as ``iommukit diff --json`` writes it."""
        return {
            "from": self.before,
            "to": self.after,
            "vendors": list(self.vendors),
            "scenarios": self.total,
            "changed": len(self.changed),
            "counts": {kind.name: cases(entries) for kind, entries in self.kinds().items()},
            "changes": [_entry_json(kind, entry) for kind, entries in self.kinds().items() for entry in entries],
        }


def _entry_json(kind: Kind, entry: Entry) -> ChangeJson:
    return {
        "kind": kind.name,
        "severity": kind.severity,
        "where": entry.change.where,
        "before": entry.change.before,
        "after": entry.change.after,
        "cases": [
            {"scenario": scenario.scenario, "rule": scenario.rule, "vendors": vendors}
            for scenario, vendors in entry.scenarios.values()
        ],
    }


def compare_kernels(
    scenarios: Sequence[Scenario],
    before: Kernel,
    after: Kernel,
    vendors: Sequence[Vendor],
    registry: VendorRegistry,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Diff:
    """Play every scenario under both kernels and compare.  Raises ``InputError`` for a wrong scenario."""
    diff = Diff(before.name, after.name, tuple(vendor.name for vendor in vendors), len(scenarios), base_hint(before, after))
    entries: dict[tuple[str, str, str, str], Entry] = {}
    for scenario in scenarios:
        for vendor in vendors:
            sides = []
            for kernel in (before, after):
                observer = Observer()
                result = run_case(scenario, kernel, vendor, registry, watchers=(observer,))
                sides.append((result, observer.stages))
                tick()
            if any(result.outcome is not Outcome.NOT_APPLICABLE for result, _ in sides):
                diff.applied += 1
            for change in changes(scenario, *sides):
                entry = entries.setdefault(change.look, Entry(change))
                entry.scenarios.setdefault(scenario.scenario, (scenario, []))[1].append(vendor.name)
    diff.entries = list(entries.values())
    return diff


def base_hint(before: Kernel, after: Kernel) -> str:
    """A better kernel to compare with, where the second was built on a stable release between the two."""
    if isinstance(after, type(before)):
        for base in STABLE.values():
            if isinstance(after, type(base)) and isinstance(base, type(before)) and base.name not in (before.name, after.name):
                return f"{after.name} is built on {base.name}: compare with that to see its own changes alone"
    return ""


Side = tuple[Result, list[Stage]]


def changes(scenario: Scenario, before: Side, after: Side) -> list[Change]:
    """The changes of one scenario on one vendor, each once, where it first shows."""
    (old, old_stages), (new, new_stages) = before, after
    if old.boot is None or new.boot is None:
        if _unplayed(old) == _unplayed(new):
            return []
        kind = "crash" if new.outcome is Outcome.FAIL else "applies"
        return [Change(kind, "boot", _unplayed(old), _unplayed(new))]
    found: dict[tuple[str, str, str, str], Change] = {}
    for change in _walk(scenario, old, new, old_stages, new_stages):
        known = found.get(change.look)
        devices = (*known.devices, *change.devices) if known else change.devices
        found[change.look] = Change(*change.look, devices)
    if not found:
        found.update((change.look, change) for change in _log_changes(old, new))
    return list(found.values())


def _unplayed(result: Result) -> str:
    if result.boot is not None:
        return "plays"
    return (result.reason or listed(result.findings)).removeprefix(f"{result.vendor} ")


def _walk(scenario: Scenario, old: Result, new: Result, old_stages: list[Stage], new_stages: list[Stage]) -> Iterator[Change]:
    """Stage by stage.

    What follows from a step that ended differently is not reported again: the type and the group of its devices count only once
    they have been the same in between.  Dead DMA and stuck groups are reported whatever they follow from.
    """
    followed: set[str] = set()
    told: set[tuple[str, str]] = set()
    names = named_devices(scenario)
    for number, (was, now) in enumerate(zip(old_stages, new_stages, strict=True)):
        where = "boot"
        if number:
            step = scenario.steps[number - 1]
            where = describe(step)
            a, b = old.steps[number - 1], new.steps[number - 1]
            touched = {mate for name in step.device_names for stage in (was, now) for mate in _mates(stage, name)}
            change = _step_change(where, a, b, _state_of(was, touched), _state_of(now, touched))
            if change is not None and (subject(step), change.kind) not in told:
                yield change
                if change.kind in ("dma-dies", "dma-lives"):
                    told |= {(name, change.kind) for name in touched}
            if a.result != b.result:
                followed |= touched
        for name in names:
            yield from _device_changes(name, where, was.get(name), now.get(name), followed, told)


def _mates(stage: Stage, name: str) -> tuple[str, ...]:
    state = stage.get(name)
    return (name, *state.together) if state else (name,)


def _state_of(stage: Stage, names: set[str]) -> DeviceState | None:
    """The state to speak of for a group: an untrusted member's, else any."""
    states = [stage[name] for name in sorted(names) if name in stage]
    return next((state for state in states if state.untrusted), states[0] if states else None)


def _step_change(where: str, a: StepResult, b: StepResult, was: DeviceState | None, now: DeviceState | None) -> Change | None:
    if a.result == b.result:
        if a.value != b.value:
            return Change("other-value", where, *_value_difference(a.value or (), b.value or ()))
        if a.attaches != b.attaches:
            return Change("attachments", where, counted(a.attaches or 0, "attachment"), counted(b.attaches or 0, "attachment"))
        return None
    if a.op == "dma":
        if UNDECIDED not in (a.result, b.result) and "ok" not in (a.result, b.result):
            return Change("other-errno", where, _outcome(a), _outcome(b))
        kinds = {(True, False): "dma-dies", (False, True): "dma-lives"}
        works = tuple(done.result in ("ok", UNDECIDED) for done in (a, b))
        kind = kinds.get((works[0], works[1]))
        return Change(kind, where, _outcome(a), _outcome(b)) if kind else None
    family = "write" if a.op == "write" else "step"
    if a.result == "ok":
        return Change(f"{family}-refused", where, "ok", _outcome(b))
    if b.result == "ok":
        after = f"ok, {_shown(now)}" if family == "write" and now else "ok"
        kind = f"{family}-accepted"
        if was and now and now.untrusted and _weaker(was.type, now.type):
            kind = "less-protection"
            after += UNTRUSTED
        return Change(kind, where, _outcome(a), after)
    return Change("other-errno", where, a.result, b.result)


def _outcome(done: StepResult) -> str:
    if done.op == "dma" and done.result in ("ok", UNDECIDED):
        return "works"
    return f"{done.result} ({done.reason})" if done.reason and done.op == "dma" else done.result


def _value_difference(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, str]:
    """The lines that only one has."""
    gone, fresh = [line for line in a if line not in b], [line for line in b if line not in a]
    return "; ".join(gone) or "no such line", "; ".join(fresh) or "no such line"


def _device_changes(
    name: str, where: str, was: DeviceState | None, now: DeviceState | None, followed: set[str], told: set[tuple[str, str]]
) -> Iterator[Change]:
    if was is None or now is None:
        return
    for kind, change in (
        ("dma-dies", _died(where, was, now)),
        ("dma-lives", _died(where, now, was)),
        ("group-stuck", now.stuck and not was.stuck),
        ("group-free", was.stuck and not now.stuck),
    ):
        if not change:
            told.discard((name, kind))
        elif (name, kind) not in told:
            told.add((name, kind))
            if isinstance(change, Change):
                flipped = kind == "dma-lives"
                pair = (change.after, change.before) if flipped else (change.before, change.after)
                yield Change(kind, where, *pair, devices=(name,))
            else:
                yield Change(kind, where, _place(was), _place(now), devices=(name,))
            followed.add(name)
    same = was.type == now.type and was.together == now.together
    if same:
        followed.discard(name)
    elif name not in followed:
        followed.add(name)
        yield _difference(name, where, was, now)


def _died(where: str, was: DeviceState, now: DeviceState) -> Change | None:
    """DMA that worked in one state and not in the other, both unowned."""
    if was.dead or not now.dead or was.owned or now.owned:
        return None
    return Change("dma-dies", where, f"works ({_shown(was)})", f"dead ({_shown(now)}), {now.dead}")


def _difference(name: str, where: str, was: DeviceState, now: DeviceState) -> Change:
    if was.type == now.type:
        return Change("other-groups", where, _company(name, was), _company(name, now), (name,))
    note = UNTRUSTED if now.untrusted else ""
    if _weaker(was.type, now.type):
        kind = "less-protection"
    elif _weaker(now.type, was.type):
        kind = "more-protection"
    else:
        kind = "other-type"
    return Change(kind, where, _shown(was), _shown(now) + note, (name,))


def _weaker(before: str, after: str) -> bool:
    return before in PROTECTION and after in PROTECTION and PROTECTION[after] < PROTECTION[before]


def _shown(state: DeviceState) -> str:
    if state.own_code:
        return "own DMA code"
    return NO_IOMMU if state.type == "none" else state.type


def _place(state: DeviceState) -> str:
    return f"{state.type}, stuck in another domain" if state.stuck else f"{state.type}, in its domain"


def _company(name: str, state: DeviceState) -> str:
    others = [other for other in state.together if other != name]
    return f"{name} with {listed(others)}" if others else f"{name} alone" if state.together else f"{name} in no group"


def _log_changes(old: Result, new: Result) -> list[Change]:
    """The first lines that differ, of boot or of a step; everything else was the same."""
    assert old.boot is not None
    assert new.boot is not None
    found = []
    stages = [("boot", old.boot.log, new.boot.log)]
    stages += [(done.op, done.log, other.log) for done, other in zip(old.steps, new.steps, strict=True)]
    for where, a, b in stages:
        before, after = ([line.rstrip() for line in lines] for lines in (a, b))
        if before == after:
            continue
        gone, fresh = [], []
        for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if tag != "equal":
                gone += before[i:j]
                fresh += after[k:m]
        found.append(Change("log", where, _first(gone), _first(fresh)))
    return found


def _first(lines: list[str]) -> str:
    if not lines:
        return "no line"
    return lines[0] if len(lines) == 1 else f"{lines[0]} (and {len(lines) - 1} more)"
