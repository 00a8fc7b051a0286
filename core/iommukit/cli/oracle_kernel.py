"""``iommukit oracle kernel``: real Linux kernels as judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iommukit.cli.options import (
    Command,
    Group,
    chosen_kernels,
    chosen_scenarios,
    chosen_vendors,
    json_flag,
    load_registry,
    scenario_option,
    vendor_option,
)
from iommukit.cli.run import full_option, tell

if TYPE_CHECKING:
    from iommukit.kernel.kernel import Kernel
    from iommukit.scenario.model import Scenario
    from iommukit.vendors import Vendor
    from iommukit_oracle.kernel.executor import FindKernel
    from iommukit_oracle.kernel.record import BootRecord

RELEASES_HELP = "6.1, 6.12 or 7.2; may be repeated."
jobs_option = click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Guests at a time.")
image_option = click.option("--image", metavar="FILE", help="Boot this kernel in place of Debian's.")
modules_option = click.option(
    "--modules", metavar="FOLDER", help="Its modules (lib/modules/RELEASE); without, all is taken to be built in."
)


@click.group(
    "kernel",
    cls=Group,
    examples=(
        "iommukit oracle kernel run live-switch.yaml --kernel 6.12 --vendor intel_vtd",
        "iommukit oracle kernel check",
    ),
    invoke_without_command=True,
)
@click.pass_context
def command(context: click.Context) -> None:
    """Real Linux kernels, booted in QEMU, play the same scenarios as the model.

    Debian's packages are fetched into a cache folder ($IOMMUKIT_CACHE, else ~/.cache/iommukit) and never installed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command(
    "run",
    cls=Command,
    examples=(
        "iommukit oracle kernel run live-switch.yaml --kernel 6.12 --vendor intel_vtd",
        "iommukit oracle kernel run scenarios/ --kernel 6.1 --vendor arm_smmu --short",
        "iommukit oracle kernel run live-switch.yaml --kernel rfc --vendor amd_vi --image bzImage",
    ),
)
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@click.option("--kernel", "kernels", multiple=True, required=True, metavar="KERNEL", help=RELEASES_HELP)
@vendor_option
@image_option
@modules_option
@jobs_option
@full_option
@json_flag
@click.pass_context
def run_command(
    context: click.Context,
    scenarios: tuple[str, ...],
    kernels: tuple[str, ...],
    vendors: tuple[str, ...],
    image: str | None,
    modules: str | None,
    jobs: int,
    full: bool | None,
    as_json: bool,
) -> int:
    """Play scenarios on real kernels and judge them.

    The machine is made with QEMU, the steps are carried out in the guest, and each run is judged by what the scenario expects of
    that kernel.  What QEMU or a kernel as it is built cannot show is UNDECIDED, with the reason.  With --image, KERNEL names the
    profile whose expectations count.  Exit code 1 if any run is a FAIL.
    """
    from iommukit.scenario.judge import judge

    registry = load_registry(context, vendors)
    find = find_kernel(image, modules)
    played, makers = chosen_kernels(kernels), chosen_vendors(registry, vendors)
    loaded = {scenario.scenario: scenario for scenario in chosen_scenarios(scenarios)}
    found = {}
    for boot in boots(list(loaded.values()), played, makers, find=find, jobs=jobs):
        for run in boot.runs:
            found[run.scenario, boot.kernel, boot.vendor] = judge(loaded[run.scenario], boot.result(run))
    order = [(name, kernel.name, vendor.name) for name in loaded for kernel in played for vendor in makers]
    if not found and not as_json:
        click.echo("none of these scenarios applies to these vendors")
        return 0
    return tell([(loaded[key[0]], found[key]) for key in order if key in found], full=full, as_json=as_json)


@command.command(
    "record",
    cls=Command,
    examples=(
        "iommukit oracle kernel record -o recordings/",
        "iommukit oracle kernel record --kernel 6.12 --vendor intel_vtd -o recordings/",
    ),
)
@click.option("--kernel", "kernels", multiple=True, metavar="KERNEL", help=f"{RELEASES_HELP}  Default: all three.")
@vendor_option
@scenario_option
@jobs_option
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Where to write KERNEL-VENDOR.jsonl.xz.")
@click.pass_context
def record_command(
    context: click.Context,
    kernels: tuple[str, ...],
    vendors: tuple[str, ...],
    scenarios: tuple[str, ...],
    jobs: int,
    output: str,
) -> int:
    """Play scenarios on real kernels and keep what they did.

    Every boot is kept with the kernel's package, QEMU's version and command line, and each scenario's state, results and log lines;
    `iommukit oracle kernel check --recordings FOLDER` holds the model against them.
    """
    from iommukit_oracle.guest.kernels import RELEASES, debian_kernel
    from iommukit_oracle.kernel.index import write_index
    from iommukit_oracle.kernel.store import write_boots

    registry = load_registry(context, vendors)
    played, makers = chosen_kernels(kernels, tuple(RELEASES)), chosen_vendors(registry, vendors)
    wanted = chosen_scenarios(scenarios)
    folder = Path(output)
    for kernel in played:
        for vendor in makers:
            what = f"{kernel.name} {vendor.name}"
            done = list(boots(wanted, [kernel], [vendor], find=debian_kernel, jobs=jobs, what=what))
            path = write_boots(folder, kernel.name, vendor.name, done)
            undecided = [bool(run.undecided) for boot in done for run in boot.runs]
            real = sum(bool(boot.uname) for boot in done)
            click.echo(f"{path}: {real} boots, {undecided.count(False)} scenarios played, {undecided.count(True)} cannot be")
    click.echo(f"{write_index(folder, wanted, registry)}: what the model agrees with, for iommukit matrix")
    return 0


def boots(
    scenarios: Sequence[Scenario],
    kernels: Sequence[Kernel],
    vendors: Sequence[Vendor],
    *,
    find: FindKernel,
    jobs: int,
    what: str = "guests",
) -> Iterator[BootRecord]:
    """Boot real kernels and let them play all scenarios that apply, with a progress bar of that name."""
    from iommukit.cli.output import progress
    from iommukit_oracle.kernel.cases import cases
    from iommukit_oracle.kernel.executor import play

    with progress(len(list(cases(scenarios, kernels, vendors))), what, least=2, every=1) as tick:
        for boot in play(scenarios, kernels, vendors, find=find, jobs=jobs):
            for _ in boot.runs:
                tick()
            yield boot


def find_kernel(image: str | None, modules: str | None) -> FindKernel:
    """Debian's kernels, or somebody's own image."""
    from iommukit.errors import InputError
    from iommukit_oracle.guest.kernels import GuestKernel, debian_kernel, own_kernel

    if image is None:
        if modules is not None:
            raise InputError("--modules belongs to an --image")
        return debian_kernel
    own = Path(image), Path(modules) if modules is not None else None

    def find(name: str, arch: str) -> GuestKernel:
        return own_kernel(name, *own)

    return find
