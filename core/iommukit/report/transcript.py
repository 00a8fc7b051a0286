"""A run told step by step: what booted, what was done, what the kernel said, what was expected and found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iommukit.machine.model import Machine
from iommukit.report.answer import describe, subject
from iommukit.report.matrix import OUTCOME_STYLE, outcomes_text
from iommukit.report.page import Page, Piece, Span, counted
from iommukit.scenario.model import Scenario, Step
from iommukit.scenario.result import BootResult, GroupState, Outcome, Result, StepResult

DEEPEST = 4
RESULT_STYLE = {"ok": "good", "UNDECIDED": "plain"}
"""An errno may be just what was expected, so it is only made visible, not called wrong."""


def headline(result: Result) -> tuple[Piece, ...]:
    """Outcome, scenario, kernel, vendor, and the reason of an outcome that is not PASS."""
    outcome = Span(result.outcome.value.ljust(9), OUTCOME_STYLE[result.outcome])
    found = (outcome, " ", Span(result.scenario, "name"), f"  {result.kernel}  {result.vendor}")
    return (*found, Span(f"  {result.reason.removeprefix(result.vendor + ' ')}", "dim")) if result.reason else found


def short_page(scenario: Scenario, result: Result) -> Page:
    """One line, and what did not hold."""
    page = Page()
    page.line(*headline(result))
    for finding in result.findings:
        page.line(Span(finding, "bad"), indent=10)
    return page


def transcript(scenario: Scenario, result: Result) -> Page:
    """The whole run.  One that did not happen is one line."""
    page = short_page(scenario, result)
    if result.boot is None:
        return page
    page = Page()
    page.line(*headline(result))
    about = f"{scenario.summary} ({scenario.rule})" if scenario.summary and scenario.rule else scenario.summary or scenario.rule
    if about:
        page.line(about, indent=2)
    page.line(Span(_set_up(scenario), "dim"), indent=2)
    names = _names(scenario)
    _boot(page, result.boot, names)
    before: Sequence[GroupState] = result.boot.groups
    for number, (step, done) in enumerate(zip(scenario.steps, result.steps, strict=True), start=1):
        _step(page, number, step, done, before, names)
        before = done.groups
    _expected(page, scenario, result)
    return page


def _set_up(scenario: Scenario) -> str:
    machine, boot = scenario.machine, scenario.boot
    words = [f"machine {machine.machine if isinstance(machine, Machine) else machine}"]
    if boot.kconfig:
        words.append(f"kconfig {boot.kconfig}")
    if boot.cmdline:
        words.append(f"command line: {boot.cmdline}")
    if boot.memory_encryption:
        words.append("memory encryption")
    if boot.drivers == "none":
        words.append("no drivers loaded")
    words += [f"{name}={'y' if on else 'n'}" for name, on in boot.config.items()]
    return ", ".join(words)


def _names(scenario: Scenario) -> dict[str, str]:
    """``dev_name()`` to the machine file's name, where the file says both."""
    machine = scenario.machine
    if not isinstance(machine, Machine):
        return {}
    return {device.address: device.name for device in machine.devices if device.address and device.address != device.name}


def _boot(page: Page, boot: BootResult, names: dict[str, str]) -> None:
    page.line(Span("boot", "head"), f", default {boot.default}", indent=2)
    for line in boot.log:
        page.line(Span(line.rstrip(), "dim"), indent=6)
    for option, verdict, note in boot.options:
        page.line(f"{option}: ", Span(verdict, "good" if verdict == "effective" else "warn"), f" ({note})", indent=6)
    page.pairs([_group(group, names) for group in boot.groups], indent=6)
    if not boot.groups:
        page.line("no groups", indent=6)


def _group(group: GroupState, names: dict[str, str]) -> tuple[Piece, ...]:
    members = " ".join(f"{label} ({names[label]})" if label in names else label for label in group.devices)
    return f"group {group.id}", Span(group.type, "name"), members or Span("empty", "dim")


def _step(page: Page, number: int, step: Step, done: StepResult, before: Sequence[GroupState], names: dict[str, str]) -> None:
    target = subject(step)
    what = f"{describe(step)}{f'  [{target}]' if target else ''}"
    style = RESULT_STYLE.get(done.result, "warn")
    reason = Span(f"  {done.reason}", "dim") if done.reason else ""
    page.line(Span(f"{number:>3} ", "head"), what, ": ", Span(done.result, style), reason, indent=2)
    for line in done.value or ():
        page.line(Span(line, "name"), indent=6)
    for line in done.log:
        page.line(Span(line.rstrip(), "dim"), indent=6)
    old = {group.id: group for group in before}
    for group in done.groups:
        known = old.pop(group.id, None)
        if known is None:
            page.line(*_spaced(_group(group, names)), Span("  (new)", "dim"), indent=6)
        elif known.type != group.type:
            page.line(f"group {group.id}  {known.type} → ", Span(group.type, "name"), indent=6)
        elif known.devices != group.devices:
            page.line(*_spaced(_group(group, names)), indent=6)
    for number_gone in old:
        page.line(f"group {number_gone} has gone", indent=6)


def _spaced(pieces: Sequence[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        found += ["  ", piece] if found else [piece]
    return found


def _expected(page: Page, scenario: Scenario, result: Result) -> None:
    wanted = scenario.expectation(result.kernel)
    if wanted is not None:
        shown = ", ".join(f"{key}: {_value(value)}" for key, value in wanted.items())
        page.line(Span("expected", "head"), f"  {shown or 'that it plays at all'}", indent=2)
    if result.findings:
        page.line(Span("found", "head"), indent=2)
    for finding in result.findings:
        page.line(Span(finding, "bad"), indent=6)


def _value(value: Any, depth: int = 0) -> str:
    """An expectation as YAML would have it on one line; what is nested deeper than any that makes sense is left out."""
    if depth == DEEPEST and isinstance(value, dict | list):
        return "…"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(each, depth + 1)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(each, depth + 1) for each in value) + "]"
    return str(value)


def tally(results: Sequence[Result]) -> Page:
    """How many of each outcome; and that nothing was judged, where that is so."""
    page = Page()
    counts = dict.fromkeys(Outcome, 0)
    for result in results:
        counts[result.outcome] += 1
    page.line(Span(counted(len(results), "run"), "head"), f": {outcomes_text(counts)}")
    if not counts[Outcome.PASS] and not counts[Outcome.FAIL] and not counts[Outcome.XFAIL]:
        page.line(Span("nothing was judged", "warn"))
    return page
