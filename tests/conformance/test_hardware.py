"""The machinery of hardware cases: rigs, stories, mistakes, emulators that are missing or get something wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from iommukit.domain import Prot
from iommukit.errors import HardwareLost, InputError, NotApplicable
from iommukit.hookspecs import Emulation, Gather, Mistake, VendorDeclaration, hookimpl
from iommukit.hw.platform import ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance import hardware as hardware_module
from iommukit_conformance.abstract_map import diverges
from iommukit_conformance.case import Findings, HarnessFault, Stage, decide, hold
from iommukit_conformance.hardware import on_hardware, open_rig, variants
from iommukit_conformance.lab import Bench, Lab
from iommukit_conformance.reference import NAME, PagedDomain, Reference
from iommukit_conformance.rig import ELSEWHERE, Rig
from iommukit_conformance.selection import select
from iommukit_conformance.suite import cases, runs_on
from iommukit_conformance.summary import Matrix
from iommukit_conformance.wrong.judge import mistakes_of, try_mistake
from iommukit_conformance.wrong.runner import judge_on_hardware
from iommukit_conformance.wrong.slips import SLIPS, MapsOneMore, Slip

MACHINE = {
    "machine": "emulated",
    "devices": [
        {"name": name, "address": f"0000:00:{slot:02x}.0", "id": "8086:10d3", "class": "020000", "kind": "endpoint"}
        for name, slot in (("nic", 3), ("second", 4))
    ],
}


def registry_of(*wrappers: object) -> VendorRegistry:
    registry = VendorRegistry()
    registry.register(Reference(), NAME)
    for wrapper in wrappers:
        registry = registry.wrapped(wrapper)
    return registry


def lab_of(*wrappers: object, kernel: str = "rfc", hardware: str = "model") -> Lab:
    return Bench(registry_of(*wrappers), hardware).lab(NAME, get_kernel(kernel))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with open_rig(lab_of()) as rig:
        yield rig


# ---- rigs ------------------------------------------------------------------------------------------------------------


def test_a_read_says_where_it_has_read(rig: Rig) -> None:
    domain = rig.domain()
    iova, physical = rig.buffer(domain, 0x2000)
    assert rig.reached(rig.nic, iova, iova + 0x1010, iova + 0x2000) == [physical, physical + 0x1010, None]
    rig.memory.write(physical, b"somebody else's!")
    assert rig.reached(rig.nic, iova) == [ELSEWHERE]


def test_a_write_lands_or_does_not(rig: Rig) -> None:
    domain = rig.domain()
    iova, physical = rig.buffer(domain, 0x1000)
    readable, other = rig.buffer(domain, 0x1000, prot=Prot.READ)
    assert rig.lands(rig.nic, iova, physical)
    assert rig.memory.word(physical) == physical, "it is stamped again"
    assert not rig.lands(rig.nic, iova, other)
    assert not rig.lands(rig.nic, readable, other)
    assert [fault.iova for fault in rig.faults()] == [readable]
    assert rig.faults() == []


def test_expectations_are_lines(rig: Rig) -> None:
    domain = rig.domain()
    iova, physical = rig.buffer(domain, 0x1000)
    assert set(rig.expect(rig.nic, iova, 0x1000, physical)) == {None}
    wrong = [line for line in rig.expect(rig.nic, iova, 0x1000, None, " here") if line]
    assert wrong[0] == f"nic at {iova:#x} here reaches {physical:#x}; nothing was expected"


def test_addresses_of_a_test_do_not_overlap(rig: Rig) -> None:
    domain = rig.domain()
    taken: list[range] = []
    for size, align in ((0x1000, 0), (1 << 21, 1 << 21), (0x5000, 0), (1 << 30, 1 << 30), (0x1000, 0)):
        iova = rig.iovas(domain, size, align)
        assert not iova % (align or 0x1000)
        assert all(iova + size <= other.start or other.stop <= iova for other in taken)
        taken.append(range(iova, iova + size))


def test_a_busy_device_reads_between_register_writes(rig: Rig) -> None:
    domain = rig.domain()
    iova, _ = rig.buffer(domain, 0x1000)
    rig.faults()
    with rig.busy(rig.nic, iova + 0x4000):
        rig.unmap(domain, iova, 0x1000)
    assert [fault.iova for fault in rig.faults()] == [iova + 0x4000]


# ---- stories ---------------------------------------------------------------------------------------------------------


def test_a_right_driver_has_no_bad_story(rig: Rig) -> None:
    assert diverges(rig) == ""


def test_a_bad_story_is_a_short_one() -> None:
    with open_rig(lab_of(MapsOneMore())) as rig:
        story = diverges(rig)
    assert story.startswith("map 1 x ")
    assert story.count(";") <= 2


# ---- the suite on hardware -------------------------------------------------------------------------------------------


def test_the_reference_passes() -> None:
    assert [(ran.case.name, ran.verdict.findings) for ran in judge_on_hardware(Reference)] == []


def test_variants_are_tried_once_for_each_generation_of_drivers() -> None:
    assert list(variants(lab_of())) == ["", "emulated"]
    assert list(variants(lab_of(kernel="rfc-as-posted"))) == [""]


def test_a_finding_names_its_variant() -> None:
    @on_hardware("PT-02")
    def test_emulated_units_are_found(rig: Rig) -> Findings:
        yield hold(not rig.system.machine.hardware, "there")

    verdict = decide(test_emulated_units_are_found, lab_of())
    assert [finding.text for finding in verdict.findings] == ["with emulated: there"]


class Paper:
    """A vendor of policy alone."""

    @hookimpl
    def declare(self) -> Any:
        return Reference().declare()


def test_a_vendor_without_hardware_is_not_applicable() -> None:
    registry = VendorRegistry()
    registry.register(Paper(), "paper")
    lab = Bench(registry).lab("paper", get_kernel("rfc"))
    for case in cases():
        if case.stage is Stage.HARDWARE and not case.kernels:
            verdict = decide(case, lab)
            assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLICABLE, "paper has no page tables")


# ---- emulators -------------------------------------------------------------------------------------------------------


class Emulated(ModelPlatform):
    """The model in the place of an emulator."""

    name = "emulator 1.0"
    emulation = Emulation(
        "none",
        (),
        MACHINE,
        deviations={"PT-02": "it counts from one", "PT-12": "it is read-only"},
        absent={"FAULT-01": "it tells nothing"},
        variants={
            "other": Emulation(
                "none", (), MACHINE, deviations={"PT-02": "it counts down", "PT-04": "it forgets"}, config={"BIG": True}
            )
        },
    )

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.emulation = self.emulation.machine_of(variant)


class Emulating:
    """The hook that says so."""

    @hookimpl
    def emulation(self) -> Emulation:
        return Emulated.emulation


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(hardware_module, "platform_factory", lambda name: lambda vendor, variant: Emulated(variant))
    return lab_of(Emulating(), hardware="emulator")


def find(rule: str) -> Any:
    return next(case for case in cases() if case.rule == rule)


def test_a_deviation_that_passes_is_a_failure(emulated: Lab) -> None:
    verdict = decide(find("PT-12"), emulated)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.findings[0].text == "passes, though it is declared to fail: it is read-only"


def test_a_deviation_that_fails_is_expected(emulated: Lab) -> None:
    @on_hardware("PT-02")
    def test_counting(rig: Rig) -> Findings:
        yield "off by one"

    verdict = decide(test_counting, emulated)
    assert (verdict.outcome, verdict.reason) == (Outcome.XFAIL, "it counts from one; it counts down")


def test_variants_of_an_emulator_are_those_of_its_machine(emulated: Lab) -> None:
    assert list(variants(emulated)) == ["", "other"]
    assert list(variants(lab_of(Emulating(), kernel="rfc-as-posted", hardware="emulator"))) == [""]


def test_each_machine_has_its_own_deviations(emulated: Lab) -> None:
    @on_hardware("PT-04")
    def test_forgetting(rig: Rig) -> Findings:
        yield hold(not rig.system.boot.config, "gone")

    verdict = decide(test_forgetting, emulated)
    assert (verdict.outcome, verdict.reason) == (Outcome.XFAIL, "it forgets")
    assert [finding.text for finding in verdict.findings] == ["with other: gone"]


def test_a_deviation_of_another_machine_is_no_excuse(emulated: Lab) -> None:
    @on_hardware("PT-04")
    def test_forgetting(rig: Rig) -> Findings:
        yield "gone"

    verdict = decide(test_forgetting, emulated)
    assert verdict.outcome is Outcome.FAIL
    assert [(finding.text, finding.expected) for finding in verdict.findings] == [("gone", ""), ("with other: gone", "it forgets")]


def test_each_deviation_has_to_be_found_where_it_is_declared(emulated: Lab) -> None:
    @on_hardware("PT-02")
    def test_counting(rig: Rig) -> Findings:
        yield hold(rig.system.boot.config, "from one")

    verdict = decide(test_counting, emulated)
    assert verdict.outcome is Outcome.FAIL
    assert [finding.text for finding in verdict.findings] == [
        "from one",
        "with other: passes, though it is declared to fail: it counts down",
    ]


def test_what_is_expected_does_not_end_a_search(emulated: Lab) -> None:
    @on_hardware("PT-12")
    def test_reading(rig: Rig) -> Findings:
        yield "not written" if not rig.system.boot.config else "not read"

    verdict = decide(test_reading, emulated, enough=1)
    assert [finding.text for finding in verdict.findings] == ["not written", "with other: not read"]


def test_what_is_absent_is_not_applicable(emulated: Lab) -> None:
    plain = lab_of(Emulating(), kernel="rfc-as-posted", hardware="emulator")
    verdict = decide(find("FAULT-01"), plain)
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLICABLE, "emulator 1.0: it tells nothing")
    assert decide(find("FAULT-01"), emulated).outcome is Outcome.PASS, "the other machine tells"


def test_other_rules_are_as_ever(emulated: Lab) -> None:
    assert decide(find("TLB-01"), emulated).outcome is Outcome.PASS


def test_a_dead_emulator_is_a_finding(emulated: Lab) -> None:
    @on_hardware("PT-03")
    def test_dying(rig: Rig) -> Findings:
        yield None
        raise HardwareLost("emulator 1.0 has died: assertion failed")

    verdict = decide(test_dying, emulated)
    assert verdict.outcome is Outcome.FAIL
    assert "emulator 1.0 has died" in verdict.findings[0].text


def _missing(name: str) -> Any:
    raise InputError("it is not installed")


def test_a_missing_emulator_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(hardware_module, "platform_factory", _missing)
    verdict = decide(find("PT-02"), lab_of(Emulating(), hardware="emulator"))
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "there is no emulator here: it is not installed")


def test_a_missing_emulator_is_an_error_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(hardware_module, "platform_factory", _missing)
    with pytest.raises(HarnessFault, match="not installed"):
        decide(find("PT-02"), lab_of(Emulating(), hardware="emulator"))


def test_other_machines_are_for_the_model(emulated: Lab) -> None:
    with pytest.raises(NotApplicable, match="other devices"):
        open_rig(emulated, devices=({"name": "nic", "role": "direct-region"},))


# ---- mistakes --------------------------------------------------------------------------------------------------------

VENDOR = registry_of().get(NAME)


@pytest.mark.parametrize("mistake", mistakes_of(VENDOR), ids=lambda mistake: mistake.name)
def test_each_is_rejected_by_its_rule(mistake: Mistake) -> None:
    tried = try_mistake(VENDOR, mistake)
    assert tried.outcome is Outcome.PASS, tried.found


def test_there_are_enough_that_every_driver_can_make() -> None:
    assert len(SLIPS) >= 12
    assert len({slip.sentence for slip in SLIPS}) == len(SLIPS)
    assert {slip.rule.partition("-")[0] for slip in SLIPS} == {"PT", "TLB", "FAULT", "ATTACH"}


def test_a_harmless_mistake_is_noticed() -> None:
    class Harmless(Slip):
        @hookimpl(wrapper=True)
        def map_pages(self) -> Any:
            self.committed += 1
            return (yield)

    tried = try_mistake(VENDOR, Mistake("harmless", "It counts.", "PT-02", Harmless))
    assert (tried.outcome, tried.found) == (Outcome.FAIL, "accepted")


def test_a_mistake_without_an_occasion_is_not_applicable() -> None:
    tried = try_mistake(VENDOR, Mistake("idle", "It does nothing.", "PT-02", Slip))
    assert (tried.outcome, tried.found) == (Outcome.NOT_APPLICABLE, "reference gives no occasion for it")


def test_what_cannot_be_seen_is_not_tried() -> None:
    tried = try_mistake(VENDOR, Mistake("unseen", "It hides.", "PT-02", Slip, "nobody looks"), "emulator")
    assert (tried.outcome, tried.found) == (Outcome.NOT_APPLICABLE, "nobody looks")


class FlushesAll(Reference):
    """Each invalidation takes the whole domain; the suite is told so."""

    @hookimpl
    def declare(self) -> VendorDeclaration:
        return replace(super().declare(), unseen={"syncs-half": "all or nothing", "never-syncs": "a lie"})

    @hookimpl
    def iotlb_sync(self, domain: PagedDomain, gather: Gather) -> None:
        domain.control.forget_domain(domain)
        domain.control.sync(domain, gather)


@pytest.mark.parametrize(
    ("name", "outcome", "found"),
    [
        ("syncs-half", Outcome.NOT_APPLICABLE, "all or nothing"),
        ("syncs-too-early", Outcome.PASS, "reaches"),
        ("never-syncs", Outcome.FAIL, "rejected, although the declaration says that it cannot be seen: a lie"),
    ],
)
def test_mistakes_of_a_driver_whose_invalidations_take_everything(name: str, outcome: Outcome, found: str) -> None:
    vendor = VendorRegistry().register(FlushesAll(), NAME)
    tried = try_mistake(vendor, next(slip for slip in SLIPS if slip.name == name))
    assert tried.outcome is outcome
    assert found in tried.found


def test_the_table_has_a_column_for_each_hardware() -> None:
    matrix = Matrix()
    common = {"rule": "SUITE-2", "title": "T.", "stage": "wrong", "vendor": "acme", "kernel": "*"}
    mistake = {"rule": "TLB-01", "sentence": "It hurries."}
    matrix.add({**common, "case": "hurries", "outcome": "PASS", "mistake": mistake, "hardware": "model"})
    matrix.add({**common, "case": "hurries", "outcome": "N/A", "reason": "too slow", "mistake": mistake, "hardware": "qemu"})
    head, model, emulator, legend = matrix.mistakes()
    assert head.split()[:6] == ["vendor", "mistake", "by", "rule", "model", "qemu"]
    assert model.split()[:5] == ["acme", "hurries", "TLB-01", "rejected", "-"]
    assert emulator.split()[:5] == ["acme", "hurries", "TLB-01", "-", "unseen"]
    assert "(1 of 1 rejected by the rule that names it)" in head
    assert legend.startswith("- not tried in this session")


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_an_emulator_is_for_two_kernels_and_hardware_cases_only() -> None:
    assert [kernel.name for kernel in select(hardware="qemu").kernels] == ["6.1", "7.2"]
    assert [kernel.name for kernel in select(hardware="qemu", kernels=["rfc"]).kernels] == ["rfc"]
    assert len(select().kernels) > 2
    left = {case.stage for case in cases() if runs_on(case, "qemu")}
    assert left == {Stage.SMOKE, Stage.HARDWARE}


def test_hardware_that_does_not_exist_is_bad_usage() -> None:
    with pytest.raises(InputError, match="no hardware 'paper'; installed: model, qemu"):
        select(hardware="paper")
