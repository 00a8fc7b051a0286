"""``iommukit oracle``: the judges of the model."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from iommukit.cli import oracle_check, oracle_kernel, oracle_trace
from iommukit.cli.options import (
    KERNEL_HELP,
    Command,
    Group,
    chosen_kernels,
    chosen_vendors,
    json_flag,
    load_registry,
    vendor_option,
)

if TYPE_CHECKING:
    from iommukit.hw.platforms import PlatformFactory
    from iommukit.kernel.kernel import Kernel
    from iommukit.report.hardware import Examined, HardwareCase
    from iommukit.vendors import Vendor, VendorRegistry
    from iommukit_conformance.case import Case

PROBE = "PT-12"
"""The rule that shows whether anything works at all: a device reads and writes what is mapped."""


@click.group(
    "oracle",
    cls=Group,
    examples=("iommukit oracle hardware --probe", "iommukit oracle kernel check"),
    invoke_without_command=True,
)
@click.pass_context
def command(context: click.Context) -> None:
    """Ask judges that share no code with the model."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


oracle_kernel.command.add_command(oracle_check.command)
oracle_kernel.command.add_command(oracle_trace.command)
command.add_command(oracle_kernel.command)


@command.command(
    "hardware",
    cls=Command,
    examples=(
        "iommukit oracle hardware --probe",
        "iommukit oracle hardware --vendor arm_smmu --kernel 7.2",
        "iommukit oracle hardware --case TLB- --case blocked --full",
        "iommukit oracle hardware --vendor s390 --on model",
    ),
)
@vendor_option
@click.option("--kernel", "kernels", multiple=True, metavar="KERNEL", help=f"{KERNEL_HELP}  Default: 6.1 and 7.2.")
@click.option("--case", "texts", multiple=True, metavar="TEXT", help="Only cases with this in their rule or name; may be repeated.")
@click.option("--on", "hardware", default="qemu", metavar="HARDWARE", show_default=True, help="What to run on: qemu or model.")
@click.option("--probe", is_flag=True, help="Only look whether it is there and works: one case, kernel 7.2.")
@click.option("--full", is_flag=True, help="Tell of every case, not only of those that did not pass.")
@json_flag
@click.pass_context
def hardware_command(
    context: click.Context,
    vendors: tuple[str, ...],
    kernels: tuple[str, ...],
    texts: tuple[str, ...],
    hardware: str,
    probe: bool,
    full: bool,
    as_json: bool,
) -> int:
    """Run the vendors' drivers on the IOMMUs that QEMU emulates.

    The hardware cases of the conformance suite are carried out: page tables, invalidation, faults, attachment.  QEMU decodes the
    tables and commands that a driver writes, and its devices do the DMA.  What a QEMU gets wrong is declared by the vendor; it is
    an XFAIL, and a FAIL once it passes.  Exit code 1 if any case is a FAIL or cannot be examined; 2 if QEMU is not installed.
    """
    from iommukit.cli.output import progress, show, show_json
    from iommukit.errors import InputError
    from iommukit.hw.platforms import platform_factory
    from iommukit.report.hardware import hardware_page
    from iommukit_conformance.selection import EMULATED

    if "" in texts:
        raise InputError("--case: an empty text is in every rule")
    make = platform_factory(hardware)
    registry = load_registry(context, vendors)
    makers = chosen_vendors(registry, vendors)
    played = chosen_kernels(kernels, EMULATED[-1:] if probe else EMULATED)
    cases = _chosen_cases((*texts, PROBE) if probe else texts)
    if not cases:
        raise InputError(f"no hardware case has {' or '.join(map(repr, texts))} in its rule or name")
    examined = [_look(vendor, make, hardware, insist=bool(vendors)) for vendor in makers]
    runs = [
        (each, kernel, case)
        for each in examined
        if not each.reason
        for kernel in played
        for case in cases
        if case.fits(kernel.name, kernel.era)
    ]
    with _lost_interrupts() as check, progress(len(runs), "hardware", least=2, every=1) as tick:
        for each in examined:
            mine = [(kernel, case) for other, kernel, case in runs if other is each]
            done: list[HardwareCase] = []
            for result in _carry_out(registry, each.vendor, mine, hardware):
                done.append(result)
                tick()
                check()
            each.cases = done
    if as_json:
        show_json({"vendors": [each.to_json() for each in examined]})
    else:
        show(hardware_page(examined, full=full))
    return int(any(each.bad for each in examined))


def _chosen_cases(texts: Sequence[str]) -> list[Case]:
    """The suite's hardware cases with one of these texts in rule or name; all without texts."""
    from iommukit_conformance.case import Stage
    from iommukit_conformance.suite import cases

    return [
        case
        for case in cases()
        if case.stage is Stage.HARDWARE and any(text in (case.rule or "") or text in case.name for text in texts or ("",))
    ]


def _look(vendor: Vendor, make: PlatformFactory, hardware: str, *, insist: bool) -> Examined:
    """Whether a vendor's hardware is to be had at all: raises ``InputError`` where it is missing on this computer.

    Where there is none at all, that is the answer, unless somebody has asked for this vendor.
    """
    from iommukit.errors import NotApplicable
    from iommukit.report.hardware import Examined

    try:
        with make(vendor, "") as platform:
            variants = platform.emulation.variants if platform.emulation else vendor.declaration.hardware_variants
            return Examined(vendor.name, platform.name, variants=tuple(variants))
    except NotApplicable as error:
        if insist:
            raise
        return Examined(vendor.name, hardware, str(error))


def _carry_out(registry: VendorRegistry, vendor: str, runs: Sequence[tuple[Kernel, Case]], hardware: str) -> Iterator[HardwareCase]:
    """Run cases against a vendor."""
    from iommukit.report.hardware import HardwareCase
    from iommukit.scenario.result import Outcome
    from iommukit_conformance.case import HarnessFault, decide
    from iommukit_conformance.lab import Bench

    bench = Bench(registry, hardware)
    for kernel, case in runs:
        rule, name = case.rule or "", case.name
        try:
            verdict = decide(case, bench.lab(vendor, kernel))
        except HarnessFault as fault:
            yield HardwareCase(rule, name, kernel.name, Outcome.UNDECIDED, f"the suite is wrong here: {fault}", fault=True)
        else:
            findings = tuple(finding.text for finding in verdict.findings)
            yield HardwareCase(rule, name, kernel.name, verdict.outcome, verdict.reason, findings, verdict.fault)


@contextmanager
def _lost_interrupts() -> Iterator[Callable[[], None]]:
    """Yields what raises ``KeyboardInterrupt`` where one has been lost.

    Python drops what is raised in a callback of the garbage collector, and hypothesis has one.
    """
    lost = False

    def hear(number: int, frame: object) -> None:
        nonlocal lost
        lost = True
        raise KeyboardInterrupt

    def check() -> None:
        if lost:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
