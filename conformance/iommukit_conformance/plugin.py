"""The pytest plugin: ``pytest --pyargs iommukit_conformance [--vendor NAME] [--kernel K] [--hardware P] [--matrix-json FILE]``.

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
from iommukit_conformance.case import EVERY, Undecided, VendorCaseList
from iommukit_conformance.items import SESSION, CaseItem, items_of, items_of_vendors
from iommukit_conformance.lab import MODEL, Lab
from iommukit_conformance.selection import EMULATED, Selection, select
from iommukit_conformance.session import Session
from iommukit_conformance.suite import expand
from iommukit_conformance.summary import Matrix

PROPERTY = "iommukit"
"""The name of a report's property that holds a row of the matrix, as JSON."""
VENDOR, KERNEL = "iommukit_vendor_name", "iommukit_kernel_name"
"""What an author's own tests are parametrised by; the fixtures ``vendor`` and ``kernel`` stand on them."""

MATRIX: pytest.StashKey[Matrix] = pytest.StashKey()
WANTED: pytest.StashKey[Path] = pytest.StashKey()
"""Where the matrix is to be written."""

CATEGORY = {
    Outcome.PASS: ("passed", "."),
    Outcome.XFAIL: ("xfailed", "x"),
    Outcome.NOT_APPLICABLE: ("n/a", "n"),
    Outcome.UNDECIDED: ("undecided", "u"),
}
"""How pytest counts an outcome, and the letter in the progress."""

NOT_RUN: dict[type[BaseException], Outcome] = {NotApplicable: Outcome.NOT_APPLICABLE, Undecided: Outcome.UNDECIDED}
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
    group.addoption(
        "--hardware",
        default=MODEL,
        metavar="PLATFORM",
        help="what the hardware cases run on: model (the vendors' own models, with all other cases; the default), or qemu (QEMU's"
        f" IOMMUs, hardware cases only, of kernels {' and '.join(EMULATED)} unless others are named)",
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
        selection = select(option.vendor, option.kernel, option.vendor_plugin, option.hardware)
        disputed = _disputed(option.disputed)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    if option.matrix_json is not None:
        config.stash[WANTED] = option.matrix_json.absolute()
        if not config.stash[WANTED].parent.is_dir():
            raise pytest.UsageError(f"--matrix-json {option.matrix_json}: no such folder")
        if config.stash[WANTED].is_dir():
            raise pytest.UsageError(f"--matrix-json {option.matrix_json}: is a folder; the name of a file was expected")
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
    lines = [f"iommukit: vendors {', '.join(selection.vendors)}; kernels {kernels}; hardware {selection.hardware}"]
    lines.extend(f"iommukit: not loaded: {why}" for name, why in selection.broken.items() if name not in selection.vendors)
    return lines


def _selection(config: pytest.Config) -> Selection:
    return config.stash[SESSION].selection


# ---- cases -----------------------------------------------------------------------------------------------------------


def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> list[pytest.Item] | None:
    """A case, or a list of them, becomes an item for each vendor and kernel."""
    if isinstance(obj, VendorCaseList):
        return items_of_vendors(collector, obj)
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
    name = _chosen(item).get(VENDOR)
    for marker in item.iter_markers("requires"):
        if name is None:
            pytest.fail("requires() is for tests with the fixture vendor", pytrace=False)
        vendor = _selection(item.config).registry.get(name)
        for capability in marker.args:
            if not vendor.has(capability):
                raise NotApplicable(f"{name} lacks {capability}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Give a report its outcome and its row; what is not decided is no pass, and what was expected to fail says why."""
    report: pytest.TestReport = yield
    if isinstance(item, CaseItem):
        verdict = item.verdict
        if call.when == "call" and verdict is not None:
            _settle(report, item.row(verdict), verdict.outcome, verdict.reason)
    elif (params := _chosen(item)) and (call.when == "call" or call.excinfo is not None):
        outcome, reason = _own_outcome(report, call)
        if outcome is not None:
            _settle(report, _own_row(item, params, outcome, reason), outcome, reason)
    return report


def _settle(report: pytest.TestReport, row: dict[str, Any], outcome: Outcome, reason: str) -> None:
    report.user_properties.append((PROPERTY, json.dumps(row)))
    if outcome in (Outcome.PASS, Outcome.FAIL):
        return
    report.outcome = "skipped"
    report.longrepr = (report.location[0], report.location[1] or 0, f"{outcome.value}: {reason}")
    if outcome is Outcome.XFAIL:
        report.wasxfail = reason


def _chosen(item: pytest.Item) -> dict[str, str]:
    """The vendor and the kernel that an author's own test is run with."""
    callspec = getattr(item, "callspec", None)
    return {name: value for name, value in callspec.params.items() if name in (VENDOR, KERNEL)} if callspec else {}


def _own_outcome(report: pytest.TestReport, call: pytest.CallInfo[Any]) -> tuple[Outcome | None, str]:
    """How an author's own test ended; ``None`` for pytest's own skips and expected failures."""
    if call.excinfo is None:
        return Outcome.PASS if report.passed else None, ""
    error = call.excinfo.value
    if type(error) in NOT_RUN:
        return NOT_RUN[type(error)], str(error)
    return (Outcome.FAIL, "") if report.failed else (None, "")


def _own_row(item: pytest.Item, params: dict[str, str], outcome: Outcome, reason: str) -> dict[str, Any]:
    row = {
        "case": getattr(item, "originalname", item.name),
        "rule": None,
        "title": item.nodeid,
        "stage": "own",
        "vendor": params.get(VENDOR, EVERY),
        "kernel": params.get(KERNEL, EVERY),
        "outcome": outcome.value,
    }
    return {**row, "reason": reason} if reason else row


def _row(report: pytest.TestReport) -> dict[str, Any] | None:
    """The row of the matrix that a report carries."""
    found = next((value for name, value in report.user_properties if name == PROPERTY), None)
    return json.loads(str(found)) if found is not None else None


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Category, letter and word of an outcome; the word comes with its reason."""
    row = _row(report) if isinstance(report, pytest.TestReport) else None
    if row is None or row["outcome"] == Outcome.FAIL.value:
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
    if config.option.matrix_json is not None:
        try:
            matrix.write(config.stash[WANTED])
        except InputError as error:
            matrix.unwritten = str(error)
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
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
    for part in (matrix.wrong_drivers(), matrix.mistakes(), matrix.reasons()):
        for number, line in enumerate(part):
            if not number:
                write.write_line("")
            write.write_line(line)
    failed = list(matrix.failed())
    if failed:
        write.write_line("")
        write.write_line(f"{len(matrix.failures())} failed", red=True, bold=True)
        for line in failed:
            write.write_line(line, red=not line.startswith(" "))
    if matrix.unwritten:
        write.write_line("")
        write.write_line(matrix.unwritten, red=True, bold=True)
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
    if VENDOR in metafunc.fixturenames:
        metafunc.parametrize(VENDOR, selection.vendors)
    if KERNEL in metafunc.fixturenames:
        metafunc.parametrize(KERNEL, [kernel.name for kernel in selection.kernels])


@pytest.fixture(scope="session")
def iommukit_registry(pytestconfig: pytest.Config) -> VendorRegistry:
    """All vendors that are there."""
    return _selection(pytestconfig).registry


@pytest.fixture
def vendor(iommukit_vendor_name: str, iommukit_registry: VendorRegistry) -> Vendor:
    """A chosen vendor."""
    return iommukit_registry.get(iommukit_vendor_name)


@pytest.fixture
def kernel(iommukit_kernel_name: str) -> Kernel:
    """A chosen kernel."""
    return get_kernel(iommukit_kernel_name)


@pytest.fixture
def lab(pytestconfig: pytest.Config, vendor: Vendor, kernel: Kernel) -> Lab:
    """A chosen vendor under a chosen kernel: boots machines, runs scenarios, listens to the driver."""
    return pytestconfig.stash[SESSION].lab(vendor.name, kernel)
