"""``iommukit run``."""

from __future__ import annotations

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

FEW = 12
"""Up to this many runs are told in full."""


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
@click.option("--full/--short", default=None, help=f"Tell every run in full, or in one line.  Default: in full up to {FEW} runs.")
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
    from iommukit.cli.output import progress, show, show_json
    from iommukit.kernel.profiles import DEFAULT
    from iommukit.report.page import Page
    from iommukit.report.runs import run_cases, worst
    from iommukit.report.transcript import short_page, tally, transcript
    from iommukit.scenario.result import Outcome

    registry = load_registry(context, vendors)
    played, makers = chosen_kernels(kernels, [DEFAULT]), chosen_vendors(registry, vendors)
    loaded = chosen_scenarios(scenarios)
    total = len(loaded) * len(played) * len(makers)
    many = total > FEW if full is None else not full
    # All of it before the first word: a wrong scenario shall not follow half an answer.
    with progress(total, "run") as tick:
        runs = list(run_cases(loaded, played, makers, registry, tick=tick))
    results = [result for _, result in runs]
    if as_json:
        for result in results:
            show_json(result.to_json(), one_line=True)
        return worst(results)
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
