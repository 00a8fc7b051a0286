"""``python -m iommukit_conformance.wrong``: the whole suite against every wrong driver, as a table.

Exit codes: 0 every wrong driver is rejected by its rule and every control passes; 1 a hole in the suite; 3 a broken suite.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from iommukit_conformance.case import HarnessFault
from iommukit_conformance.controls import CONTROLS
from iommukit_conformance.wrong import WRONG
from iommukit_conformance.wrong.runner import Judged, judge_control, judge_wrong


def table(judged: Iterable[Judged]) -> Table:
    """Driver, mistake, what rejected it."""
    shown = Table("driver", "mistake", "rejected by", "what was found", "also rejected by", title="Wrong drivers", show_lines=True)
    for each in judged:
        rule = each.driver.rule if each.named else f"[bold red]not by {each.driver.rule}"
        shown.add_row(each.driver.label(), each.driver.mistake, rule, each.found, " ".join(each.others))
    return shown


def main() -> int:
    """Run, print, and say how it went."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        control = [(name, ran) for name, driver in CONTROLS.items() for ran in judge_control(driver, scenarios=True)]
        judged = [judge_wrong(driver, thorough=True) for driver in WRONG]
    except HarnessFault as error:
        console.print(f"the suite is broken: {error}", style="red", markup=False)
        return 3
    console.print(table(judged))
    for name, ran in control:
        findings = "; ".join(str(finding) for finding in ran.verdict.findings)
        console.print(f"{name}: not so, by {ran.case.name} under {ran.kernel}: {findings}", style="red", markup=False)
    missed = [each for each in judged if not each.named]
    for each in missed:
        others = f"only rejected by {', '.join(each.others)}" if each.others else "accepted"
        console.print(f"{each.driver.label()} is {others}: {each.driver.mistake}", style="red", markup=False)
    console.print(f"{len(judged) - len(missed)} of {len(judged)} wrong drivers are rejected by the rule that names their mistake")
    return 1 if missed or control else 0


if __name__ == "__main__":
    sys.exit(main())
