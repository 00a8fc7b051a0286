"""The pytest plugin for real: another process, an empty folder, nothing but the installed distribution."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent

import pytest

from iommukit_conformance.entry import asked_for

TOY = "--vendor-plugin=toy=iommukit_conformance.reference:driver"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Ran:
    code: int
    text: str


@pytest.fixture
def run(tmp_path: Path):
    def run(*arguments: str) -> Ran:
        search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": search, "COLUMNS": "200"}
        for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "CI", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
            environment.pop(name, None)
        # Other plugins that happen to be installed have no part in this, and take their time.
        without = ["cacheprovider", "syrupy", "hypothesispytest", "platformdirs", "anyio"]
        command = [sys.executable, "-m", "pytest", *(f"-pno:{name}" for name in without), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        return Ran(done.returncode, ANSI.sub("", done.stdout + done.stderr))

    return run


def suite(module: str = "") -> tuple[str, str]:
    return "--pyargs", f"iommukit_conformance{module}"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(dedent(text), encoding="utf-8")


def test_the_entry_point_is_installed() -> None:
    assert [entry.value for entry in entry_points(group="pytest11", name="iommukit_conformance")] == ["iommukit_conformance.entry"]


def test_the_whole_suite_from_an_empty_folder(run, tmp_path: Path) -> None:
    ran = run(*suite(), TOY, "--kernel=rfc", "--kernel=6.12", "--matrix-json=matrix.json", "--junitxml=junit.xml", "-q")
    assert ran.code == 0, ran.text
    matrix = json.loads((tmp_path / "matrix.json").read_text(encoding="utf-8"))
    assert matrix["format"] == "iommukit-matrix-1"
    assert matrix["faults"] == []
    assert set(matrix["counts"]) == {"toy", "(suite)"}
    assert set(matrix["counts"]["toy"]) == {"rfc", "6.12", "*"}
    for vendor, cells in matrix["counts"].items():
        for kernel, cell in cells.items():
            rows = [row for row in matrix["cases"] if (row["vendor"], row["kernel"]) == (vendor, kernel)]
            assert sum(cell.values()) == len(rows)
            assert set(cell) == {"PASS", "FAIL", "XFAIL", "N/A", "UNDECIDED"}
            assert cell["FAIL"] == 0
    assert all(row.get("reason") for row in matrix["cases"] if row["outcome"] in ("N/A", "UNDECIDED"))
    assert matrix["counts"]["toy"]["rfc"]["PASS"] > 100
    counted = {outcome: sum(row["outcome"] == outcome for row in matrix["cases"]) for outcome in ("PASS", "N/A", "UNDECIDED")}
    assert f"{counted['PASS']} passed, {counted['N/A']} n/a, {counted['UNDECIDED']} undecided" in ran.text
    assert re.search(r"^toy +rfc +\d+ +\. +\. +\d+ +\d+$", ran.text, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".matrix")] == []


def test_what_is_not_run_is_never_green(run, tmp_path: Path) -> None:
    write(
        tmp_path,
        acme="""
        from iommukit.hookspecs import VendorDeclaration, hookimpl

        @hookimpl
        def declare():
            return VendorDeclaration("Acme", ("x86_64",), frozenset())
        """,
    )
    ran = run(*suite(".test_groups"), "--vendor-plugin=acme", "--kernel=rfc", "-v")
    assert ran.code == 5, ran.text
    assert "] PASS" not in ran.text
    assert "acme fails its smoke test under rfc: DRV-06: no unit is found" in ran.text
    assert "Nothing was tested" in ran.text


def test_an_expected_failure_is_strict(run, tmp_path: Path) -> None:
    write(
        tmp_path,
        acme="""
        from dataclasses import replace
        from iommukit.hookspecs import hookimpl
        from iommukit.policy import DmaApiPolicy
        from iommukit_conformance.reference import Reference

        class Acme(Reference):
            wrong = True

            @hookimpl
            def declare(self):
                return replace(super().declare(), expected_failures={"DRV-22": "bug 7 of the chip"})

            @hookimpl
            def def_domain_type(self, device):
                answer = super().def_domain_type(device)
                return DmaApiPolicy.STRICT if self.wrong and answer is DmaApiPolicy.ANY else answer

        class Mended(Acme):
            wrong = False
        """,
    )
    arguments = (*suite(".test_policy"), "--kernel=rfc", "-v", "-k", "ordinary")
    ran = run(*arguments, "--vendor-plugin=acme:Acme")
    assert ran.code == 0, ran.text
    assert "an_ordinary_device_requires_nothing[acme-rfc] XFAIL (bug 7 of the chip)" in ran.text
    ran = run(*arguments, "--vendor-plugin=acme:Mended")
    assert ran.code == 1, ran.text
    assert "acme under rfc: DRV-22: An ordinary device requires nothing" in ran.text
    assert "passes, though it is declared to fail: bug 7 of the chip" in ran.text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--vendor=nobody", "no vendor 'nobody'; there are "),
        ("--kernel=2.6", "no kernel '2.6'; there are rfc, "),
        ("--vendor-plugin=nobody", "--vendor-plugin nobody: no module 'nobody'"),
        ("--matrix-json=nowhere/m.json", "--matrix-json nowhere/m.json: no such folder"),
        ("--matrix-json=.", "--matrix-json .: is a folder; the name of a file was expected"),
        ("--disputed=nothing.yaml", "nothing.yaml: cannot be read: No such file or directory"),
    ],
)
def test_bad_usage_is_one_line(run, argument: str, message: str) -> None:
    ran = run(*suite(), argument)
    assert ran.code == 4
    errors = [line for line in ran.text.splitlines() if line.strip()]
    assert len(errors) == 1, ran.text
    assert errors[0].startswith(f"ERROR: {message}")


def test_a_broken_suite_says_so_and_blames_nobody(run, tmp_path: Path) -> None:
    write(
        tmp_path,
        breaker="""
        from iommukit_conformance.recorder import Recorder
        from iommukit_conformance.wrong import policy

        policy.IdentityForAll.def_domain_type = policy.Wrong.def_domain_type
        """,
    )
    ran = run(*suite(".test_policy"), TOY, "--kernel=rfc", "-p", "breaker", "-q")
    assert ran.code == 3, ran.text
    assert "the suite itself is broken, which says nothing of a driver" in ran.text
    assert "the wrong driver identity-for-all is accepted" in ran.text
    assert "not the fault of a driver" in ran.text
    assert " passed" not in ran.text
    assert " failed" not in ran.text


def test_a_disputed_case_is_undecided(run, tmp_path: Path) -> None:
    (tmp_path / "disputed.yaml").write_text("an_ordinary_device_requires_nothing: chapter 9 says otherwise\n", encoding="utf-8")
    ran = run(*suite(".test_policy"), TOY, "--kernel=rfc", "--disputed=disputed.yaml", "-v")
    assert ran.code == 0, ran.text
    assert "UNDECIDED (disputed: chapter 9 says otherwise)" in ran.text
    (tmp_path / "disputed.yaml").write_text("no_such_case: chapter 9\n", encoding="utf-8")
    ran = run(*suite(".test_policy"), TOY, "--kernel=rfc", "--disputed=disputed.yaml", "-q")
    assert ran.code == 4
    assert "ERROR: --disputed names no_such_case, which is no case" in ran.text


def test_an_author_s_own_tests_use_the_fixtures(run, tmp_path: Path) -> None:
    write(
        tmp_path,
        conftest="""
        pytest_plugins = ["iommukit_conformance.plugin"]
        """,
        test_own="""
        import pytest
        from iommukit.errors import NotApplicable

        def test_both(vendor, kernel, iommukit_registry):
            assert iommukit_registry.get(vendor.name) is vendor
            assert kernel.name in ("rfc", "6.1")

        @pytest.mark.requires("pasid")
        def test_pasid(vendor):
            raise AssertionError("not reached")

        def test_boots(lab):
            assert lab.plain().group is not None

        def test_cannot_be(vendor):
            raise NotApplicable("no such thing")

        def test_plain():
            pass
        """,
    )
    ran = run("test_own.py", TOY, "--kernel=rfc", "--kernel=6.1", "-v", "--matrix-json=m.json")
    assert ran.code == 0, ran.text
    assert "5 passed, 2 n/a" in ran.text
    assert "test_pasid[toy] N/A (toy lacks pasid)" in ran.text
    assert "test_cannot_be[toy] N/A (no such thing)" in ran.text
    rows = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["cases"]
    assert sorted((row["case"], row["kernel"], row["outcome"]) for row in rows) == [
        ("test_boots", "6.1", "PASS"),
        ("test_boots", "rfc", "PASS"),
        ("test_both", "6.1", "PASS"),
        ("test_both", "rfc", "PASS"),
        ("test_cannot_be", "*", "N/A"),
        ("test_pasid", "*", "N/A"),
    ]


def test_other_tests_are_left_alone(run, tmp_path: Path) -> None:
    write(
        tmp_path,
        conftest="""
        import sys

        def pytest_addoption(parser):
            parser.addoption("--vendor")
            parser.addoption("--kernel")

        def pytest_unconfigure():
            loaded = sorted(name for name in sys.modules if name.startswith("iommukit"))
            print("LOADED", loaded)
        """,
        test_other="""
        import pytest

        @pytest.fixture
        def vendor():
            return "theirs"

        def test_their_own(vendor, request):
            assert vendor == "theirs"
            assert request.config.getoption("--kernel") == "hot"
        """,
    )
    ran = run("test_other.py", "--kernel=hot", "-q")
    assert ran.code == 0, ran.text
    assert "LOADED ['iommukit_conformance', 'iommukit_conformance.entry']" in ran.text


def test_distributed_over_workers(run, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    ran = run(*suite(".test_groups"), TOY, "--kernel=rfc", "--kernel=6.1", "-n2", "-q", "--matrix-json=m.json")
    assert ran.code == 0, ran.text
    counts = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["counts"]["toy"]
    assert counts["rfc"]["PASS"] == counts["6.1"]["PASS"] > 10


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--pyargs", "iommukit_conformance"], True),
        (["--pyargs", "iommukit_conformance.test_groups::TestNothing"], True),
        (["iommukit_conformance_of_others"], False),
        (["--cov=iommukit_conformance"], False),
        (["tests"], False),
        ([], False),
    ],
)
def test_asked_for(arguments: list[str], asked: bool) -> None:
    assert asked_for(arguments) is asked


def test_a_path_inside_the_package_asks_for_it() -> None:
    import iommukit_conformance

    assert asked_for([f"{Path(iommukit_conformance.__file__).parent}/test_groups.py::x"])
