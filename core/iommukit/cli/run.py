"""``iommukit run``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from iommukit.cli.options import (
    KERNEL_HELP,
    Command,
    chosen_kernels,
    chosen_scenarios,
    chosen_vendors,
    json_flag,
    load_registry,
    vendor_option,
)

if TYPE_CHECKING:
    from iommukit.scenario.model import Scenario
    from iommukit.scenario.result import Result

FEW = 12
"""Up to this many runs are told in full."""
full_option = click.option(
    "--full/--short", default=None, help=f"Tell every run in full, or in one line.  Default: in full up to {FEW} runs."
)


@click.command(
    "run",
    cls=Command,
    examples=(
        "iommukit run live-switch.yaml",
        "iommukit run scenarios/ --kernel 6.1 --kernel 6.12 --vendor intel_vtd",
        "iommukit run scenarios/ --json | jq .outcome",
    ),
)
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@click.option("--kernel", "kernels", multiple=True, metavar="KERNEL", help=f"{KERNEL_HELP}  Default: rfc.")
@vendor_option
@full_option
@json_flag
@click.pass_context
def command(
    context: click.Context,
    scenarios: tuple[str, ...],
    kernels: tuple[str, ...],
    vendors: tuple[str, ...],
    full: bool | None,
    as_json: bool,
) -> int:
    """Play scenarios and judge them.

    SCENARIO is a file or a folder.  A run is told step by step: what was done, what the kernel answered and printed, what was
    expected.  Beyond a few runs each is one line, and a FAIL is told in full.  With --json each result is one line.  Exit code 1 if
    any run is a FAIL.
    """
    from iommukit.cli.output import progress
    from iommukit.kernel.profiles import DEFAULT
    from iommukit.report.runs import run_cases

    registry = load_registry(context, vendors)
    played, makers = chosen_kernels(kernels, [DEFAULT]), chosen_vendors(registry, vendors)
    loaded = chosen_scenarios(scenarios)
    # All of it before the first word: a wrong scenario shall not follow half an answer.
    with progress(len(loaded) * len(played) * len(makers), "run") as tick:
        runs = list(run_cases(loaded, played, makers, registry, tick=tick))
    return tell(runs, full=full, as_json=as_json)


def tell(runs: Sequence[tuple[Scenario, Result]], *, full: bool | None, as_json: bool) -> int:
    """Print runs that have been judged; the exit code that they come to.

    Without a wish they are told in full where they are few.
    """
    from iommukit.cli.output import show, show_json
    from iommukit.report.page import Page
    from iommukit.report.runs import worst
    from iommukit.report.transcript import short_page, tally, transcript
    from iommukit.scenario.result import Outcome

    results = [result for _, result in runs]
    if as_json:
        for result in results:
            show_json(result.to_json(), one_line=True)
        return worst(results)
    many = len(runs) > FEW if full is None else not full
    page = Page()
    for scenario, result in runs:
        if (many and result.outcome is not Outcome.FAIL) or result.boot is None:
            page.extend(short_page(scenario, result))
        else:
            page.blank()
            page.extend(transcript(scenario, result))
            page.blank()
    if len(results) > 1:
        page.extend(tally(results))
    show(page.trimmed())
    return worst(results)
