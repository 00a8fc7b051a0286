"""``iommukit oracle kernel check``."""

from __future__ import annotations

from pathlib import Path
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
    scenario_option,
    vendor_option,
)
from iommukit.cli.oracle_kernel import boots, find_kernel, image_option, jobs_option, modules_option

if TYPE_CHECKING:
    from iommukit.kernel.kernel import Kernel
    from iommukit.scenario.model import Scenario
    from iommukit.vendors import Vendor, VendorRegistry
    from iommukit_oracle.kernel.table import Table


@click.command(
    "check",
    cls=Command,
    examples=(
        "iommukit oracle kernel check",
        "iommukit oracle kernel check --kernel 6.12 --vendor intel_vtd --full",
        "iommukit oracle kernel check --live --kernel 6.1 --scenario live-switch.yaml",
    ),
)
@click.option("--kernel", "kernels", multiple=True, metavar="KERNEL", help=f"{KERNEL_HELP}  Default: all.")
@vendor_option
@scenario_option
@click.option("--recorded/--live", default=True, help="Take what was recorded, or boot real kernels now.  Default: recorded.")
@click.option(
    "--recordings",
    multiple=True,
    metavar="PATH",
    help="Files of `record`, or a folder; may be repeated.  Default: the shipped ones.",
)
@image_option
@modules_option
@jobs_option
@click.option("--full", is_flag=True, help="Name every case, not only a few for each reason.")
@json_flag
@click.pass_context
def command(
    context: click.Context,
    kernels: tuple[str, ...],
    vendors: tuple[str, ...],
    scenarios: tuple[str, ...],
    recorded: bool,
    recordings: tuple[str, ...],
    image: str | None,
    modules: str | None,
    jobs: int,
    full: bool,
    as_json: bool,
) -> int:
    """Hold the model against what real kernels do.

    Each scenario is compared as it was run (QEMU's machine, Debian's build) and as it is written.  Without --scenario the table has
    everything that vouches for the model: earlier recorded boots, and for rfc, which nobody can boot, what is written down of it.
    A scenario that has been changed since it was recorded is stale and says nothing.  Exit code 1 if anything differs without a
    named reason.
    """
    from iommukit.cli.output import show, show_json
    from iommukit.errors import InputError
    from iommukit.report.agreement import agreement_page
    from iommukit_oracle.guest.kernels import RELEASES
    from iommukit_oracle.kernel.agreement import check
    from iommukit_oracle.kernel.cases import cases
    from iommukit_oracle.kernel.store import Store, load_store, shipped_boots
    from iommukit_oracle.kernel.table import RFC, Table

    if not recorded and recordings:
        raise InputError("--recordings and --live exclude each other")
    if recorded and (image is not None or modules is not None):
        raise InputError("--image and --modules need --live")
    registry = load_registry(context, vendors)
    everything = not scenarios and recorded
    judged, makers = chosen_kernels(kernels, () if everything else tuple(RELEASES)), chosen_vendors(registry, vendors)
    loaded = chosen_scenarios(scenarios)
    real = [kernel for kernel in judged if kernel.name in RELEASES or (kernel.name != RFC and not everything)]
    if recorded:
        store = load_store([Path(path) for path in recordings] or ([shipped_boots()] if shipped_boots().is_dir() else []))
    else:
        store = Store()
        for boot in boots(loaded, real, makers, find=find_kernel(image, modules), jobs=jobs):
            store.add(boot)
    table = Table()
    table.add_played(check(cases(loaded, real, makers), store, registry))
    if everything:
        add_others(table, loaded, judged, makers, registry)
    if as_json:
        show_json(table.report.to_json())
    else:
        show(agreement_page(table.report, full=full))
    return int(table.report.bad)


def add_others(
    table: Table, scenarios: list[Scenario], kernels: list[Kernel], vendors: list[Vendor], registry: VendorRegistry
) -> None:
    """Earlier recorded boots, and what is written down of a kernel that nobody can boot."""
    from iommukit.cli.output import progress
    from iommukit_oracle.kernel.table import RFC
    from iommukit_oracle.recording import iter_recordings, recording_files, shipped_recordings
    from iommukit_oracle.replay import replay

    names, makers = {kernel.name for kernel in kernels}, {vendor.name for vendor in vendors}
    recordings = [
        recording
        for path in recording_files([shipped_recordings()])
        for recording in iter_recordings(path)
        if recording.kernel in names and recording.vendor in makers
    ]
    with progress(len(recordings), "recorded boots") as tick:
        for recording in recordings:
            table.add_booted([replay(recording, registry)])
            tick()
    for kernel in kernels:
        if kernel.name == RFC:
            table.add_resolved(scenarios, kernel, vendors, registry)
