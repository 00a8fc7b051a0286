"""The model agrees with a real boot, and is told apart from one that was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import execute
from iommukit_oracle.kernel.agreement import EXPECTATION, NOT_AS_WRITTEN, Agreement, Standing, as_written, check
from iommukit_oracle.kernel.cases import Case, cases
from iommukit_oracle.kernel.differences import STABLE_BACKPORT, Seen, reason_of
from iommukit_oracle.kernel.record import BootRecord, GroupRecord, RunRecord, StateRecord, StepRecord
from iommukit_oracle.kernel.store import Store, iter_boots, shipped_boots
from iommukit_oracle.observations import Observation, Verdict
from iommukit_oracle.recording import GroupEntry

from .conftest import BOUND, LIVE, PLUG, WRITE, case_of, recorded_boot, registry, stand_in, suite

Change = Callable[[RunRecord], RunRecord]


def judged(boot: BootRecord, scenario: str) -> Agreement:
    store = Store()
    store.add(boot)
    (found,) = check([case_of(scenario, boot.kernel, boot.vendor)], store, registry()).agreements
    return found


def changed(boot: BootRecord, scenario: str, change: Change) -> BootRecord:
    runs = tuple(change(run) if run.scenario == scenario else run for run in boot.runs)
    return boot.model_copy(update={"runs": runs})


def differing(agreement: Agreement) -> set[tuple[str, str, str]]:
    """Kind, the kernel's and the model's, of every difference."""
    every = (*agreement.boot, *agreement.observations)
    return {(seen.kind, seen.expected, seen.got) for seen in every if seen.verdict is Verdict.DIFFERS}


def step(number: int, **changes: Any) -> Change:
    def change(run: RunRecord) -> RunRecord:
        steps = [each.model_copy(update=changes) if at == number else each for at, each in enumerate(run.steps, start=1)]
        return run.model_copy(update={"steps": tuple(steps)})

    return change


def state(*groups: tuple[str, tuple[str, ...]]) -> StateRecord:
    made = tuple(GroupRecord(id=number, type=kind, devices=devices) for number, (kind, devices) in enumerate(groups))
    return StateRecord(groups=made, types={name: group.type for group in made for name in group.devices})


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
@pytest.mark.parametrize("scenario", [LIVE, BOUND, WRITE, PLUG])
def test_the_model_agrees(scenario: str, kernel: str) -> None:
    found = judged(recorded_boot(kernel), scenario)
    assert (found.standing, found.reason, differing(found)) == (Standing.AGREES, "", set())
    kinds = {seen.kind for seen in found.observations}
    assert {"type", "group", "regions", "result", "attachments", "default", EXPECTATION} <= kinds
    assert {"log", "group", "type", "regions", "unbind"} <= {seen.kind for seen in found.boot}


@pytest.mark.parametrize(
    ("scenario", "change", "difference"),
    [
        pytest.param(WRITE, step(1, result="EPERM"), ("result", "EPERM", "ok"), id="errno"),
        pytest.param(WRITE, step(1, state=None), ("type", "DMA", "identity"), id="type"),
        pytest.param(WRITE, step(1, attaches=7), ("attachments", "7", "1"), id="attachments"),
        pytest.param(WRITE, step(1, log=("iommu: surprise",)), ("log", '"iommu: surprise"', "nothing"), id="line"),
        pytest.param(
            WRITE,
            lambda run: run.model_copy(update={"boot": state(("DMA", ("nic", "rp1")))}),
            ("group", "nic, rp1", "nic; rp1"),
            id="partition",
        ),
        pytest.param(
            WRITE,
            lambda run: run.model_copy(update={"reserved": {"nic": ("0x0 0x1 msi",)}}),
            ("regions", "0x0 0x1 msi", "0x00000000fee00000 0x00000000feefffff msi"),
            id="regions",
        ),
        pytest.param(WRITE, lambda run: run.model_copy(update={"default": "LAZY"}), ("default", "LAZY", "STRICT"), id="default"),
        pytest.param(PLUG, step(2, state=None), ("type", "identity", "absent"), id="still-there"),
    ],
)
def test_what_a_kernel_did_otherwise_differs(
    scenario: str, change: Change, difference: tuple[str, str, str], boot: BootRecord
) -> None:
    found = judged(changed(boot, scenario, change), scenario)
    assert found.standing is Standing.DIFFERS
    assert difference in differing(found)


def test_a_line_of_boot_that_is_missing_differs(boot: BootRecord) -> None:
    log = tuple(line for line in boot.log if "invalidation policy" not in line)
    found = judged(boot.model_copy(update={"log": log}), WRITE)
    assert found.standing is Standing.DIFFERS
    assert {kind for kind, kernel, _ in differing(found) if kernel == "nothing"} == {"log"}


def test_a_boot_s_own_difference_is_one_of_each_scenario_in_it(boot: BootRecord) -> None:
    broken = boot.model_copy(update={"log": (*boot.log, "iommu: surprise")})
    store = Store()
    store.add(broken)
    found = check([case_of(name) for name in (LIVE, WRITE)], store, registry())
    assert [each.standing for each in found.agreements] == [Standing.DIFFERS, Standing.DIFFERS]
    assert sum(seen.verdict is Verdict.DIFFERS for _, _, seen in found.observations()) == 1


def test_another_digest_is_stale(boot: BootRecord) -> None:
    found = judged(changed(boot, WRITE, lambda run: run.model_copy(update={"digest": "0" * 12})), WRITE)
    assert (found.standing, found.observations) == (Standing.STALE, [])


def test_what_nobody_has_played() -> None:
    found = check([case_of("sysfs-round-trip")], Store(), registry()).agreements[0]
    assert (found.standing, found.reason) == (Standing.MISSING, "no real kernel has played it")


def test_what_could_not_be_realised(boot: BootRecord) -> None:
    never = RunRecord(scenario=WRITE, digest=case_of(WRITE).digest, undecided="QEMU has no such bridge")
    found = judged(boot.model_copy(update={"runs": (never,)}), WRITE)
    assert (found.standing, found.reason) == (Standing.UNDECIDED, "QEMU has no such bridge")


def test_a_step_that_could_not_be_seen(boot: BootRecord) -> None:
    unseen = changed(boot, BOUND, step(2, result="UNDECIDED", reason="nobody looked", log=()))
    found = judged(unseen, BOUND)
    assert (found.standing, found.reason) == (Standing.UNDECIDED, "nobody looked")
    assert EXPECTATION not in {seen.kind for seen in found.observations}


def test_a_machine_that_groups_its_devices_otherwise(boot: BootRecord) -> None:
    """QEMU's port without access control: port and card share a group, and the model agrees as run."""
    case = case_of(WRITE)
    shared = state(("DMA", ("nic", "rp1")))
    run = next(run for run in boot.runs if run.scenario == WRITE)
    steps = (StepRecord(op="write", result="ok", attaches=2, state=state(("identity", ("nic", "rp1")))),)
    run = run.model_copy(update={"boot": shared, "reserved": {}, "steps": steps})
    merged = GroupEntry(id=1, type="DMA", devices=("0000:00:06.0", "0000:01:00.0"), reserved=boot.groups[1].reserved)
    groups = (boot.groups[0], merged, boot.groups[2])
    log = tuple(line.replace("0000:01:00.0: Adding to iommu group 3", "0000:01:00.0: Adding to iommu group 1") for line in boot.log)
    arguments = boot.qemu_args.replace("pcie-root-port,", "pcie-root-port,disable-acs=on,")
    made = boot.model_copy(update={"runs": (run,), "groups": groups, "log": log, "qemu_args": arguments})
    found = judged(made, WRITE)
    assert differing(found) == set()
    assert (found.standing, found.reason) == (Standing.UNDECIDED, NOT_AS_WRITTEN)
    assert case.digest == run.digest


def test_what_follows_a_step_that_was_not_carried_out(boot: BootRecord) -> None:
    def stop(run: RunRecord) -> RunRecord:
        steps = (StepRecord(op="bind", result="UNDECIDED", reason="no such driver"), *run.steps[1:])
        return run.model_copy(update={"steps": steps, "known_steps": 0})

    found = judged(changed(boot, BOUND, stop), BOUND)
    assert (found.standing, found.reason) == (Standing.UNDECIDED, "no such driver")
    assert [seen.verdict for seen in found.observations if seen.kind == "result"] == [Verdict.UNDECIDED] * 2


def test_a_line_that_printk_may_have_left_out() -> None:
    boot = recorded_boot("6.1")
    silent = changed(boot, BOUND, step(2, log=()))
    assert differing(judged(silent, BOUND)) >= {("log", "nothing", '"iommu: Device is still bound to driver"')}
    run = next(run for run in boot.runs if run.scenario == BOUND)
    line = run.steps[1].log[0]
    chatty = changed(silent, WRITE, step(1, log=(line,) * 10))
    undecided = [seen for seen in judged(chatty, BOUND).observations if seen.kind == "log"]
    assert [(seen.verdict, seen.reason) for seen in undecided] == [
        (Verdict.UNDECIDED, "printk leaves lines out that come too often")
    ]


def test_whom_a_claim_s_line_names_says_nothing_and_what_it_says_does() -> None:
    claim = "owner-refused-by-a-direct-region"
    boots = (boot for _, boot in iter_boots(shipped_boots() / "6.12-intel_vtd.jsonl.xz"))
    boot = next(boot for boot in boots if boot.uname and any(run.scenario == claim for run in boot.runs))
    (line,) = next(run for run in boot.runs if run.scenario == claim).steps[0].log
    assert line.startswith("vfio-pci 0000:")
    assert differing(judged(boot, claim)) == set()
    assert differing(judged(changed(boot, claim, step(1, log=(line.replace("vfio-pci", "e1000e"),))), claim)) == set()
    assert {kind for kind, *_ in differing(judged(changed(boot, claim, step(1, log=(f"{line}?",))), claim))} == {"log"}


# ---- differences with a name -----------------------------------------------------------------------------------------


def seen(boot: BootRecord, kind: str, expected: str, got: str) -> Seen:
    return Seen(boot, boot.runs[0], Observation(kind, "somewhere", expected, got, Verdict.DIFFERS))


def test_an_unfinished_line_has_a_name(boot: BootRecord) -> None:
    line = '"iommu: Failed to allocate default IOMMU domain of type 4 for group (null) - Falling back to IOMMU_DOMAIN_DMA"'
    assert str(reason_of(seen(boot, "log", "nothing", line))).startswith("unfinished-line: ")
    assert reason_of(seen(boot, "log", line, "nothing")) is None


def test_debian_s_integrated_graphics_has_a_name(boot: BootRecord) -> None:
    with_option = boot.model_copy(update={"cmdline": "intel_iommu=intgpu_off"})
    assert str(reason_of(seen(with_option, "type", "identity", "DMA"))).startswith("debian-integrated-graphics: ")
    assert reason_of(seen(boot, "type", "identity", "DMA")) is None


def test_a_line_in_pieces_has_a_name_where_the_model_s_goes_on(boot: BootRecord) -> None:
    line = "AMD-Vi: Extended features (0x29d3, 0x0): PreF PPR GT"
    cut = boot.model_copy(update={"log": (*boot.log, line)})
    assert str(reason_of(seen(cut, "log", f'"{line}"', "nothing"))).startswith("cut-line: ")
    assert str(reason_of(seen(cut, "log", "nothing", f'"{line} IA"'))).startswith("cut-line: ")
    assert reason_of(seen(cut, "log", "nothing", f'"{line[:-3]} IA"')) is None


def test_bounce_buffers_that_a_small_guest_lacks_have_a_name(boot: BootRecord) -> None:
    line = "e1000e 0000:01:00.0: DMA bounce buffers are inactive, unable to map unaligned transaction."
    failed = Observation("result", "step 1 (dma)", "EIO", "ok", Verdict.DIFFERS)
    silent = RunRecord(scenario=LIVE, digest="", steps=(StepRecord(op="dma", result="EIO"),))
    told = RunRecord(scenario=LIVE, digest="", steps=(StepRecord(op="dma", result="EIO", log=(line,)),))
    assert str(reason_of(Seen(boot, told, failed))).startswith("no-bounce-buffers: ")
    assert reason_of(Seen(boot, silent, failed)) is None


def lines_of(case: Case, kernel: str) -> tuple[str, ...]:
    result = execute(case.scenario, get_kernel(kernel), case.vendor, registry())
    assert result.boot is not None
    return result.boot.log


def written(case: Case, kernel: str) -> list[Observation]:
    """What a kernel is seen to do as written that does as a profile does."""
    run = stand_in(case, kernel)
    boot = BootRecord(kernel=case.kernel.name, vendor=case.vendor.name, uname="a kernel", log=lines_of(case, kernel), runs=(run,))
    return as_written(boot, run, case, registry())


def test_a_stable_backport_has_a_name() -> None:
    case = case_of("trust-discrete-controller", "6.1")
    known = [seen for seen in written(case, "6.1.192") if seen.verdict is not Verdict.AGREES]
    assert known
    assert {(seen.verdict, seen.reason) for seen in known} == {(Verdict.KNOWN, STABLE_BACKPORT)}
    assert {seen.verdict for seen in written(case_of("trust-discrete-controller", "6.12"), "6.1")} >= {Verdict.DIFFERS}


def test_what_an_expectation_lacks_for_a_named_reason_has_that_name() -> None:
    seen = written(case_of("trust-inherited-downstream", "6.1"), "6.1.192")
    assert [(each.verdict, each.reason) for each in seen if each.kind == EXPECTATION] == [(Verdict.KNOWN, STABLE_BACKPORT)]


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_a_kernel_that_is_as_the_model_agrees_with_it(kernel: str) -> None:
    found = cases(list(suite().values()), [get_kernel(kernel)], list(registry()))
    every = [case for case in found if execute(case.scenario, case.kernel, case.vendor, registry()).boot is not None]
    assert [str(seen) for case in every for seen in written(case, kernel) if seen.verdict is Verdict.DIFFERS] == []
    assert len(every) > 800


def test_a_bare_difference_has_none(boot: BootRecord) -> None:
    assert reason_of(seen(boot, "type", "DMA", "DMA-FQ")) is None
