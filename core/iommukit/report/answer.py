"""What can be observed of a run, in few words: the steps' results and the types at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iommukit.machine.model import Machine
from iommukit.scenario.model import OPERATIONS, Scenario, Step
from iommukit.scenario.result import BootResult, Outcome, Result, StepResult

ABSENT = "absent"
QUIET_OK = frozenset({"bind", "unbind", "remove", "add", "inject", "release", "dma"})
"""Operations whose success goes without saying."""
NO_GROUP = "no IOMMU"
MOST_NAMED = 4
"""Groups beyond this many are counted, not named."""


def describe(step: Step) -> str:
    """A step in few words, without its device: ``write DMA-FQ``, ``bind e1000e``."""
    arguments = step.arguments
    match step.op:
        case "write":
            return f"write {arguments.type}" + ("" if arguments.privileged else " unprivileged")
        case "bind":
            return f"bind {arguments.driver}"
        case "claim" | "release":
            return f"{step.op} for {arguments.owner}"
        case "read":
            return f"read {arguments.file}"
        case "inject":
            return f"inject {arguments.error} in {arguments.hook}"
        case "dma":
            return f"dma {arguments.map} {arguments.direction.replace('_', ' ')}"
        case _:
            return step.op


def subject(step: Step) -> str:
    """The device a step is about, or nothing."""
    return next(iter(step.device_names), "")


def named_devices(scenario: Scenario) -> tuple[str, ...]:
    """The devices of the scenario's own machine, in order; a vendor's companions are not among them."""
    machine = scenario.machine
    return tuple(device.name for device in machine.devices) if isinstance(machine, Machine) else ()


def final_state(result: Result) -> BootResult | StepResult | None:
    """The state after the last step, or after boot where there are no steps."""
    return result.steps[-1] if result.steps else result.boot


@dataclass(frozen=True, slots=True)
class Answer:
    """The comparable part of a run.

    ``steps`` are results in order; ``types`` the devices' types at the end; ``groups`` the devices that share a group.
    """

    steps: tuple[str, ...]
    types: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, ...], ...]
    text: str


def answer(scenario: Scenario, result: Result) -> Answer:
    """What a run shows; for one that did not happen, why not."""
    state = final_state(result)
    if result.outcome is Outcome.NOT_APPLICABLE or state is None:
        reason = result.reason or "; ".join(result.findings)
        return Answer((), (), (), reason.removeprefix(f"{result.vendor} "))
    names = named_devices(scenario)
    groups = _groups(names, state.members)
    types = tuple((name, state.types.get(name, ABSENT)) for name in names)
    steps = tuple(_step_answer(done) for done in result.steps)
    ends = [_types_text(dict(types), groups, interest(scenario))] if names else []
    if result.boot is not None and (not names or wants_default(scenario)):
        ends.append(f"default {result.boot.default}")
    halves = (", ".join(_step_words(scenario, result)), ", ".join(ends))
    return Answer(steps, types, groups, " → ".join(half for half in halves if half))


def wants_default(scenario: Scenario) -> bool:
    """Whether the scenario is about the system's default policy."""
    return any("default" in expectation or "default" in expectation.get("boot", ()) for expectation in scenario.expect.values())


def interest(scenario: Scenario) -> frozenset[str]:
    """The devices that a scenario's steps and expectations name."""
    names = {name for step in scenario.steps for name in step.device_names}
    for expectation in scenario.expect.values():
        names.update(key for key in expectation if key not in OPERATIONS)
        boot = expectation.get("boot")
        names.update(boot if isinstance(boot, dict) else ())
    return frozenset(names)


def _step_answer(done: StepResult) -> str:
    return done.result if done.value is None else f"{done.result}: {' | '.join(done.value)}"


def _step_words(scenario: Scenario, result: Result) -> Iterable[str]:
    for step, done in zip(scenario.steps, result.steps, strict=True):
        if done.value is not None:
            yield f"read {done.value[0]}" if len(done.value) == 1 else f"read {len(done.value)} lines"
        elif done.result != "ok" or step.op not in QUIET_OK:
            yield f"{step.op} {done.result}"


def _groups(names: tuple[str, ...], members: dict[str, int]) -> tuple[tuple[str, ...], ...]:
    together: dict[int, list[str]] = {}
    for name in names:
        if name in members:
            together.setdefault(members[name], []).append(name)
    return tuple(tuple(each) for each in together.values())


def _types_text(types: dict[str, str], groups: tuple[tuple[str, ...], ...], wanted: frozenset[str]) -> str:
    """``DMA-FQ`` where all agree; else each type with its groups, those of interest first.  ``a+b`` share a group."""
    grouped = {name for group in groups for name in group}
    blocks = [*groups, *((name,) for name in types if name not in grouped)]
    kinds = {types[block[0]] for block in blocks}
    joint = [block for block in blocks if len(block) > 1]
    if len(kinds) == 1:
        kind = NO_GROUP if kinds == {"none"} else kinds.pop()
        if not joint:
            return kind
        if len(joint) <= MOST_NAMED:
            return f"{kind} ({', '.join('+'.join(block) for block in joint)})"
        return f"{kind} in {len(groups)} groups"
    if len(blocks) > 2 * MOST_NAMED:
        counts: dict[str, int] = {}
        for block in blocks:
            counts[types[block[0]]] = counts.get(types[block[0]], 0) + 1
        return f"{len(groups)} groups: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    by_type: dict[str, list[str]] = {}
    for block in sorted(blocks, key=lambda block: not wanted.intersection(block)):
        by_type.setdefault(types[block[0]], []).append("+".join(block))
    return "; ".join(f"{' '.join(members)}: {NO_GROUP if kind == 'none' else kind}" for kind, members in by_type.items())
