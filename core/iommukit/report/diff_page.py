"""A diff for people: a headline, one line for each kind of change, then the changes."""

from __future__ import annotations

from iommukit.report.diff import Diff, cases
from iommukit.report.page import Page, Span, counted, listed

SEVERITY_STYLE = {"breaks": "bad", "weakens": "bad", "refuses": "warn", "differs": "warn", "improves": "good", "cosmetic": "dim"}
"""Severities, worst first, with the style of their headings."""
MOST_NAMED = 3
"""Scenarios named for a change, unless all are wanted."""
MOST_COSMETIC = 6
"""Changes shown of a cosmetic kind, unless all are wanted."""


def diff_page(diff: Diff, *, full: bool) -> Page:
    """Headline, one line for each kind, then the changes; ``full`` names every scenario."""
    page = Page()
    kinds = diff.kinds()
    what = f"{counted(diff.total, 'scenario')} ({counted(diff.applied, 'case')} on {listed(diff.vendors)})"
    page.line(
        Span(f"{diff.before} → {diff.after}", "head"),
        f": {len(diff.changed)} of {what} ",
        "differ" if kinds else "differ: no change",
    )
    if not kinds:
        return page
    if diff.hint:
        page.line(Span(diff.hint, "warn"))
    page.blank()
    page.pairs(
        [
            (
                Span(str(cases(entries)).rjust(5), SEVERITY_STYLE[kind.severity]),
                Span(kind.title, SEVERITY_STYLE[kind.severity]),
                Span(kind.meaning, "dim"),
            )
            for kind, entries in kinds.items()
        ]
    )
    for kind, entries in kinds.items():
        page.blank()
        page.line(Span(kind.title, SEVERITY_STYLE[kind.severity]), Span(f"  ({kind.severity})", "dim"))
        shown = len(entries) if full or kind.severity != "cosmetic" else MOST_COSMETIC
        for entry in entries[:shown]:
            change = entry.change
            page.line(
                f"{change.where}: ", Span(change.before, "dim"), " → ", Span(change.after, SEVERITY_STYLE[kind.severity]), indent=2
            )
            for vendors, scenarios in entry.by_vendors().items():
                who = "all vendors" if len(diff.vendors) > 1 and vendors == diff.vendors else listed(vendors)
                named = [f"{each.rule} {each.scenario}" if each.rule else each.scenario for each in scenarios]
                page.line(Span(who, "name"), ": ", listed(named, most=0 if full else MOST_NAMED), indent=6)
        if shown < len(entries):
            page.line(Span(f"and {len(entries) - shown} more (--all shows them)", "dim"), indent=2)
    return page
