"""``iommukit diff``."""

from __future__ import annotations

import click

from iommukit.cli.options import Command, chosen_scenarios, chosen_vendors, json_flag, load_registry, scenario_option, vendor_option


@click.command(
    "diff",
    cls=Command,
    examples=(
        "iommukit diff --from 6.1 --to rfc-as-posted",
        "iommukit diff --from 6.1 --to rfc --vendor s390 --all",
        "iommukit diff --from 6.12 --to 7.2 --json",
    ),
)
@click.option("--from", "before", required=True, metavar="KERNEL", help="The kernel as it is.")
@click.option("--to", "after", required=True, metavar="KERNEL", help="The kernel as it would be.")
@vendor_option
@scenario_option
@click.option("--all", "full", is_flag=True, help="Name every scenario of a change, not only the first three.")
@json_flag
@click.pass_context
def command(
    context: click.Context,
    before: str,
    after: str,
    vendors: tuple[str, ...],
    scenarios: tuple[str, ...],
    full: bool,
    as_json: bool,
) -> int:
    """What changing the kernel changes, worst first.

    Every scenario is played under both kernels on each vendor.  Changes are grouped by kind: DMA that dies, groups left stuck, less
    protection, writes refused or accepted, other errnos, and so on down to log lines; the same change in several scenarios is told
    once.  What only follows from a step that already ended differently is not told again.  Exit code 1 if anything differs.
    """
    from iommukit.cli.output import progress, show, show_json
    from iommukit.kernel.profiles import get_kernel
    from iommukit.report.diff import compare_kernels
    from iommukit.report.diff_page import diff_page

    old, new = get_kernel(before), get_kernel(after)
    registry = load_registry(context, vendors)
    makers = chosen_vendors(registry, vendors)
    played = chosen_scenarios(scenarios)
    with progress(2 * len(played) * len(makers), "diff") as tick:
        found = compare_kernels(played, old, new, makers, registry, tick=tick)
    if as_json:
        show_json(found.to_json())
    else:
        show(diff_page(found, full=full))
    return int(bool(found.entries))
