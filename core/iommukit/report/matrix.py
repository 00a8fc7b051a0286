"""The behaviour matrix: what each kernel does with each scenario on each vendor, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from iommukit.kernel.kernel import Kernel
from iommukit.report.answer import Answer, answer
from iommukit.report.page import Page, Span, counted, listed
from iommukit.report.runs import run_cases
from iommukit.report.vouchers import MARK, Evidence, Vouched, Voucher, digest_of_played
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome, Result
from iommukit.vendors import Vendor, VendorRegistry

if TYPE_CHECKING:
    from iommukit.report.shapes import CellJson, FamilyJson, MatrixJson, RowJson

OUTCOME_STYLE: dict[Outcome, str] = {
    Outcome.PASS: "good",
    Outcome.FAIL: "bad",
    Outcome.XFAIL: "warn",
    Outcome.NOT_APPLICABLE: "dim",
    Outcome.UNDECIDED: "plain",
}
NO_FAMILY = "other"
"""The family of scenarios that name no rule."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario under one kernel with one vendor."""

    kernel: str
    vendor: str
    outcome: Outcome
    answer: Answer
    reason: str
    findings: tuple[str, ...]
    vouched: Vouched | None = None

    @property
    def happened(self) -> bool:
        """False for N/A."""
        return self.outcome is not Outcome.NOT_APPLICABLE

    @property
    def look(self) -> tuple[Outcome, str]:
        """What makes two cells the same to a reader."""
        return self.outcome, self.answer.text


@dataclass(frozen=True, slots=True)
class Bundle:
    """Cells that look the same: every one of ``vendors`` under every one of ``kernels``; ``marks`` of what vouches for some."""

    vendors: tuple[str, ...]
    kernels: tuple[str, ...]
    cell: Cell
    marks: str = ""


@dataclass(slots=True)
class Row:
    """One scenario."""

    scenario: Scenario
    cells: list[Cell] = field(default_factory=list)

    @property
    def family(self) -> str:
        """The rule's family: ``SYSFS`` of ``SYSFS-04``."""
        return self.scenario.rule.rpartition("-")[0] if self.scenario.rule else NO_FAMILY

    @property
    def kernels_differ(self) -> bool:
        """Whether some vendor's answer depends on the kernel."""
        return self._differ(lambda cell: cell.vendor)

    @property
    def vendors_differ(self) -> bool:
        """Whether some kernel's answer depends on the vendor."""
        return self._differ(lambda cell: cell.kernel)

    def _differ(self, by: Callable[[Cell], str]) -> bool:
        seen: dict[str, str] = {}
        return any(seen.setdefault(by(cell), cell.answer.text) != cell.answer.text for cell in self.cells if cell.happened)

    def bundles(self) -> list[Bundle]:
        """The row in as few rectangles as vendors and kernels make."""
        return bundle(self.cells)


def bundle(cells: Iterable[Cell]) -> list[Bundle]:
    """Merge cells that look the same: kernels first, then vendors with the same kernels."""
    by_vendor: dict[str, dict[tuple[Outcome, str], list[Cell]]] = {}
    for cell in cells:
        by_vendor.setdefault(cell.vendor, {}).setdefault(cell.look, []).append(cell)
    merged: dict[tuple[tuple[Outcome, str], tuple[str, ...]], list[list[Cell]]] = {}
    for looks in by_vendor.values():
        for look, same in looks.items():
            merged.setdefault((look, tuple(cell.kernel for cell in same)), []).append(same)
    return [
        Bundle(tuple(same[0].vendor for same in rows), kernels, rows[0][0], _marks(cell for same in rows for cell in same))
        for (_, kernels), rows in merged.items()
    ]


def _marks(cells: Iterable[Cell]) -> str:
    found = {cell.vouched.by for cell in cells if cell.vouched is not None}
    return "".join(MARK[each] for each in Voucher if each in found)


@dataclass(slots=True)
class Matrix:
    """All rows, with the kernels and vendors that they were made for.

    ``vouching`` is true where somebody has looked what vouches for them.
    """

    kernels: tuple[str, ...]
    vendors: tuple[Vendor, ...]
    rows: list[Row] = field(default_factory=list)
    vouching: bool = False

    @property
    def vendor_names(self) -> tuple[str, ...]:
        """The vendors' names."""
        return tuple(vendor.name for vendor in self.vendors)

    def counts(self, rows: Iterable[Row] | None = None, kernel: str | None = None) -> dict[Outcome, int]:
        """How often each outcome occurs."""
        counts = dict.fromkeys(Outcome, 0)
        for row in self.rows if rows is None else rows:
            for cell in row.cells:
                if kernel in (None, cell.kernel):
                    counts[cell.outcome] += 1
        return counts

    def vouchers(self, kernel: str | None = None, vendor: str | None = None) -> dict[Voucher | None, int]:
        """How often each vouches for a cell that happened, ``None`` being nothing."""
        counts: dict[Voucher | None, int] = dict.fromkeys((*Voucher, None), 0)
        for row in self.rows:
            for cell in row.cells:
                if cell.happened and kernel in (None, cell.kernel) and vendor in (None, cell.vendor):
                    counts[cell.vouched.by if cell.vouched else None] += 1
        return counts

    def families(self) -> dict[str, list[Row]]:
        """The rows by family, those without a rule last."""
        families: dict[str, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: (row.family == NO_FAMILY, row.family, row.scenario.rule or "")):
            families.setdefault(row.family, []).append(row)
        return families

    @property
    def failed(self) -> bool:
        """Whether some cell is a FAIL."""
        return any(cell.outcome is Outcome.FAIL for row in self.rows for cell in row.cells)

    def to_json(self) -> MatrixJson:
        """The matrix as ``iommukit matrix --json`` writes it."""
        return {
            "kernels": list(self.kernels),
            "vendors": [{"name": vendor.name, "title": vendor.declaration.title} for vendor in self.vendors],
            "counts": _counts_json(self.counts()),
            "families": [self._family_json(name, rows) for name, rows in self.families().items()],
            "scenarios": [_row_json(row, vouching=self.vouching) for row in self.rows],
        }

    def _family_json(self, name: str, rows: list[Row]) -> FamilyJson:
        return {
            "family": name,
            "scenarios": len(rows),
            "kernels": {kernel: _counts_json(self.counts(rows, kernel)) for kernel in self.kernels},
        }


def build_matrix(
    scenarios: Sequence[Scenario],
    kernels: Sequence[Kernel],
    vendors: Sequence[Vendor],
    registry: VendorRegistry,
    *,
    evidence: Evidence | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Matrix:
    """Run everything once, and see in the evidence what vouches for it.  Raises ``InputError`` for a wrong scenario."""
    matrix = Matrix(tuple(kernel.name for kernel in kernels), tuple(vendors), vouching=evidence is not None)
    played = ""
    for scenario, result in run_cases(scenarios, kernels, vendors, registry, tick=tick):
        if not matrix.rows or matrix.rows[-1].scenario is not scenario:
            matrix.rows.append(Row(scenario))
            played = digest_of_played(scenario) if evidence is not None else ""
        cell = make_cell(scenario, result)
        if evidence is not None:
            cell = replace(cell, vouched=evidence.vouch(scenario, played, result, cell.answer))
        matrix.rows[-1].cells.append(cell)
    return matrix


def make_cell(scenario: Scenario, result: Result) -> Cell:
    """A result as a cell."""
    return Cell(result.kernel, result.vendor, result.outcome, answer(scenario, result), result.reason, result.findings)


def _counts_json(counts: dict[Outcome, int]) -> dict[str, int]:
    return {outcome.value: count for outcome, count in counts.items()}


def _row_json(row: Row, *, vouching: bool) -> RowJson:
    return {
        "scenario": row.scenario.scenario,
        "rule": row.scenario.rule,
        "family": row.family,
        "summary": row.scenario.summary,
        "kernels_differ": row.kernels_differ,
        "vendors_differ": row.vendors_differ,
        "cells": [_cell_json(cell, vouching=vouching) for cell in row.cells],
    }


def _cell_json(cell: Cell, *, vouching: bool) -> CellJson:
    found: CellJson = {
        "kernel": cell.kernel,
        "vendor": cell.vendor,
        "outcome": cell.outcome.value,
        "answer": cell.answer.text,
        "steps": list(cell.answer.steps),
        "types": dict(cell.answer.types),
        "groups": [list(group) for group in cell.answer.groups],
        "reason": cell.reason,
        "findings": list(cell.findings),
    }
    if vouching:
        found["vouched"] = cell.vouched.to_json() if cell.vouched else None
    return found


# ---- pages -----------------------------------------------------------------------------------------------------------


def names_or_all(names: Sequence[str], every: Sequence[str]) -> str:
    """The names, or ``all`` where nothing is missing from several."""
    return "all" if len(every) > 1 and set(names) == set(every) else listed(names)


def matrix_page(matrix: Matrix) -> Page:
    """Every scenario with its bundles; ``k`` and ``v`` mark where kernels and vendors differ, ``MARK`` what vouches."""
    page = Page()
    vouching = ("by",) if matrix.vouching else ()
    grid = page.grid("scenario", "rule", "differs", "vendors", "kernels", "outcome", *vouching, "answer")
    for rows in matrix.families().values():
        for row in rows:
            marks = ("k" if row.kernels_differ else "") + ("v" if row.vendors_differ else "")
            for number, bundled in enumerate(row.bundles()):
                cell = bundled.cell
                text = f"{cell.answer.text} — {cell.findings[0]}" if cell.findings else cell.answer.text
                grid.add(
                    Span(row.scenario.scenario, "name" if number == 0 else "repeat"),
                    Span(row.scenario.rule or "", "plain" if number == 0 else "repeat"),
                    Span(marks, "warn" if number == 0 else "repeat"),
                    names_or_all(bundled.vendors, matrix.vendor_names),
                    names_or_all(bundled.kernels, matrix.kernels),
                    Span(cell.outcome.value, OUTCOME_STYLE[cell.outcome]),
                    *(Span(bundled.marks, "bad" if "!" in bundled.marks else "dim") for _ in vouching),
                    Span(text, "dim" if not cell.happened else "plain"),
                    section=number == 0,
                )
    return page


def summary_page(matrix: Matrix) -> Page:
    """By rule family and kernel: how many of the cases that apply pass, and what is not green; then where answers differ."""
    page = Page()
    grid = page.grid("rules", "scenarios", *matrix.kernels)
    for name, rows in matrix.families().items():
        grid.add(Span(name, "name"), str(len(rows)), *(_tally(matrix.counts(rows, kernel)) for kernel in matrix.kernels))
    grid.add(
        Span("all", "head"),
        str(len(matrix.rows)),
        *(_tally(matrix.counts(kernel=kernel)) for kernel in matrix.kernels),
        section=True,
    )
    page.blank()
    if matrix.vouching:
        _add_vouchers(page, matrix)
    by_kernel = sum(row.kernels_differ for row in matrix.rows)
    by_vendor = sum(row.vendors_differ for row in matrix.rows)
    total = counted(len(matrix.rows), "scenario")
    page.line(f"{total}: kernels differ in {by_kernel}, vendors in {by_vendor}; ", outcomes_text(matrix.counts()), " of all cases.")
    return page


VOUCHER_STYLE: dict[Voucher | None, str] = {Voucher.KERNEL: "good", Voucher.CONTRADICTED: "bad", None: "dim"}


def _add_vouchers(page: Page, matrix: Matrix) -> None:
    """How many of the cases that apply each vouches for, and every case that a real kernel contradicts."""
    _count_vouchers(page, {kernel: matrix.vouchers(kernel) for kernel in matrix.kernels})
    if len(matrix.vendors) > 1:
        _count_vouchers(page, {vendor: matrix.vouchers(vendor=vendor) for vendor in matrix.vendor_names})
    for row in matrix.rows:
        for cell in row.cells:
            if cell.vouched is not None and cell.vouched.by is Voucher.CONTRADICTED:
                where = f"{row.scenario.scenario} under {cell.kernel} with {cell.vendor}"
                page.line(Span("contradicted", "bad"), f" by {cell.vouched.source}: {where}")


def _count_vouchers(page: Page, counts: dict[str, dict[Voucher | None, int]]) -> None:
    """A column for each kernel or vendor."""
    grid = page.grid("vouched for by", "mark", *counts)
    for voucher in (*Voucher, None):
        numbers = [each[voucher] for each in counts.values()]
        if any(numbers) or voucher is Voucher.KERNEL:
            style = VOUCHER_STYLE.get(voucher, "plain")
            name = Span(voucher.value if voucher else "nothing", "name")
            mark = MARK[voucher] if voucher else ""
            grid.add(name, mark, *(Span(str(number or "-"), style if number else "dim") for number in numbers))
    page.blank()


def outcomes_text(counts: dict[Outcome, int]) -> str:
    """``12 PASS, 1 FAIL``: outcomes that occur; PASS always."""
    return ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count or outcome is Outcome.PASS)


def _tally(counts: dict[Outcome, int]) -> Span:
    """``31/33`` passed of those judged, then what else there is, in words short enough for a column."""
    judged = counts[Outcome.PASS] + counts[Outcome.FAIL] + counts[Outcome.XFAIL]
    words = [f"{counts[Outcome.PASS]}/{judged}"] if judged else []
    for outcome, short in (
        (Outcome.FAIL, "FAIL"),
        (Outcome.XFAIL, "xfail"),
        (Outcome.UNDECIDED, "?"),
        (Outcome.NOT_APPLICABLE, "n/a"),
    ):
        if counts[outcome]:
            words.append(f"{counts[outcome]} {short}")
    style = "bad" if counts[Outcome.FAIL] else "good" if judged else "dim"
    return Span(", ".join(words) or "-", style)
