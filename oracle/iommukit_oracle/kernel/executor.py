"""Playing scenarios on real kernels: every boot of a plan, two at a time."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from iommukit.errors import HardwareLost
from iommukit.kernel.cmdline import kstrtobool, split_cmdline
from iommukit.kernel.kernel import Kernel
from iommukit.machine.model import BootSpec
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import UNDECIDED
from iommukit.vendors import Vendor
from iommukit_oracle.guest.kernels import GuestKernel, debian_kernel
from iommukit_oracle.guest.packages import cache_folder
from iommukit_oracle.kernel.cases import Case
from iommukit_oracle.kernel.plan import Boot, make_plan
from iommukit_oracle.kernel.realisation import Realisation
from iommukit_oracle.kernel.record import BootRecord, RunRecord, StepRecord
from iommukit_oracle.kernel.session import TABLE_OF, Session
from iommukit_oracle.kernel.steps import Player

JOBS = 2
"""Guests at a time: each keeps one processor busy."""
FindKernel = Callable[[str, str], GuestKernel]
"""From a profile's name and Debian's architecture to a kernel."""


def play(
    scenarios: Sequence[Scenario],
    kernels: Sequence[Kernel],
    vendors: Sequence[Vendor],
    *,
    find: FindKernel = debian_kernel,
    jobs: int = JOBS,
) -> Iterator[BootRecord]:
    """Play all cases that apply, and yield each boot when it is over.

    Raises ``InputError`` for a wrong scenario, and where a kernel or QEMU is not to be had.
    """
    plan = make_plan(scenarios, kernels, vendors)
    yield from _never_booted(plan.undecided)
    images: dict[tuple[str, str], GuestKernel] = {}
    for boot in plan.boots:
        if boot.image not in images:
            images[boot.image] = find(*boot.image)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_all_records, boot, images[boot.image]) for boot in plan.boots]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


def _never_booted(undecided: Sequence[tuple[Case, str]]) -> Iterator[BootRecord]:
    """What could not be realised, by kernel and vendor."""
    runs: dict[tuple[str, str], list[RunRecord]] = {}
    for case, reason in undecided:
        run = RunRecord(scenario=case.scenario.scenario, digest=case.digest, undecided=reason)
        runs.setdefault((case.kernel.name, case.vendor.name), []).append(run)
    for (kernel, vendor), some in runs.items():
        yield BootRecord(kernel=kernel, vendor=vendor, runs=tuple(some))


def _all_records(boot: Boot, kernel: GuestKernel) -> list[BootRecord]:
    return list(boot_records(boot, kernel))


def boot_records(boot: Boot, kernel: GuestKernel) -> Iterator[BootRecord]:
    """Boot, and play as many cases as the guest can be brought back from; then boot again for the rest."""
    waiting = list(boot.cases)
    while waiting:
        first = waiting[0]
        runs: list[RunRecord] = []
        try:
            session = Session(boot.realisation, first.machine, first.scenario.boot, kernel)
        except HardwareLost as error:
            yield _lost(boot, kernel, waiting, str(error))
            return
        with session:
            while waiting:
                case = waiting.pop(0)
                run, goes_on = _play(session, case)
                runs.append(run)
                if waiting and case.scenario.steps and not (goes_on and _restored(session)):
                    break
            yield _record(boot, kernel, session, runs)


def _restored(session: Session) -> bool:
    try:
        return session.restore()
    except HardwareLost:
        return False


def _play(session: Session, case: Case) -> tuple[RunRecord, bool]:
    """One case in a guest that is as after boot, and whether the guest still answers."""
    steps: list[StepRecord] = []
    known: int | None = None
    stopped, answers = "", True
    player = Player(session)
    try:
        for step in case.scenario.steps:
            if stopped:
                steps.append(StepRecord(op=step.op, result=UNDECIDED, reason=stopped))
                continue
            done, goes_on = player.play(step)
            steps.append(done)
            if not goes_on:
                known, stopped = len(steps) - 1, f"step {len(steps)} ({step.op}) could not be carried out"
        player.close()
    except HardwareLost as error:
        answers = False
        known = len(steps) if known is None else known
        for step in case.scenario.steps[len(steps) :]:
            steps.append(StepRecord(op=step.op, result=UNDECIDED, reason=str(error)))
    return (
        RunRecord(
            scenario=case.scenario.scenario,
            digest=case.digest,
            names={name: placed.address for name, placed in session.realisation.placed.items()},
            default=default_policy(session),
            boot=session.start,
            reserved=session.regions,
            steps=tuple(steps),
            known_steps=known,
            unsaid=unsaid(case.scenario.boot, case.vendor.name),
            notes=session.realisation.notes,
        ),
        answers,
    )


def default_policy(session: Session) -> str:
    """The system's default: as the kernel's lines tell it.

    Whether flushes wait may be decided late, when the lines have been printed: that shows in the groups of bystanders, functions of
    QEMU's chipset that no driver has wishes for.  Without pass-through an IOMMU wishes all of them to be strict: they tell nothing.
    """
    text = "\n".join(session.log)
    if "Default domain type: Passthrough" in text:
        return "IDENTITY"
    if "Default domain type: Translated" not in text:
        return ""
    mine = {placed.address for placed in session.realisation.placed.values()}
    bystanders = {group.type for group in session.groups if not mine.intersection(group.devices)}.intersection(TRANSLATED)
    if len(bystanders) == 1 and NO_PASSTHROUGH not in session.realisation.options:
        return TRANSLATED[bystanders.pop()]
    return next((policy for policy, words in MODES.items() if words in text), "")


NO_PASSTHROUGH = "pt=off"
"""QEMU's word for a VT-d unit that translates always."""
TRANSLATED = {"DMA": "STRICT", "DMA-FQ": "LAZY"}
"""The policy by a translated group's type."""
MODES = {"LAZY": "invalidation policy: lazy mode", "STRICT": "invalidation policy: strict mode"}


def unsaid(boot: BootSpec, vendor: str) -> tuple[str, ...]:
    """Parts of the lines that say "by command line" of a word that stood for the configuration."""
    if boot.kconfig is None:
        return ()
    words = list(split_cmdline(boot.cmdline))
    given = {name for name, value in words if kstrtobool(value) is not None}
    if vendor in X86 and any(name == "iommu" and {"pt", "nopt"}.intersection((value or "").split(",")) for name, value in words):
        given.add("iommu.passthrough")
    return tuple(part for name, part in TELLING.items() if name not in given)


X86 = frozenset({"intel_vtd", "amd_vi"})
"""Vendors whose architecture has the words pt and nopt of ``iommu=``."""
TELLING = {"iommu.passthrough": "Default domain type", "iommu.strict": "invalidation policy"}
"""By option: the line that says whether it was given."""


def _lost(boot: Boot, kernel: GuestKernel, waiting: Sequence[Case], reason: str) -> BootRecord:
    case = waiting[0]
    runs = tuple(RunRecord(scenario=each.scenario.scenario, digest=each.digest, undecided=reason) for each in waiting)
    return BootRecord(
        kernel=case.kernel.name,
        vendor=case.vendor.name,
        package=kernel.package,
        cmdline=boot.realisation.cmdline,
        runs=runs,
    )


def _record(boot: Boot, kernel: GuestKernel, session: Session, runs: Sequence[RunRecord]) -> BootRecord:
    case = boot.cases[0]
    guest = session.guest
    numbers = (f"{model}={numbers}" for model, numbers in boot.realisation.numbers)
    return BootRecord(
        kernel=case.kernel.name,
        vendor=case.vendor.name,
        package=kernel.package,
        uname=session.uname,
        qemu=" ".join(filter(None, (guest.program.release, boot.realisation.qemu, *numbers))),
        arch=guest.machine.debian,
        cmdline=boot.realisation.cmdline,
        qemu_args=shlex.join([f"qemu-system-{guest.machine.arch}", *map(_without_folder, guest.arguments)]),
        tables=(TABLE_OF[case.vendor.name],) if boot.realisation.regions or boot.realisation.opt_in else (),
        log=session.log,
        groups=session.groups,
        iommus=session.units,
        pci=session.functions,
        set_up=session.set_up,
        later={each.address: each.properties.get("driver", "") for each in boot.realisation.placed.values() if not each.present},
        firmware=_firmware(boot.realisation),
        runs=tuple(runs),
    )


def _firmware(realisation: Realisation) -> dict[str, tuple[str, ...]] | None:
    """The memory that firmware was made to reserve, by the device's address."""
    found: dict[str, tuple[str, ...]] = {}
    for region in realisation.regions:
        found[region.address] = (*found.get(region.address, ()), region.text)
    return found or None


def _without_folder(argument: str) -> str:
    """An argument without the place of the cache, which says nothing."""
    return argument.replace(f"{cache_folder()}/", "")
