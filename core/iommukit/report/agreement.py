"""How the model agrees with everything that vouches for it: as a page, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommukit.report.page import Page, Span, counted, listed

if TYPE_CHECKING:
    from iommukit.report.shapes import AgreementJson, AgreementRowJson, RemarkJson, StandingName

STANDINGS: dict[StandingName, tuple[str, str]] = {
    "agrees": ("agree", "good"),
    "differs": ("differ", "bad"),
    "explained": ("explained", "warn"),
    "undecided": ("undecided", "plain"),
    "stale": ("stale", "warn"),
    "missing": ("missing", "warn"),
}
"""How the model can stand: the column's name, and the style of what it counts.

``explained`` is a difference with a name and a reason; ``stale`` has been changed since a real kernel saw it; ``missing`` was never
seen by one.
"""
HEADINGS: dict[StandingName, str] = {
    "differs": "Differences",
    "explained": "Explained differences",
    "undecided": "Undecided",
    "stale": "Stale",
    "missing": "Not recorded",
}
FEW = 3
"""Cases that are named with a remark."""


@dataclass(slots=True)
class Row:
    """One judge on one kernel and vendor.

    ``unit`` is what ``standings`` counts, ``observations`` what was looked at in them, by standing.
    """

    judge: str
    unit: str
    kernel: str
    vendor: str
    standings: Counter[StandingName] = field(default_factory=Counter)
    observations: Counter[StandingName] = field(default_factory=Counter)

    def to_json(self) -> AgreementRowJson:
        """As data."""
        return {
            "judge": self.judge,
            "unit": self.unit,
            "kernel": self.kernel,
            "vendor": self.vendor,
            "cases": {standing: self.standings[standing] for standing in STANDINGS},
            "observations": {standing: self.observations[standing] for standing in STANDINGS},
        }


@dataclass(frozen=True, slots=True)
class Remark:
    """What is to be said of one case: a difference in words, or why there is nothing to compare.

    ``seen`` is what was observed, empty where a case as a whole is meant; ``reason`` why it counts as it does, empty for a
    difference that nobody has explained.
    """

    standing: StandingName
    judge: str
    kernel: str
    vendor: str
    case: str
    seen: str = ""
    reason: str = ""

    def to_json(self) -> RemarkJson:
        """As data."""
        return {
            "standing": self.standing,
            "judge": self.judge,
            "kernel": self.kernel,
            "vendor": self.vendor,
            "case": self.case,
            "seen": self.seen,
            "reason": self.reason,
        }


@dataclass(slots=True)
class AgreementReport:
    """Every row, and every remark."""

    rows: list[Row] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Whether the model differs anywhere without a named reason."""
        return any(row.standings["differs"] or row.observations["differs"] for row in self.rows)

    @property
    def observations(self) -> Counter[StandingName]:
        """All observations, by standing."""
        total: Counter[StandingName] = Counter()
        for row in self.rows:
            total.update(row.observations)
        return total

    def to_json(self) -> AgreementJson:
        """As data."""
        return {"rows": [row.to_json() for row in self.rows], "remarks": [remark.to_json() for remark in self.remarks]}


def agreement_page(report: AgreementReport, *, full: bool = False) -> Page:
    """The table, every difference in words, and the reasons of all others with how often each occurs; ``full``: with every case."""
    page = Page()
    _table(page, report.rows)
    for standing, heading in HEADINGS.items():
        remarks = [remark for remark in report.remarks if remark.standing == standing]
        if not remarks:
            continue
        page.blank()
        page.line(Span(heading, "head"))
        if standing == "differs":
            for remark in remarks:
                page.line(Span(remark.seen or remark.case), indent=2)
        else:
            _reasons(page, remarks, full=full)
    page.blank()
    page.line(*_verdict(report))
    return page.trimmed()


def _table(page: Page, rows: Sequence[Row]) -> None:
    grid = page.grid("judge", "kernel", "vendor", "cases", *(name for name, _ in STANDINGS.values()), "observations agree", "all")
    judge = ""
    for row in rows:
        total = sum(row.standings.values())
        cells = [
            Span(str(row.standings[standing] or "."), style if row.standings[standing] else "dim")
            for standing, (_, style) in STANDINGS.items()
        ]
        grid.add(
            Span(row.judge, "repeat" if row.judge == judge else "name"),
            row.kernel,
            row.vendor,
            counted(total, row.unit),
            *cells,
            str(row.observations["agrees"]),
            str(sum(row.observations.values())),
            section=row.judge != judge,
        )
        judge = row.judge


def _reasons(page: Page, remarks: Sequence[Remark], *, full: bool) -> None:
    """Each reason once, the most frequent first, with the kernels and cases that it stands for."""
    by_reason: dict[str, list[Remark]] = {}
    for remark in remarks:
        by_reason.setdefault(remark.reason, []).append(remark)
    for reason, alike in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        kernels = listed(dict.fromkeys(remark.kernel for remark in alike))
        page.line(Span(f"{len(alike):>5}  "), Span(reason), Span(f"  ({kernels})", "dim"), indent=1)
        if full:
            for remark in alike:
                case = f"{remark.case} ({remark.kernel}, {remark.vendor})"
                page.line(Span(remark.seen or case, "dim"), indent=10)
        else:
            page.line(Span(listed(dict.fromkeys(remark.case for remark in alike), most=FEW), "dim"), indent=10)


def _verdict(report: AgreementReport) -> list[Span]:
    observations = report.observations
    total = sum(observations.values())
    if not total:
        return [Span("nothing has been compared", "warn")]
    spans = [Span(f"{observations['agrees']} of {counted(total, 'observation')} agree, ")]
    if report.bad:
        spans.append(Span(f"{counted(observations['differs'], 'difference')} without a name", "bad"))
    else:
        spans.append(Span("and every difference has a name" if observations["explained"] else "and none differs"))
    unseen = sum(row.standings["stale"] + row.standings["missing"] for row in report.rows)
    if unseen:
        spans.append(Span(f"; {counted(unseen, 'case')} stale or not recorded", "warn"))
    return spans
