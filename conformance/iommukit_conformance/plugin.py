"""The pytest plugin: ``pytest --pyargs iommukit_conformance [--vendor NAME] [--kernel K] [--matrix-json FILE]``.

It is loaded where the suite is asked for (``entry.py``).  An author's own tests load it with
``pytest_plugins = ["iommukit_conformance.plugin"]`` and may use its fixtures: ``iommukit_registry``, ``vendor`` and ``kernel``
(each chosen vendor and kernel in turn), ``lab`` (a vendor under a kernel), and the marker ``requires("identity")``.

Every case ends in one of five outcomes.  N/A and UNDECIDED are categories of their own, never green; an expected failure
that passes is a failure.  Exit codes are pytest's: 0 no failure, 1 some case fails, 4 bad usage; 3 where the suite itself is
broken, 5 where nothing was tested.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.machine.documents import parse_documents, read_text
from iommukit.scenario.result import Outcome
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_conformance.case import Undecided
from iommukit_conformance.items import PROPERTY, SESSION, CaseItem, items_of
from iommukit_conformance.lab import Lab
from iommukit_conformance.selection import Selection, select
from iommukit_conformance.session import Session
from iommukit_conformance.suite import expand
from iommukit_conformance.summary import Matrix

MATRIX: pytest.StashKey[Matrix] = pytest.StashKey()

CATEGORY = {
    Outcome.PASS: ("passed", "."),
    Outcome.FAIL: ("failed", "F"),
    Outcome.XFAIL: ("xfailed", "x"),
    Outcome.NOT_APPLICABLE: ("n/a", "n"),
    Outcome.UNDECIDED: ("undecided", "u"),
}
"""How pytest counts an outcome, and the letter in the progress."""

NOT_RUN = {NotApplicable: Outcome.NOT_APPLICABLE, Undecided: Outcome.UNDECIDED}
"""What an author's own test raises to end so."""


# ---- options ---------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's options."""
    group = parser.getgroup("iommukit", "IOMMU driver conformance")
    group.addoption("--vendor", action="append", default=[], metavar="NAME", help="a vendor to test; repeatable; default: all")
    group.addoption(
        "--vendor-plugin",
        action="append",
        default=[],
        metavar="[NAME=]MODULE[:OBJECT]",
        help="a vendor plugin that is not installed; repeatable",
    )
    group.addoption(
        "--kernel", action="append", default=[], metavar="K", help=f"a kernel; repeatable; default: {', '.join(PROFILES)}"
    )
    group.addoption("--matrix-json", type=Path, metavar="FILE", help="write every case with its outcome")
    group.addoption(
        "--disputed",
        type=Path,
        metavar="FILE",
        help="YAML, case: reason; cases that you hold to be wrong themselves, which then end UNDECIDED",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose vendors and kernels; anything that does not exist is bad usage."""
    config.addinivalue_line("markers", "requires(capability, …): a test for vendors that have these capabilities")
    option = config.option
    try:
        selection = select(option.vendor, option.kernel, option.vendor_plugin)
        disputed = _disputed(option.disputed)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    if option.matrix_json is not None and not option.matrix_json.absolute().parent.is_dir():
        raise pytest.UsageError(f"--matrix-json {option.matrix_json}: no such folder")
    config.stash[SESSION] = Session(selection, disputed)
    config.stash[MATRIX] = Matrix()


def _disputed(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    documents = parse_documents(read_text(path), str(path))
    found = documents[0] if len(documents) == 1 else None
    if not isinstance(found, dict) or not all(isinstance(reason, str) and reason.strip() for reason in found.values()):
        raise InputError("one mapping was expected: the case's name, and the reason as text", source=str(path))
    return {str(name): reason for name, reason in found.items()}


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is tested."""
    selection = _selection(config)
    kernels = ", ".join(kernel.name for kernel in selection.kernels)
    lines = [f"iommukit: vendors {', '.join(selection.vendors)}; kernels {kernels}"]
    lines.extend(f"iommukit: not loaded: {why}" for name, why in selection.broken.items() if name not in selection.vendors)
    return lines


def _selection(config: pytest.Config) -> Selection:
    return config.stash[SESSION].selection


# ---- cases -----------------------------------------------------------------------------------------------------------


def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> list[pytest.Item] | None:
    """A case, or a list of them, becomes an item for each vendor and kernel."""
    found = list(expand(obj, name))
    return items_of(collector, iter(found)) if found else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The suite itself first, then smoke, then the rest."""
    items.sort(key=lambda item: item.case.stage if isinstance(item, CaseItem) else -1)
    known = {item.case.name for item in items if isinstance(item, CaseItem)}
    names = {name.partition("[")[0]: name for name in config.stash[SESSION].disputed}
    unknown = [name for case, name in names.items() if case not in known]
    if unknown and known and not config.option.keyword and all("::" not in argument for argument in config.args):
        raise pytest.UsageError(f"--disputed names {', '.join(unknown)}, which is no case")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """An author's own test that requires capabilities."""
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("vendor") if callspec else None
    for marker in item.iter_markers("requires"):
        if name is None:
            raise pytest.UsageError(f"{item.nodeid}: requires() is for tests with the fixture vendor")
        vendor = _selection(item.config).registry.get(name)
        for capability in marker.args:
            if not vendor.has(capability):
                raise NotApplicable(f"{name} lacks {capability}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Give a report its outcome: what is not decided is no pass, and what was expected to fail says why."""
    report: pytest.TestReport = yield
    if isinstance(item, CaseItem):
        if call.when == "call" and item.verdict is not None:
            _mark(report, item.verdict.outcome, item.verdict.reason)
    elif call.excinfo is not None and type(call.excinfo.value) in NOT_RUN:
        outcome = NOT_RUN[type(call.excinfo.value)]
        reason = str(call.excinfo.value)
        params = getattr(item, "callspec", None)
        row = {
            "case": getattr(item, "originalname", item.name),
            "rule": None,
            "title": item.name,
            "stage": "own",
            "vendor": params.params.get("vendor", "") if params else "",
            "kernel": params.params.get("kernel", "") if params else "",
            "outcome": outcome.value,
            "reason": reason,
        }
        report.user_properties.append((PROPERTY, json.dumps(row)))
        _mark(report, outcome, reason)
    return report


def _mark(report: pytest.TestReport, outcome: Outcome, reason: str) -> None:
    if outcome in (Outcome.PASS, Outcome.FAIL):
        return
    report.outcome = "skipped"
    report.longrepr = (report.location[0], report.location[1] or 0, f"{outcome.value}: {reason}")
    if outcome is Outcome.XFAIL:
        report.wasxfail = reason


def _row(report: pytest.TestReport) -> dict[str, Any] | None:
    """The row of the matrix that a report carries."""
    if report.when != "call" and report.outcome == "passed":
        return None
    found = next((value for name, value in report.user_properties if name == PROPERTY), None)
    return json.loads(str(found)) if found is not None and (report.when == "call" or report.skipped) else None


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Category, letter and word of an outcome; the word comes with its reason."""
    row = _row(report) if isinstance(report, pytest.TestReport) else None
    if row is None:
        return None
    category, letter = CATEGORY[Outcome(row["outcome"])]
    word = f"{row['outcome']} ({row['reason']})" if row.get("reason") else row["outcome"]
    return category, letter, word


class _Collecting:
    """Collects the rows, in the process that sees all reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a report's row."""
        row = _row(report)
        if row is not None:
            self.config.stash[MATRIX].add(row)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Collect, except in the workers of a distributed run."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Collecting(session.config), "iommukit-matrix")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the matrix; a broken suite, or one that has tested nothing, is no success."""
    config = session.config
    matrix = config.stash[MATRIX]
    if hasattr(config, "workerinput") or not matrix.rows:
        return
    path = config.option.matrix_json
    if path is not None:
        try:
            matrix.write(path.absolute())
        except InputError as error:
            raise pytest.UsageError(str(error)) from error
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        if matrix.faults():
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        elif not matrix.tested() and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, what failed, and why the rest did not run."""
    matrix = config.stash[MATRIX]
    if not matrix.rows:
        return
    write = terminalreporter
    write.section("iommukit conformance")
    for line in matrix.table():
        write.write_line(line)
    reasons = list(matrix.reasons())
    if reasons:
        write.write_line("")
        for line in reasons:
            write.write_line(line)
    failed = list(matrix.failed())
    if failed:
        write.write_line("")
        write.write_line(f"{len(matrix.failures())} failed", red=True, bold=True)
        for line in failed:
            write.write_line(line, red=not line.startswith(" "))
    faults = matrix.faults()
    if faults:
        write.write_line("")
        write.write_line("The suite or the model itself is wrong; this is not the fault of a driver:", red=True, bold=True)
        for line in faults:
            write.write_line(f"    {line}")
    elif not matrix.tested():
        write.write_line("")
        write.write_line("Nothing was tested: no case has passed or failed.", yellow=True, bold=True)


# ---- fixtures for authors --------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``vendor`` and ``kernel`` are each chosen one in turn."""
    selection = _selection(metafunc.config)
    if "vendor" in metafunc.fixturenames:
        metafunc.parametrize("vendor", selection.vendors, indirect=True)
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", [kernel.name for kernel in selection.kernels], indirect=True)


@pytest.fixture(scope="session")
def iommukit_registry(pytestconfig: pytest.Config) -> VendorRegistry:
    """All vendors that are there."""
    return _selection(pytestconfig).registry


@pytest.fixture
def vendor(request: pytest.FixtureRequest, iommukit_registry: VendorRegistry) -> Vendor:
    """A chosen vendor."""
    return iommukit_registry.get(request.param)


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A chosen kernel."""
    return get_kernel(request.param)


@pytest.fixture
def lab(pytestconfig: pytest.Config, vendor: Vendor, kernel: Kernel) -> Lab:
    """A chosen vendor under a chosen kernel: boots machines, runs scenarios, listens to the driver."""
    return pytestconfig.stash[SESSION].lab(vendor.name, kernel)
