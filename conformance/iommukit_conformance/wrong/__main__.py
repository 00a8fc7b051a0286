"""``python -m iommukit_conformance.wrong``: the whole suite against every wrong driver, as tables.

The first table has the reference with mistakes about policy, the second each installed vendor, and the reference, with mistakes in
using hardware: on the model and, where QEMU is installed, on QEMU.

Exit codes: 0 every wrong driver is rejected by its rule and every control passes; 1 a hole in the suite; 3 a broken suite.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from iommukit.hw.platforms import platform_names
from iommukit.scenario.result import Outcome
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_conformance.case import HarnessFault
from iommukit_conformance.controls import CONTROLS
from iommukit_conformance.lab import MODEL
from iommukit_conformance.reference import NAME, Reference
from iommukit_conformance.wrong import WRONG
from iommukit_conformance.wrong.judge import Tried, mistakes_of, try_mistake
from iommukit_conformance.wrong.runner import Judged, judge_control, judge_wrong


def table(judged: Iterable[Judged]) -> Table:
    """Driver, mistake, what rejected it."""
    shown = Table("driver", "mistake", "rejected by", "what was found", "also rejected by", title="Wrong drivers", show_lines=True)
    for each in judged:
        rule = each.driver.rule if each.named else f"[bold red]not by {each.driver.rule}"
        shown.add_row(each.driver.label(), each.driver.mistake, rule, each.found, " ".join(each.others))
    return shown


def platforms() -> list[str]:
    """What mistakes in using hardware are tried on."""
    return [MODEL, *(name for name in platform_names() if name != MODEL)]


def tried(vendor: Vendor, hardware: str) -> Iterator[Tried]:
    """Every mistake with a vendor's driver, if it has hardware at all."""
    if "map_pages" in vendor.ops.implemented:
        for mistake in mistakes_of(vendor):
            yield try_mistake(vendor, mistake, hardware)


WORD = {Outcome.PASS: "rejected", Outcome.FAIL: "[bold red]ACCEPTED", Outcome.NOT_APPLICABLE: "unseen"}


def table_of_mistakes(vendor: str, columns: Mapping[str, Sequence[Tried]]) -> Table:
    """Mistake, rule, and what became of it on each platform; why it cannot be seen, or what is wrong with the driver."""
    shown = Table(
        "mistake", "rule", *columns, "what is wrong, or why it is not seen", title=f"Mistakes in using hardware: {vendor}"
    )
    for row in zip(*columns.values(), strict=True):
        mistake = row[0].mistake
        reasons = [f"{name}: {each.found}" for name, each in zip(columns, row, strict=True) if each.outcome is not Outcome.PASS]
        shown.add_row(mistake.name, mistake.rule, *(WORD[each.outcome] for each in row), "; ".join([mistake.sentence, *reasons]))
    return shown


def hardware_tables(console: Console) -> int:
    """Print what becomes of mistakes in using hardware.  Returns how many are accepted."""
    accepted = 0
    reference = VendorRegistry()
    reference.register(Reference(), NAME)
    for vendor in (*reference, *VendorRegistry.installed()):
        columns = {name: list(tried(vendor, name)) for name in platforms()}
        if columns[MODEL]:
            console.print(table_of_mistakes(vendor.name, columns))
        accepted += sum(each.outcome is Outcome.FAIL for column in columns.values() for each in column)
    return accepted


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
    accepted = hardware_tables(console)
    console.print(f"{accepted} mistakes in using hardware are accepted")
    return 1 if missed or control or accepted else 0


if __name__ == "__main__":
    sys.exit(main())
