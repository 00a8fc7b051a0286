"""What recorded boots vouch for: only runs whose every step was seen in the same situation with the same answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommukit.kernel.profiles import get_kernel
from iommukit.report.matrix import build_matrix, matrix_page, summary_page
from iommukit.report.runs import run_case
from iommukit.report.vouchers import Evidence, Vouched, Voucher
from iommukit.scenario.model import Scenario
from iommukit_oracle.kernel.asked import Asked
from iommukit_oracle.kernel.evidence import evidence
from iommukit_oracle.kernel.recorded import INDEX, read_index, recorded
from iommukit_oracle.kernel.recorded_index import build_index, cells_of, main
from iommukit_oracle.kernel.seen import Seen, see
from iommukit_oracle.kernel.situations import Fact
from iommukit_oracle.recording import Recording, load_recordings, recording_files, shipped_recordings

from .conftest import registry, suite

Cell = tuple[str, str, str]


@cache
def recordings(name: str) -> tuple[Recording, ...]:
    return tuple(load_recordings(shipped_recordings() / f"{name}.jsonl.xz"))


@cache
def seen() -> dict[str, Seen]:
    """What each shipped file shows."""
    files = recording_files([shipped_recordings()])
    return {path.name.removesuffix(".jsonl.xz"): see(load_recordings(path), registry()) for path in files}


@cache
def shown() -> dict[Cell, list[list[Fact]]]:
    """Everything that the runs show which the shipped recordings vouch for."""
    found = {}
    for scenario, kernel, vendor in recorded(shipped_recordings()):
        asked = Asked(suite()[scenario].steps, kernel)
        run_case(suite()[scenario], get_kernel(kernel), registry().get(vendor), registry(), watchers=(asked,))
        assert not asked.unlike
        found[scenario, kernel, vendor] = asked.facts
    return found


def of(cell: Cell) -> Seen:
    return seen()[f"{cell[1]}-{cell[2]}"]


# ---- the index -------------------------------------------------------------------------------------------------------


def test_the_shipped_index_is_what_the_recordings_give() -> None:
    made = build_index(shipped_recordings(), registry())
    assert read_index(shipped_recordings()) == made, "write it: python -m iommukit_oracle.kernel.recorded_index"


def test_how_many_cells_each_kernel_and_vendor_has() -> None:
    counts = Counter((kernel, vendor) for _, kernel, vendor in recorded(shipped_recordings()))
    print(*sorted(f"{kernel} {vendor}: {count}" for (kernel, vendor), count in counts.items()), sep="\n")
    assert counts.total() >= 900
    assert min(counts.values()) >= 20
    assert {kernel for kernel, _ in counts} == {"6.1", "6.12", "7.2", "rfc-as-posted", "rfc-unconverted"}
    assert not any(kernel == "rfc" for kernel, _ in counts), "nobody has built that kernel"


def test_no_cell_is_contradicted() -> None:
    assert [place for place, found in recorded(shipped_recordings()).items() if not found.agrees] == []


def test_no_situation_is_told_too_coarsely() -> None:
    """Two kernels of one release never answer differently in what counts as one situation."""
    ambiguous = [situation for each in seen().values() for situation, answers in each.answers.items() if len(answers) > 1]
    assert ambiguous == []
    assert sum(len(each.answers) for each in seen().values()) > 2_000


def test_another_file_or_none_vouches_for_nothing(tmp_path: Path) -> None:
    name = "7.2-s390.jsonl.xz"
    for each in (name, INDEX):
        copy(shipped_recordings() / each, tmp_path)
    assert {(kernel, vendor) for _, kernel, vendor in recorded(tmp_path)} == {("7.2", "s390")}
    copy(shipped_recordings() / "6.12-s390.jsonl.xz", tmp_path / name)
    assert recorded(tmp_path) == {}
    (tmp_path / name).unlink()
    assert recorded(tmp_path) == {}
    (tmp_path / INDEX).unlink()
    assert recorded(tmp_path) == {}


def test_the_command_writes_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(shipped_recordings() / "6.1-s390.jsonl.xz", tmp_path)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[1:] == ["6.1", "s390"]
    assert len(recorded(tmp_path)) == sum(
        kernel == "6.1" and vendor == "s390" for _, kernel, vendor in recorded(shipped_recordings())
    )
    (tmp_path / INDEX).write_bytes(b"no index")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main(["--all"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


# ---- soundness -------------------------------------------------------------------------------------------------------


def test_every_cell_is_vouched_for_by_what_it_names() -> None:
    """Its recordings alone show everything, each of them something that the others do not, and there are few of them."""
    for cell, found in recorded(shipped_recordings()).items():
        names = set(found.recordings)
        sources = [{name for fact in alternatives for name in of(cell).shows(fact)} & names for alternatives in shown()[cell]]
        assert all(sources), cell
        assert set().union(*sources) == names
        assert len(names) <= 4


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_cell_with_another_answer_is_contradicted(data: st.DataObject) -> None:
    """Whichever of the answers is altered: an errno, a type, who shares a group, the default."""
    cell = data.draw(st.sampled_from(sorted(shown())))
    facts = shown()[cell]
    number = data.draw(st.integers(0, len(facts) - 1))
    answers = {answer for answers in of(cell).answers.values() for answer in answers} | {"EIO", "unknown"}
    (kept,) = {answer for _, answer in facts[number]}
    other = data.draw(st.sampled_from(sorted(answers - {kept})))
    altered = [*facts[:number], [(situation, other) for situation, _ in facts[number]], *facts[number + 1 :]]
    assert of(cell).vouches(facts)
    assert of(cell).vouches(altered) == ()
    assert of(cell).against(altered)


def test_every_answer_of_every_cell_counts() -> None:
    for cell, facts in shown().items():
        for number, alternatives in enumerate(facts):
            altered = [*facts[:number], [(situation, "another") for situation, _ in alternatives], *facts[number + 1 :]]
            assert of(cell).vouches(altered) == ()


@pytest.mark.parametrize("name", ["7.2-s390", "6.12-amd_vi", "rfc-as-posted-intel_vtd"])
def test_recordings_taken_away_take_what_they_vouch_for(name: str) -> None:
    kernel, _, vendor = name.rpartition("-")
    held = {cell: found for cell, found in recorded(shipped_recordings()).items() if cell[1:] == (kernel, vendor)}
    some = sorted({each for found in held.values() for each in found.recordings})[::3]
    for gone in some:
        left = see((each for each in recordings(name) if each.id != gone), registry())
        for cell in held:
            sources = [{each for fact in alternatives for each in of(cell).shows(fact)} for alternatives in shown()[cell]]
            assert bool(left.vouches(shown()[cell])) == ({gone} not in sources), (cell, gone)


def test_two_answers_in_one_situation_vouch_for_nothing() -> None:
    told = Seen()
    told.note(("here", "ok"), "one")
    assert told.vouches([[("here", "ok")]]) == ("one",)
    told.note(("here", "EBUSY"), "two")
    assert told.vouches([[("here", "ok")]]) == ()
    assert told.against([[("here", "EPERM")]]) == ()


def test_a_recording_that_differs_shows_nothing_of_it() -> None:
    """What the model did not agree with is not taken for what was seen."""
    (recording,) = (each for each in recordings("7.2-s390") if each.id == "7.2-s390-strict1")
    wrong = [group.model_copy(update={"type": "identity"}) for group in recording.groups]
    told = see([recording.model_copy(update={"groups": tuple(wrong)})], registry())
    assert not any(situation.startswith(("type ", "default ")) for situation in told.answers)
    assert any(situation.startswith("type ") for situation in see([recording], registry()).answers)


def _cells(scenarios: Sequence[Scenario], kernel: str, vendor: str) -> set[str]:
    return set(cells_of(seen()[f"{kernel}-{vendor}"], kernel, vendor, registry(), scenarios))


def _scenario(name: str, **more: object) -> Scenario:
    port = {"name": "rp1", "kind": "root_port", "acs": ["SV", "RR", "CR", "UF"], "address": "00:01.0", "buses": "01"}
    document = {
        "scenario": name,
        "machine": {"machine": name, "devices": [port, {"name": "nic", "parent": "rp1", "address": "01:00.0"}]},
        "expect": {"*": {"boot": {"nic": "identity"}}},
    }
    return Scenario.model_validate({**document, **more})


PASSTHROUGH = {"cmdline": "iommu.passthrough=1"}


def test_a_scenario_written_on_the_spot() -> None:
    seen_often = _scenario("seen", boot=PASSTHROUGH)
    by_build = _scenario("by-build", boot={"kconfig": "passthrough"})
    unseen_words = _scenario("words", boot={"cmdline": "iommu.passthrough=maybe iommu.passthrough=1"})
    faulty = _scenario("faulty", boot=PASSTHROUGH, steps=[{"inject": {"hook": "attach_dev", "error": "EIO"}}])
    assert _cells([seen_often, by_build, unseen_words, faulty], "6.12", "amd_vi") == {"seen", "by-build"}


@pytest.mark.parametrize(("vendor", "alike"), [("intel_vtd", True), ("arm_smmu", False)])
def test_another_rule_of_trust_makes_nothing_alike(vendor: str, alike: bool) -> None:
    """Mainline 6.1 distrusts what is below an external port anywhere, 6.1.192, which was recorded, on x86 alone."""
    port = {"name": "rp1", "kind": "root_port", "external_facing": True, "address": "00:01.0", "buses": "01"}
    machine = {"machine": "dock", "devices": [port, {"name": "nic", "parent": "rp1", "address": "01:00.0"}]}
    scenario = _scenario("dock", machine=machine, expect={})
    asked = Asked(scenario.steps, "6.1")
    run_case(scenario, get_kernel("6.1"), registry().get(vendor), registry(), watchers=(asked,))
    assert asked.unlike == ("" if alike else "trust")


# ---- the matrix ------------------------------------------------------------------------------------------------------


def test_the_matrix_says_which_recordings() -> None:
    cell = next(cell for cell, found in recorded(shipped_recordings()).items() if len(found.recordings) == 2)
    scenario, kernel, vendor = cell
    makers = [registry().get(vendor)]
    kernels = [get_kernel(kernel)]
    vouching = evidence(makers, recordings=shipped_recordings())
    matrix = build_matrix([suite()[scenario]], kernels, makers, registry(), evidence=vouching)
    found = matrix.rows[0].cells[0].vouched
    assert found == Vouched(Voucher.RECORDING, recordings=recorded(shipped_recordings())[cell].recordings)
    assert found.to_json() == {"by": "recording", "recordings": list(found.recordings)}
    assert ["recording", "r", "1"] in [line.split() for line in summary_page(matrix).lines()]
    assert "PASS     r   " in matrix_page(matrix).lines()[1]
    wrong = Evidence(recorded={cell: replace(vouching.recorded[cell], agrees=False)})
    matrix = build_matrix([suite()[scenario]], kernels, makers, registry(), evidence=wrong)
    assert any(line.startswith(f"contradicted by {found.recordings[0]}") for line in summary_page(matrix).lines())


def test_hardware_is_told_beside_recordings() -> None:
    found = Vouched(Voucher.RECORDING, recordings=("a",), tried=True)
    assert found.text == "recording (a) and qemu"
    assert found.to_json() == {"by": "recording", "recordings": ["a"], "tried": True}
