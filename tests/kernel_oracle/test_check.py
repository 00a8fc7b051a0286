"""``iommukit oracle kernel check``: one table of everything that vouches for the model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from click.testing import CliRunner, Result

from iommukit.cli.main import cli
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import get_kernel
from iommukit.report.agreement import STANDINGS, AgreementReport, Remark, Row, agreement_page
from iommukit.report.schemas import schema
from iommukit.scenario.load import shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit.vendors import Vendor
from iommukit_oracle.guest.kernels import RELEASES
from iommukit_oracle.kernel.agreement import Check, Standing, check
from iommukit_oracle.kernel.cases import cases
from iommukit_oracle.kernel.differences import DIFFERENCES
from iommukit_oracle.kernel.record import BootRecord
from iommukit_oracle.kernel.store import load_store, shipped_boots, write_boots
from iommukit_oracle.kernel.table import BOOTED, PLAYED, RESOLVED
from iommukit_oracle.observations import Verdict

from .conftest import BOUND, WRITE, registry, suite

LEAST = 60_000
"""Observations of real kernels that the model is held against at the very least."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ("oracle", "kernel", "check", *arguments), obj=registry())


@pytest.fixture
def recordings(boot: BootRecord, tmp_path: Path) -> Path:
    return write_boots(tmp_path, boot.kernel, boot.vendor, [boot])


@pytest.fixture
def wrong(boot: BootRecord, tmp_path: Path) -> Path:
    """A kernel that answers EPERM where it wrote, and whose boot has a line more."""
    runs = tuple(
        run.model_copy(update={"steps": (run.steps[0].model_copy(update={"result": "EPERM"}),)}) if run.scenario == WRITE else run
        for run in boot.runs
    )
    broken = boot.model_copy(update={"runs": runs, "log": (*boot.log, "iommu: surprise")})
    return write_boots(tmp_path / "wrong", boot.kernel, boot.vendor, [broken])


ONE = ("--kernel", "6.12", "--vendor", "intel_vtd")


def test_everything_that_vouches_is_in_one_table(recordings: Path) -> None:
    answer = run("--recordings", str(recordings), "--json")
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    jsonschema.validate(report, schema("agreement"))
    rows = {(row["judge"], row["kernel"], row["vendor"]): row for row in report["rows"]}
    assert {kernel for judge, kernel, _ in rows if judge == BOOTED} == {"6.1", "6.12", "7.2", "rfc-as-posted", "rfc-unconverted"}
    assert {kernel for judge, kernel, _ in rows if judge == RESOLVED} == {"rfc"}
    assert rows[PLAYED, "6.12", "intel_vtd"]["cases"]["agrees"] == 4
    assert rows[PLAYED, "6.12", "amd_vi"]["cases"]["missing"] > 100
    assert sum(row["cases"]["agrees"] + row["cases"]["explained"] for key, row in rows.items() if key[0] == BOOTED) == 528
    assert rows[RESOLVED, "rfc", "s390"]["cases"]["agrees"] > 50


def test_the_page(recordings: Path) -> None:
    lines = run("--recordings", str(recordings), *ONE).output.splitlines()
    assert lines[0].split()[:4] == ["judge", "kernel", "vendor", "cases"]
    assert lines[1].startswith("scenarios on a real kernel  6.12")
    assert any("no real kernel has played it  (6.12)" in line for line in lines)
    assert " observations agree, and every difference has a name; " in lines[-1]
    assert lines[-1].endswith(" cases stale or not recorded")


def test_a_difference_is_told_in_words_and_is_no_success(wrong: Path) -> None:
    answer = run("--recordings", str(wrong), *ONE)
    assert answer.exit_code == 1
    assert f"  {WRITE} (6.12, intel_vtd), as run, step 1 (write): result: the kernel has EPERM, the model ok\n" in answer.output
    assert '"iommu: surprise", the model nothing' in answer.output
    assert " differences without a name; " in answer.output.splitlines()[-1]


def test_scenarios_of_one_s_own(recordings: Path, tmp_path: Path) -> None:
    text = (
        f"scenario: {BOUND}\nmachine: nic-behind-root-port\nboot: {{cmdline: iommu.strict=1}}\n"
        "steps:\n  - bind: {device: nic, driver: e1000e}\n"
    )
    (tmp_path / "own.yaml").write_text(text)
    answer = run("--recordings", str(recordings), *ONE, "--scenario", str(tmp_path / "own.yaml"), "--json")
    (row,) = json.loads(answer.stdout)["rows"]
    assert row["cases"] == {**dict.fromkeys(STANDINGS, 0), "stale": 1}


def test_live_plays_now(boot: BootRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def play(scenarios: list[Scenario], kernels: list[Kernel], vendors: list[Vendor], **more: object) -> Iterator[BootRecord]:
        asked.append(([scenario.scenario for scenario in scenarios], kernels[0].name, vendors[0].name, more["jobs"]))
        yield boot

    monkeypatch.setitem(sys.modules, "iommukit_oracle.kernel.executor", SimpleNamespace(play=play))
    (file,) = (path for path in shipped_scenarios().glob("*.yaml") if f"scenario: {WRITE}\n" in path.read_text())
    text = next(part for part in file.read_text().split("\n---\n") if f"scenario: {WRITE}\n" in part)
    (tmp_path / "own.yaml").write_text(text)
    answer = run("--live", *ONE, "--scenario", str(tmp_path / "own.yaml"), "--jobs", "1", "--json")
    assert answer.exit_code == 0, answer.output
    (row,) = json.loads(answer.stdout)["rows"]
    assert (row["judge"], row["cases"]["agrees"], sum(row["cases"].values())) == (PLAYED, 1, 1)
    assert asked == [([WRITE], "6.12", "intel_vtd", 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--live", "--recordings", "here.jsonl"), "--recordings and --live exclude each other"),
        (("--image", "bzImage"), "--image and --modules need --live"),
        (("--recordings", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("--kernel", "5.4"), "no kernel '5.4'"),
    ],
)
def test_what_cannot_be_asked(arguments: tuple[str, ...], message: str) -> None:
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_full_names_every_case() -> None:
    remarks = [Remark("undecided", "a judge", "6.1", "s390", f"case-{number}", reason="no such card") for number in range(9)]
    report = AgreementReport([Row("a judge", "scenario", "6.1", "s390", Counter({"undecided": 9}))], remarks)
    short, full = ("\n".join(agreement_page(report, full=full).lines()) for full in (False, True))
    assert "9  no such card  (6.1)" in short
    assert "case-2 and 6 more" in short
    assert "case-8" not in short
    assert "case-8" in full
    assert not report.bad


def test_what_did_not_run_is_not_green() -> None:
    assert agreement_page(AgreementReport()).lines()[-1] == "nothing has been compared"


# ---- what is shipped -------------------------------------------------------------------------------------------------


@pytest.fixture(name="shipped", scope="module")
def _shipped() -> Check:
    played = cases(list(suite().values()), [get_kernel(kernel) for kernel in RELEASES], list(registry()))
    return check(played, load_store([shipped_boots()]), registry())


def test_the_model_is_held_against_real_kernels(shipped: Check) -> None:
    held = [seen for _, _, seen in shipped.observations() if seen.verdict in (Verdict.AGREES, Verdict.KNOWN)]
    assert len(held) >= LEAST
    assert {(each.kernel, each.vendor) for each in shipped.agreements if each.standing is Standing.AGREES} == {
        (each.kernel, each.vendor) for each in shipped.agreements
    }


def test_no_difference_without_a_name(shipped: Check) -> None:
    assert [str(seen) for _, _, seen in shipped.observations() if seen.verdict is Verdict.DIFFERS] == []


def test_every_named_difference_is_still_seen(shipped: Check) -> None:
    named = {seen.reason.split(":")[0] for _, _, seen in shipped.observations() if seen.verdict is Verdict.KNOWN}
    assert {each.name for each in DIFFERENCES} <= named


def test_every_case_has_been_played_as_it_is_written_today(shipped: Check) -> None:
    wrong = {each.scenario for each in shipped.agreements if each.standing in (Standing.STALE, Standing.MISSING)}
    assert not wrong, "record them again: iommukit oracle kernel record"
