"""The matrix as one HTML page that needs nothing else: no script, style or font from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined

from iommukit import __version__
from iommukit.kernel.profiles import PROFILES, STABLE
from iommukit.report.matrix import Cell, Matrix, Row
from iommukit.report.page import visible
from iommukit.report.vouchers import MEANING, Voucher
from iommukit.scenario.result import Outcome

TEMPLATE = "matrix.html.jinja"
OUTCOME_CLASS = {
    Outcome.PASS: "pass",
    Outcome.FAIL: "fail",
    Outcome.XFAIL: "xfail",
    Outcome.NOT_APPLICABLE: "na",
    Outcome.UNDECIDED: "undecided",
}
OUTCOME_MEANING = {
    Outcome.PASS: "does what the scenario expects",
    Outcome.FAIL: "does something else",
    Outcome.XFAIL: "fails as the vendor declares",
    Outcome.NOT_APPLICABLE: "the vendor lacks what the scenario asks for",
    Outcome.UNDECIDED: "no expectation, or the model cannot say",
}


@dataclass(frozen=True, slots=True)
class Chip:
    """Vendors that do the same under one kernel; ``other``: not what they do under the page's first kernel."""

    vendors: tuple[str, ...]
    everybody: bool
    css: str
    outcome: str
    text: str
    hint: str
    vouched: str
    other: bool


def chips(row: Row, kernel: str, first: str) -> list[Chip]:
    """One table cell: the row's vendors under a kernel, merged where they look the same; those to whom it applies first."""
    baseline = {cell.vendor: cell.answer.text for cell in row.cells if cell.kernel == first}
    merged: dict[tuple[Outcome, str, bool], list[Cell]] = {}
    here = [cell for cell in row.cells if cell.kernel == kernel]
    for cell in here:
        other = cell.happened and baseline.get(cell.vendor) != cell.answer.text
        merged.setdefault((*cell.look, other), []).append(cell)
    found = []
    for (outcome, text, other), cells in sorted(merged.items(), key=lambda item: item[0][0] is Outcome.NOT_APPLICABLE):
        hints = [*cells[0].findings, cells[0].reason] if outcome is not Outcome.NOT_APPLICABLE else []
        found.append(
            Chip(
                vendors=tuple(cell.vendor for cell in cells),
                everybody=len(cells) == len(here) > 1,
                css=OUTCOME_CLASS[outcome],
                outcome=outcome.value,
                text=visible(text),
                hint=visible("; ".join(hint for hint in hints if hint)),
                vouched=visible(_vouched(cells)),
                other=other,
            )
        )
    return found


def _vouched(cells: Iterable[Cell]) -> str:
    """What vouches for cells that look the same: each kind with its vendors."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell.vouched is not None:
            text = "; ".join(part for part in (cell.vouched.text, cell.vouched.note) if part)
            found.setdefault(text, []).append(cell.vendor)
    return "; ".join(f"{text}: {', '.join(vendors)}" for text, vendors in found.items())


def matrix_html(matrix: Matrix) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("iommukit.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    summaries = {name: kernel.summary for name, kernel in (PROFILES | STABLE).items()}
    first = matrix.kernels[0] if matrix.kernels else ""
    return template.render(
        version=__version__,
        matrix=matrix,
        kernels=[(name, summaries.get(name, "")) for name in matrix.kernels],
        vendors=[(vendor.name, vendor.declaration.title) for vendor in matrix.vendors],
        outcomes=[(OUTCOME_CLASS[each], each.value, OUTCOME_MEANING[each], matrix.counts()[each]) for each in Outcome],
        vouchers=[(each.value, MEANING[each], count) for each in Voucher if (count := matrix.vouchers()[each])],
        families=[(name, rows, _bars(matrix, rows)) for name, rows in matrix.families().items()],
        chips=lambda row, kernel: chips(row, kernel, first),
        visible=visible,
        first=first,
    )


def _bars(matrix: Matrix, rows: Iterable[Row]) -> list[tuple[str, list[tuple[str, str, int]]]]:
    """For each kernel, the outcomes of a family that occur: class, name and count."""
    rows = list(rows)
    return [
        (
            kernel,
            [(OUTCOME_CLASS[outcome], outcome.value, count) for outcome, count in matrix.counts(rows, kernel).items() if count],
        )
        for kernel in matrix.kernels
    ]
