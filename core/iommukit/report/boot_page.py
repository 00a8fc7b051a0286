"""A predicted boot for people: warnings first, then why, what is printed, and who shares a group."""

from __future__ import annotations

from collections.abc import Sequence

from iommukit.report.boot import DEFAULTS, PARTS, PredictedGroup, Prediction, UndecidedGroups
from iommukit.report.boots import Boots
from iommukit.report.page import Page, Piece, Span, counted, listed
from iommukit.scenario.result import UNDECIDED

TYPE_STYLE = {"identity": "bad", "DMA": "good", "DMA-FQ": "good", UNDECIDED: "warn", "unknown": "warn"}
VERDICT_STYLE = {"effective": "good", "ineffective": "dim", "invalid": "warn", "unknown": "warn"}
POLICY_PREFIX = "iommu: "


def prediction_page(prediction: Prediction) -> Page:
    """The whole prediction."""
    page = Page()
    release = f" ({prediction.release})" if prediction.release != prediction.kernel else ""
    page.line(Span(prediction.machine, "head"), f" under {prediction.kernel}{release} with ", Span(prediction.vendor, "name"))
    page.line(Span(_asked(prediction), "dim"), indent=2)
    for warning in prediction.warnings:
        page.line(Span("WARNING ", "bad"), Span(warning, "warn"), indent=2)
    _remapping(page, prediction)
    _log(page, prediction)
    _options(page, prediction)
    _groups(page, prediction)
    _comparison(page, prediction)
    return page


def boots_page(boots: Boots) -> Page:
    """Every prediction, then who cannot, and where a captured machine's facts come from, with the licence."""
    page = Page()
    for prediction in boots.predictions:
        page.blank()
        page.extend(prediction_page(prediction))
    if boots.stopped or boots.not_applicable or boots.machine.sources:
        page.blank()
    for vendor, text in boots.stopped.items():
        page.line(Span(f"{vendor} stopped: {text}", "bad"))
    for vendor, reason in boots.not_applicable.items():
        page.line(Span(f"{vendor}: N/A, {reason.removeprefix(vendor + ' ')}", "dim"))
    machine = boots.machine
    for source in machine.sources:
        where = f", {source.url}" if source.url else ""
        page.line(Span(f"facts of {machine.machine}: {source.name}{where}, {source.licence}", "dim"))
    return page


def _asked(prediction: Prediction) -> str:
    boot = prediction.boot
    words = [f"kconfig {boot.kconfig}" if boot.kconfig else "the kernel's own build default"]
    words.append(f"command line: {boot.cmdline}" if boot.cmdline else "empty command line")
    if boot.memory_encryption:
        words.append("memory encryption")
    words += [f"{name}={'y' if on else 'n'}" for name, on in boot.config.items()]
    return "; ".join(words)


def _remapping(page: Page, prediction: Prediction) -> None:
    state = Span("on", "good") if prediction.enabled else Span("off", "bad")
    units = f": {counted(len(prediction.units), 'unit')}, {listed(prediction.units)}" if prediction.units else ""
    page.line(Span("DMA remapping is ", "head"), state, units, indent=2)
    for reason in prediction.reasons:
        page.line(reason, indent=4)
    if prediction.enabled:
        page.line(Span("default ", "head"), f"{prediction.default} ({DEFAULTS.get(prediction.default, '')})", indent=2)


def _log(page: Page, prediction: Prediction) -> None:
    page.line(Span("log", "head"), indent=2)
    for line in prediction.log:
        page.line(Span(line, "name" if line.startswith(POLICY_PREFIX) else "dim"), indent=4)


def _options(page: Page, prediction: Prediction) -> None:
    if not prediction.options:
        return
    page.line(Span("command-line options", "head"), indent=2)
    rows: list[Sequence[Piece]] = []
    for fate in prediction.options:
        matters = "" if fate.matters else "; no difference here"
        rows.append((fate.option, Span(fate.verdict, VERDICT_STYLE[fate.verdict]), f"{fate.note}{matters}"))
    page.pairs(rows, indent=4)


def _groups(page: Page, prediction: Prediction) -> None:
    counts: dict[str, int] = {}
    for group in prediction.groups:
        counts[group.type] = counts.get(group.type, 0) + 1
    if not (prediction.groups or prediction.undecided):
        page.line(Span("groups", "head"), ": none", indent=2)
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    page.line(Span("groups", "head"), f": {len(prediction.groups)} decided ({kinds})" if counts else ": none decided", indent=2)
    page.pairs([_group(prediction, group) for group in prediction.groups], indent=4)
    if any(group.number is None for group in prediction.groups):
        page.line(Span("?: the number depends on groups that are UNDECIDED", "dim"), indent=4)
    for each in prediction.undecided:
        _cluster(page, prediction, each)
    if prediction.uncovered:
        page.line(Span("without an IOMMU", "head"), f": {_named(prediction, prediction.uncovered)}", indent=2)


def _group(prediction: Prediction, group: PredictedGroup) -> tuple[Piece, ...]:
    number = "?" if group.number is None else str(group.number)
    return number.rjust(3), Span(group.type, TYPE_STYLE.get(group.type, "plain")), _named(prediction, group.devices)


def _named(prediction: Prediction, labels: Sequence[str]) -> str:
    shown = []
    for label in labels:
        name = prediction.labels.get(label, label)
        mark = "".join(f" ({word})" for word in (name, "untrusted" if label in prediction.untrusted else label) if word != label)
        shown.append(label + mark)
    return " ".join(shown)


def _cluster(page: Page, prediction: Prediction, each: UndecidedGroups) -> None:
    page.line(
        Span(f"{UNDECIDED:>9}", "warn"),
        f"  {each.type}  {_named(prediction, each.devices)}: their ACS bits are unknown"
        if each.type != UNDECIDED
        else f"  {_named(prediction, each.devices)}: their ACS bits are unknown",
        indent=4,
    )
    for words, side in (("isolated", each.isolated), ("not isolated", each.merged)):
        page.line(Span(f"if {words}: {' '.join(f'[{listed(group)}]' for group in side)}", "dim"), indent=15)


def _comparison(page: Page, prediction: Prediction) -> None:
    if not prediction.comparison:
        return
    page.line(Span("against what was observed", "head"), indent=2)
    rows: list[Sequence[Piece]] = []
    for part in prediction.comparison:
        if part.agrees:
            verdict = Span("agrees", "good")
        else:
            verdict = Span("DIFFERS", "bad") if part.finding else Span("differs, as listed", "warn")
        undecided = f" ({part.undecided} UNDECIDED)" if part.undecided else ""
        rows.append((part.part, verdict, Span(PARTS[part.part] + undecided, "dim")))
    page.pairs(rows, indent=4)
    for part in prediction.comparison:
        for line in part.differences:
            page.line(Span(f"{part.part}: ", "name"), line, indent=6)
        if part.accepted and part.differences:
            page.line(Span(f"{part.part}: listed because {part.accepted}", "dim"), indent=6)
    for stale in prediction.stale:
        page.line(Span(f"{stale}: the machine file lists a difference that is none any more", "warn"), indent=6)
