"""What vouches for a cell of the matrix: only a real kernel's record of this very scenario and of this very answer."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from iommukit.cli import matrix as matrix_command
from iommukit.cli.main import cli
from iommukit.errors import InputError
from iommukit.kernel.profiles import get_kernel
from iommukit.machine.model import Machine
from iommukit.report.html import matrix_html
from iommukit.report.matrix import Cell, Matrix, build_matrix, summary_page
from iommukit.report.vouchers import Vouched, Voucher
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome
from iommukit_oracle.kernel.evidence import INDEX, Entry, evidence, read_index
from iommukit_oracle.kernel.index import build_index, write_index
from iommukit_oracle.kernel.record import BootRecord, RunRecord
from iommukit_oracle.kernel.store import load_store, shipped_boots, write_boots

from .conftest import BOUND, LIVE, WRITE, registry, suite

RELEASE = "6.12.95+deb12-amd64"
KERNELS = ("rfc", "6.1", "6.12")


def index(folder: Path, boot: BootRecord) -> None:
    write_boots(folder, boot.kernel, boot.vendor, [boot])
    write_index(folder, registry=registry())


@pytest.fixture
def folder(boot: BootRecord, tmp_path: Path) -> Path:
    index(tmp_path, boot)
    return tmp_path


def look(folder: Path, *scenarios: Scenario) -> Matrix:
    vendors = [registry().get("intel_vtd"), registry().get("amd_vi")]
    chosen = scenarios or (suite()[WRITE], suite()[BOUND])
    kernels = [get_kernel(name) for name in KERNELS]
    return build_matrix(chosen, kernels, vendors, registry(), evidence=evidence(vendors, folder))


def cell(matrix: Matrix, scenario: str = WRITE, kernel: str = "6.12", vendor: str = "intel_vtd") -> Cell:
    (row,) = (row for row in matrix.rows if row.scenario.scenario == scenario)
    (found,) = (each for each in row.cells if (each.kernel, each.vendor) == (kernel, vendor))
    return found


def by(matrix: Matrix, scenario: str = WRITE, kernel: str = "6.12", vendor: str = "intel_vtd") -> Voucher | None:
    vouched = cell(matrix, scenario, kernel, vendor).vouched
    return vouched.by if vouched else None


def altered(boot: BootRecord, **changes: object) -> BootRecord:
    def alter(run: RunRecord) -> RunRecord:
        return run.model_copy(update=changes) if run.scenario == WRITE else run

    return boot.model_copy(update={"runs": tuple(map(alter, boot.runs))})


def test_a_kernel_vouches_for_what_it_has_played(folder: Path, boot: BootRecord) -> None:
    matrix = look(folder)
    assert cell(matrix).vouched == Vouched(Voucher.KERNEL, RELEASE)
    assert by(matrix, BOUND) is Voucher.KERNEL
    assert by(matrix, kernel="6.1") is Voucher.FACTS
    assert by(matrix, vendor="amd_vi") is Voucher.FACTS
    assert matrix.vouchers("6.12")[Voucher.KERNEL] == 2


def test_another_answer_of_the_kernel_contradicts(boot: BootRecord, tmp_path: Path) -> None:
    (run,) = (run for run in boot.runs if run.scenario == WRITE)
    wrong = run.steps[0].model_copy(update={"result": "EPERM"})
    index(tmp_path, altered(boot, steps=(wrong, *run.steps[1:])))
    matrix = look(tmp_path)
    assert by(matrix) is Voucher.CONTRADICTED
    assert by(matrix, BOUND) is Voucher.KERNEL
    assert f"contradicted by {RELEASE}: {WRITE} under 6.12 with intel_vtd" in summary_page(matrix).lines()


def test_a_record_altered_after_it_was_compared_vouches_for_nothing(folder: Path, boot: BootRecord) -> None:
    write_boots(folder, boot.kernel, boot.vendor, [altered(boot, default="DMA")])
    assert {by(look(folder)), by(look(folder), BOUND)} == {Voucher.FACTS}


def _remove_recordings(folder: Path) -> None:
    (folder / "6.12-intel_vtd.jsonl.xz").unlink()


def _remove_index(folder: Path) -> None:
    (folder / INDEX).unlink()


@pytest.mark.parametrize("remove", [_remove_recordings, _remove_index])
def test_what_is_removed_vouches_for_nothing(remove: Callable[[Path], None], folder: Path) -> None:
    remove(folder)
    assert by(look(folder)) is Voucher.FACTS


def test_a_stale_record_is_not_in_the_index(boot: BootRecord, tmp_path: Path) -> None:
    index(tmp_path, altered(boot, digest="0" * 12))
    assert by(look(tmp_path)) is Voucher.FACTS
    assert by(look(tmp_path), BOUND) is Voucher.KERNEL


def test_nor_is_one_that_was_not_played(boot: BootRecord, tmp_path: Path) -> None:
    index(tmp_path, altered(boot, undecided="no such card"))
    assert by(look(tmp_path)) is Voucher.FACTS


def _other_machine() -> Machine:
    machine = suite()[WRITE].machine
    assert isinstance(machine, Machine)
    port, *others = machine.devices
    return machine.model_copy(update={"devices": (port.model_copy(update={"dma_mask": (1 << 32) - 1}), *others)})


@pytest.mark.parametrize(
    "change",
    [
        {"boot": suite()[WRITE].boot.model_copy(update={"cmdline": "quiet"})},
        {"steps": suite()[WRITE].steps * 2},
        {"machine": _other_machine()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_scenario_is_not_vouched_for(change: dict[str, object], folder: Path) -> None:
    assert by(look(folder, suite()[WRITE].model_copy(update=change))) is not Voucher.KERNEL


def test_nor_is_another_answer_of_the_model(folder: Path) -> None:
    stored = read_index(folder)
    (name,) = stored.files
    runs = tuple(run.model_copy(update={"seal": "0" * 12}) for run in stored.files[name].runs)
    _store(folder, runs)
    assert by(look(folder)) is Voucher.FACTS


def test_a_named_difference_is_told(folder: Path) -> None:
    (file,) = read_index(folder).files.values()
    _store(folder, tuple(run.model_copy(update={"agrees": False, "reason": "a backport"}) for run in file.runs))
    vouched = cell(look(folder)).vouched
    assert vouched is not None
    assert vouched.by is Voucher.FACTS
    assert vouched.note.endswith("does otherwise: a backport")
    assert vouched.note in matrix_html(look(folder))


def _store(folder: Path, runs: tuple[Entry, ...]) -> None:
    stored = read_index(folder)
    changed = stored.model_copy(
        update={"files": {name: file.model_copy(update={"runs": runs}) for name, file in stored.files.items()}}
    )
    (folder / INDEX).write_bytes(lzma.compress(changed.model_dump_json().encode()))


def test_what_does_not_hold_or_is_not_expected_has_no_facts_behind_it(folder: Path) -> None:
    unexpected = suite()[LIVE].model_copy(update={"scenario": "unexpected", "expect": {}})
    wrong = suite()[LIVE].model_copy(update={"scenario": "wrong", "expect": {"*": {"write": "EBUSY"}}})
    matrix = look(folder, unexpected, wrong)
    assert {found.outcome for found in matrix.rows[0].cells} == {Outcome.UNDECIDED}
    assert {found.outcome for found in matrix.rows[1].cells} == {Outcome.FAIL}
    assert {found.vouched for row in matrix.rows for found in row.cells} == {None}


def test_qemu_s_hardware_vouches_for_dma_with_the_kernels_it_is_tried_with(folder: Path) -> None:
    dma = next(
        each
        for each in suite().values()
        if any(step.op == "dma" for step in each.steps) and each.vendor is None and by(look(folder, each), each.scenario, "6.1")
    )
    assert by(look(folder, dma), dma.scenario, "6.1") is Voucher.QEMU
    assert by(look(folder, dma), dma.scenario, "6.12") is Voucher.FACTS


def test_the_page_says_what_vouches(folder: Path, boot: BootRecord) -> None:
    page = matrix_html(look(folder))
    assert f"vouched for by kernel ({RELEASE}): intel_vtd; facts: amd_vi" in page
    assert "a real kernel has played this very scenario, and agrees (2)" in page
    lines = summary_page(look(folder)).lines()
    assert ["kernel", "k", "-", "-", "2"] in [line.split() for line in lines]


def test_an_index_is_no_recording_and_comes_out_the_same_again(folder: Path) -> None:
    before = (folder / INDEX).read_bytes()
    assert write_index(folder, registry=registry()).read_bytes() == before
    assert len(load_store([folder]).boots) == 1


def test_a_broken_index_is_one_line(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"no index")
    with pytest.raises(InputError, match="is no index"):
        read_index(folder)


def test_without_an_oracle_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text("scenario: s\nmachine: {devices: [{name: nic}]}\nexpect: {}\n", encoding="utf-8")
    args = ("matrix", "--scenario", str(scenario), "--json", "-")
    with_oracle = json.loads(CliRunner().invoke(cli, args, obj=registry()).stdout)
    monkeypatch.setattr(matrix_command, "find_spec", lambda name: None)
    without = json.loads(CliRunner().invoke(cli, args, obj=registry()).stdout)
    assert all("vouched" in cell for cell in with_oracle["scenarios"][0]["cells"])
    assert not any("vouched" in cell for cell in without["scenarios"][0]["cells"])


@pytest.mark.skipif(not shipped_boots().is_dir(), reason="no recordings of scenarios are shipped")
def test_the_shipped_index_is_what_the_comparison_gives() -> None:
    assert read_index(shipped_boots()) == build_index(shipped_boots(), registry=registry()), "write it: kernel.index.write_index"
