"""The model held against what real kernels did with scenarios.

Each run is compared in two ways.  *As run*: the machine that was really booted, with its command line, is booted on the model, and
the same steps are played.  *As written*: the scenario is played as its file says; what is QEMU's own, its chipset and its
addresses, is then not compared.

A kernel's profile is, as run, that of the release that was booted: Debian's 6.1 is of the stable series
(``qemu_machine.profile_of``).  As written it is the one that the scenario's file names, mainline 6.1; what the stable series does
otherwise is a named difference.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import partial

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import execute
from iommukit.scenario.judge import judge
from iommukit.scenario.model import Scenario, Step
from iommukit.scenario.result import UNDECIDED, Outcome, Result, StepResult
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel.cases import Case
from iommukit_oracle.kernel.differences import STABLE_BACKPORT, Seen, reason_of
from iommukit_oracle.kernel.record import BootRecord, RunRecord, StateRecord, StepRecord
from iommukit_oracle.kernel.store import Store
from iommukit_oracle.logs import about_dma, compare_lines, modelled
from iommukit_oracle.observations import Observation, Replay, Verdict
from iommukit_oracle.qemu_machine import ACS, profile_of
from iommukit_oracle.replay import Session

BURST = 10
"""Lines of one kind that the kernel prints in five seconds before it leaves some out (``printk``'s rate limit)."""


EXPECTATION = "expectation"
"""The kind of the observation whether all holds that a scenario expects."""


class Standing(enum.Enum):
    """How the model stands with one scenario."""

    AGREES = "agrees"
    DIFFERS = "differs"
    KNOWN = "known difference"
    """It differs, for a reason with a name."""
    UNDECIDED = "undecided"
    """A real kernel could not play it, or not all of it."""
    STALE = "stale"
    """It has been changed since."""
    MISSING = "not recorded"
    """No real kernel has played it."""


@dataclass(slots=True)
class Agreement:
    """One scenario under one kernel with one vendor; ``reason`` says why nothing was compared, where nothing was.

    ``boot`` are the observations of the boot that it shares with other scenarios.
    """

    scenario: str
    kernel: str
    vendor: str
    standing: Standing
    reason: str = ""
    boot: Sequence[Observation] = ()
    observations: list[Observation] = field(default_factory=list)


@dataclass(slots=True)
class Check:
    """What came of holding the model against real kernels; ``boots`` are the observations of each boot."""

    agreements: list[Agreement] = field(default_factory=list)
    boots: dict[tuple[str, str], list[list[Observation]]] = field(default_factory=dict)
    """By kernel and vendor."""

    def observations(self) -> Iterator[tuple[str, str, Observation]]:
        """Every observation with its kernel and vendor, each once."""
        for (kernel, vendor), boots in self.boots.items():
            for boot in boots:
                yield from ((kernel, vendor, seen) for seen in boot)
        for each in self.agreements:
            yield from ((each.kernel, each.vendor, seen) for seen in each.observations)


def check(cases: Iterable[Case], store: Store, registry: VendorRegistry, tick: Callable[[], None] = lambda: None) -> Check:
    """Hold the model against the recorded runs of all cases that apply.  ``tick`` is called after each.

    Raises ``InputError`` for a boot that cannot be understood.
    """
    found = Check()
    seen_boots: dict[int, list[Observation]] = {}
    for case in cases:
        if execute(case.scenario, case.kernel, case.vendor, registry).outcome is not Outcome.NOT_APPLICABLE:
            found.agreements.append(_agreement(case, store, registry, found, seen_boots))
        tick()
    return found


def _agreement(
    case: Case, store: Store, registry: VendorRegistry, found: Check, seen_boots: dict[int, list[Observation]]
) -> Agreement:
    of_case = partial(Agreement, case.scenario.scenario, case.kernel.name, case.vendor.name)
    kept = store.find(case.scenario.scenario, case.kernel.name, case.vendor.name)
    if kept is None:
        return of_case(Standing.MISSING, "no real kernel has played it")
    boot, run = kept
    if run.digest != case.digest:
        return of_case(Standing.STALE, "its machine, boot or steps have been changed since a real kernel played it")
    if run.undecided or run.boot is None:
        return of_case(Standing.UNDECIDED, run.undecided or "nothing is known of its boot")
    try:
        at_boot, observations = as_run(boot, run, case.scenario, registry)
    except (InputError, NotApplicable) as error:
        return of_case(Standing.UNDECIDED, f"what was booted cannot be told from what it printed: {error}")
    if id(boot) not in seen_boots:
        seen_boots[id(boot)] = at_boot
        found.boots.setdefault((boot.kernel, boot.vendor), []).append(at_boot)
    observations += _of_such_a_machine(observations, as_written(boot, run, case, registry))
    shared = seen_boots[id(boot)]
    verdicts = {seen.verdict for seen in (*shared, *observations)}
    standing = next((standing for verdict, standing in _STANDINGS if verdict in verdicts), Standing.AGREES)
    unseen = [seen.reason for seen in observations if seen.verdict is Verdict.UNDECIDED and seen.kind in ("result", "group")]
    if standing is Standing.AGREES and unseen:
        return of_case(Standing.UNDECIDED, unseen[0], shared, observations)
    return of_case(standing, "", shared, observations)


_STANDINGS = ((Verdict.DIFFERS, Standing.DIFFERS), (Verdict.KNOWN, Standing.KNOWN))
"""The first verdict that occurs decides."""


NOT_AS_WRITTEN = "QEMU's machine is not as written: its devices share groups otherwise, and the model says so of that machine too"


def _of_such_a_machine(run: Sequence[Observation], written: list[Observation]) -> list[Observation]:
    """What is seen as written, where the machine that was booted is such a one at all: where its groups are others, that is all."""
    made, wanted = (next(seen for seen in some if seen.kind == "group") for some in (run, written))
    if made.verdict is Verdict.AGREES and wanted.verdict is Verdict.DIFFERS:
        return [changed(wanted, verdict=Verdict.UNDECIDED, reason=NOT_AS_WRITTEN)]
    return written


class Way(enum.Enum):
    """The two ways in which the model is held against a real kernel."""

    AS_RUN = "as run"
    """The machine that was really booted, with its command line."""
    AS_WRITTEN = "as written"
    """The scenario as its file says."""


class _Comparison:
    """Collects observations of one run, compared in one way."""

    def __init__(self, boot: BootRecord, run: RunRecord, way: Way) -> None:
        self.boot, self.run, self.way = boot, run, way
        self.observations: list[Observation] = []

    def compare(self, kind: str, where: str, expected: str, got: str, *, undecided: str = "") -> None:
        """Note one observation; ``undecided`` says why it cannot be decided."""
        verdict = Verdict.UNDECIDED if undecided else Verdict.AGREES if expected == got else Verdict.DIFFERS
        place = f"{self.run.scenario} ({self.boot.kernel}, {self.boot.vendor}), {self.way.value}, {where}"
        seen = Observation(kind, place, expected, got, verdict, undecided)
        if verdict is Verdict.DIFFERS:
            reason = reason_of(Seen(self.boot, self.run, seen))
            if reason is not None:
                seen = changed(seen, verdict=Verdict.KNOWN, reason=reason)
        self.observations.append(seen)

    def default(self, where: str, expected: str, got: str) -> None:
        """The system's default policy, where the kernel has shown it."""
        unseen = "" if expected else "neither lines nor bystanders tell the default"
        self.compare("default", where, expected or "some default", got, undecided=unseen)

    def types(self, where: str, expected: Mapping[str, str], got: Mapping[str, str]) -> None:
        """The type of each device's group; a device that is not there has none."""
        for name in self.run.names:
            self.compare("type", f"{where}, {name}", expected.get(name, "absent"), got.get(name, "absent"))

    def result(self, where: str, record: StepRecord, done: StepResult) -> None:
        """What a step has answered."""
        undecided = ""
        if UNDECIDED in (record.result, done.result) and record.result != done.result:
            undecided = (record.reason if record.result == UNDECIDED else done.reason) or "nobody can say"
        self.compare("result", where, record.result, done.result, undecided=undecided)
        if record.value is not None and done.value is not None:
            self.compare("value", where, "; ".join(record.value), "; ".join(done.value))


def _where(number: int, record: StepRecord) -> str:
    return f"step {number} ({record.op})" if number else "boot"


def _partition(groups: Iterable[Iterable[str]]) -> str:
    """Who shares a group, in words."""
    return "; ".join(sorted(", ".join(sorted(group)) for group in groups)) or "no groups"


# ---- as run ----------------------------------------------------------------------------------------------------------


def as_run(
    boot: BootRecord, run: RunRecord, scenario: Scenario, registry: VendorRegistry
) -> tuple[list[Observation], list[Observation]]:
    """The observations of the boot, and those of one run in it: the machine that was booted, on the model.

    Raises ``InputError`` for a boot that cannot be understood.
    """
    recording = boot.recording()
    steps = tuple(_addressed(step, run.names) for step in scenario.steps[: run.known_steps])
    outcome = Replay(recording.id, boot.kernel, boot.vendor)
    session = Session(recording, registry, outcome, later=boot.later, ahead=steps)
    try:
        session.boot()
        for done in boot.set_up:
            if done.op == "acs":
                _switch_on(session, done.device)
                continue
            arguments = {"device": done.device, **({"driver": done.driver} if done.op == "bind" else {})}
            session.compare(done.op, f"set-up, {done.driver} of {done.device}", "ok", session.perform(done.op, **arguments).result)
        comparison = _Comparison(boot, run, Way.AS_RUN)
        _compare_as_run(comparison, session, steps)
    finally:
        session.run.close()
    return outcome.observations, comparison.observations


def _switch_on(session: Session, address: str) -> None:
    """Access control that the kernel had left off was switched on at a port."""
    device = session.run.system.devices[address]
    device.facts = changed(device.facts, acs=frozenset(ACS))


def _addressed(step: Step, names: Mapping[str, str]) -> Step:
    """A step with the devices' addresses for their names."""
    arguments = step.arguments
    keys = [key for key in ("device", "group_of") if getattr(arguments, key, None) in names]
    told = arguments.model_copy(update={key: names[getattr(arguments, key)] for key in keys})
    return Step.model_validate({step.op: told.model_dump(exclude_unset=True)})


def _compare_as_run(comparison: _Comparison, session: Session, steps: Sequence[Step]) -> None:
    run = comparison.run
    own = {address: name for name, address in run.names.items()}

    def look(where: str, state: StateRecord) -> None:
        groups, types, _ = session.run.state()
        comparison.types(where, state.types, {own[address]: kind for address, kind in types.items() if address in own})
        named = [[own.get(address, address) for address in group.devices] for group in groups]
        mine = [group for group in named if any(name in run.names for name in group)]
        comparison.compare("group", where, _partition(group.devices for group in state.groups), _partition(mine))

    assert run.boot is not None
    state = run.boot
    comparison.default("boot", run.default, session.run.system.boot.default.policy().name)
    look("boot", state)
    for name, lines in run.reserved.items():
        if session.present(run.names[name]):
            told = session.run.step(Step.model_validate({"read": {"group_of": run.names[name], "file": "reserved_regions"}}))
            comparison.compare("regions", f"boot, {name}", "; ".join(lines), "; ".join(told.value or ()))
    session.run.system.take_lines()
    for number, (step, record) in enumerate(zip(steps, run.steps, strict=False), start=1):
        where = _where(number, record)
        done = session.run.step(step)
        state = record.state or state
        comparison.result(where, record, done)
        _compare_log(comparison, where, record, done)
        look(where, state)
        if record.attaches is not None and done.attaches is not None:
            comparison.compare("attachments", where, str(record.attaches), str(done.attaches))
    _compare_rest(comparison)


def _compare_log(comparison: _Comparison, where: str, record: StepRecord, done: StepResult) -> None:
    """A step's lines; one that is missing may have been left out by printk, where the boot has printed many of its kind.

    VFIO claims a group by a device that it has been bound to for that time: which driver a claim's line names says nothing.
    """
    printed, of_model = about_dma(record.log), modelled(done.log)
    if record.op == "claim":
        printed, of_model = ([_DRIVER.sub("", line) for line in lines] for lines in (printed, of_model))
    for expected, got in compare_lines(dict.fromkeys(printed), dict.fromkeys(of_model)):
        undecided = record.reason if record.result == UNDECIDED else ""
        if expected == "nothing" and _printed(comparison.boot, got.strip('"')) >= BURST:
            undecided = "printk leaves lines out that come too often"
        comparison.compare("log", where, expected, got, undecided=undecided)


_DRIVER = re.compile(r"^\S+ (?=[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.\d: )")
"""The driver in front of a device's address."""


def _printed(boot: BootRecord, line: str) -> int:
    """How many lines of a kind the steps of a boot have printed: what a line says of which device does not count."""
    kind = line.rpartition(": ")[2]
    return sum(kind in each for run in boot.runs for step in run.steps for each in step.log)


def _compare_rest(comparison: _Comparison) -> None:
    """What follows a step that could not be carried out."""
    run = comparison.run
    if run.known_steps is not None:
        for number, record in enumerate(run.steps[run.known_steps :], start=run.known_steps + 1):
            comparison.compare("result", _where(number, record), record.result, "anything", undecided=record.reason or "not played")


# ---- as written ------------------------------------------------------------------------------------------------------


def as_written(boot: BootRecord, run: RunRecord, case: Case, registry: VendorRegistry) -> list[Observation]:
    """The observations of a run: the scenario as its file says, on the model."""
    observations = _compare_as_written(boot, run, case, case.kernel, registry)
    stable = profile_of(boot.recording())
    if stable != case.kernel.name and any(seen.verdict is Verdict.DIFFERS for seen in observations):
        backported = {
            (seen.kind, seen.where)
            for seen in _compare_as_written(boot, run, case, get_kernel(stable), registry)
            if seen.verdict is Verdict.AGREES
        }
        observations = [
            _explained(seen, STABLE_BACKPORT) if (seen.kind, seen.where) in backported else seen for seen in observations
        ]
    causes = [seen for seen in observations if seen.kind != EXPECTATION and seen.verdict in (Verdict.DIFFERS, Verdict.KNOWN)]
    if causes and all(seen.verdict is Verdict.KNOWN for seen in causes):
        # What a scenario expects cannot hold where what it expects it of is known to be otherwise.
        return [_explained(seen, causes[0].reason) for seen in observations]
    return observations


def _explained(seen: Observation, reason: str) -> Observation:
    return changed(seen, verdict=Verdict.KNOWN, reason=reason) if seen.verdict is Verdict.DIFFERS else seen


def _compare_as_written(
    boot: BootRecord, run: RunRecord, case: Case, kernel: Kernel, registry: VendorRegistry
) -> list[Observation]:
    scenario = case.scenario
    comparison = _Comparison(boot, run, Way.AS_WRITTEN)
    model, real = execute(scenario, kernel, case.vendor, registry), boot.result(run)
    assert model.boot is not None and real.boot is not None
    comparison.default("boot", real.boot.default, model.boot.default)
    comparison.types("boot", real.boot.types, model.boot.types)
    comparison.compare("group", "boot", _sharing(run, real.boot.members), _sharing(run, model.boot.members))
    played = real.steps[: run.known_steps]
    for number, (record, seen, done) in enumerate(zip(run.steps, played, model.steps, strict=False), start=1):
        where = _where(number, record)
        comparison.result(where, record, done)
        comparison.types(where, seen.types, done.types)
        comparison.compare("group", where, _sharing(run, seen.members), _sharing(run, done.members))
    _compare_expected(comparison, scenario, kernel=case.kernel, real=real, model=model)
    return comparison.observations


def _sharing(run: RunRecord, members: Mapping[str, int]) -> str:
    groups: dict[int, list[str]] = {}
    for name, number in members.items():
        if name in run.names:
            groups.setdefault(number, []).append(name)
    return _partition(groups.values())


def _compare_expected(comparison: _Comparison, scenario: Scenario, *, kernel: Kernel, real: Result, model: Result) -> None:
    """What the scenario expects, lines and attachments included, must hold of the real kernel where it holds of the model.

    Where a step could not be carried out or seen, nor can its lines.
    """
    if any(step.result == UNDECIDED for step in real.steps):
        return
    model.kernel = kernel.name
    judged, of_model = judge(scenario, real), judge(scenario, model)
    if Outcome.UNDECIDED not in (judged.outcome, of_model.outcome):
        comparison.compare(EXPECTATION, "as a whole", _told(judged), _told(of_model))


def _told(result: Result) -> str:
    return " ".join((result.outcome.value, *(f"({finding})" for finding in result.findings)))
