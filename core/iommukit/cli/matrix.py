"""``iommukit matrix``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from iommukit.cli.options import (
    KERNEL_HELP,
    Command,
    check_target,
    chosen_kernels,
    chosen_scenarios,
    chosen_vendors,
    load_registry,
    scenario_option,
    vendor_option,
)

if TYPE_CHECKING:
    from iommukit.report.vouchers import Evidence
    from iommukit.vendors import Vendor


@click.command(
    "matrix",
    cls=Command,
    examples=(
        "iommukit matrix",
        "iommukit matrix --kernel 6.1 --kernel rfc --vendor s390",
        "iommukit matrix --html matrix.html --json matrix.json",
    ),
)
@vendor_option
@click.option("--kernel", "kernels", multiple=True, metavar="KERNEL", help=KERNEL_HELP)
@scenario_option
@click.option("--json", "json_file", callback=check_target, metavar="FILE", help="Write the matrix as JSON; - is standard output.")
@click.option(
    "--html", "html_file", callback=check_target, metavar="FILE", help="Write one self-contained page; - is standard output."
)
@click.pass_context
def command(
    context: click.Context,
    vendors: tuple[str, ...],
    kernels: tuple[str, ...],
    scenarios: tuple[str, ...],
    json_file: str | None,
    html_file: str | None,
) -> int:
    """What each kernel does with each scenario on each vendor.

    Every combination runs once on the model.  The table has one line for all vendors and kernels that do the same; in its column
    "differs", k says that kernels differ and v that vendors do; "by" says what vouches for the line's cases: k a real kernel that
    played the scenario, r recorded boots, q QEMU's hardware, f facts alone, ! what a real kernel contradicts.  Below it they are
    counted; JSON and HTML say so of each case.  With a file, only the summary is printed.  Exit code 1 if any case is a FAIL.
    """
    from iommukit.cli.output import json_text, progress, show, write
    from iommukit.report.matrix import build_matrix, matrix_page, summary_page

    if json_file == html_file == "-":
        raise click.UsageError("--json - and --html - cannot share standard output", context)
    registry = load_registry(context, vendors)
    columns, makers = chosen_kernels(kernels), chosen_vendors(registry, vendors)
    rows = chosen_scenarios(scenarios)
    with progress(len(rows) * len(columns) * len(makers), "matrix") as tick:
        matrix = build_matrix(rows, columns, makers, registry, evidence=_evidence(makers), tick=tick)
    if json_file is not None:
        write(json_file, json_text(matrix.to_json()))
    if html_file is not None:
        from iommukit.report.html import matrix_html

        write(html_file, matrix_html(matrix))
    if "-" not in (json_file, html_file):
        if json_file is None and html_file is None:
            page = matrix_page(matrix)
            page.blank()
            page.extend(summary_page(matrix))
        else:
            page = summary_page(matrix)
            page.line(f"written: {', '.join(name for name in (json_file, html_file) if name)}")
        show(page)
    return int(matrix.failed)


def _evidence(vendors: list[Vendor]) -> Evidence | None:
    """What vouches for the model; ``None`` where no oracle is installed to say so."""
    if find_spec("iommukit_oracle") is None or find_spec("iommukit_conformance") is None:
        return None
    from iommukit_oracle.kernel.evidence import evidence

    return evidence(vendors)
