"""The matrix as data and as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iommukit.errors import InputError
from iommukit_conformance.case import SUITE
from iommukit_conformance.summary import Matrix


def row(outcome: str, kernel: str = "rfc", vendor: str = "acme", **more: Any) -> dict[str, Any]:
    return {"case": "c", "rule": "DRV-22", "title": "A title.", "stage": "contract", "vendor": vendor, "kernel": kernel} | {
        "outcome": outcome,
        **more,
    }


def matrix_of(*rows: dict[str, Any]) -> Matrix:
    matrix = Matrix()
    for each in rows:
        matrix.add(each)
    return matrix


FOUND = [{"rule": "DRV-22", "text": "one"}, {"rule": "DRV-24", "text": "two"}]


def test_counts_are_complete() -> None:
    matrix = matrix_of(row("PASS"), row("PASS"), row("N/A", reason="r"), row("FAIL", "6.1", findings=FOUND))
    assert matrix.counts() == {
        "acme": {
            "rfc": {"PASS": 2, "FAIL": 0, "XFAIL": 0, "N/A": 1, "UNDECIDED": 0},
            "6.1": {"PASS": 0, "FAIL": 1, "XFAIL": 0, "N/A": 0, "UNDECIDED": 0},
        }
    }


def test_the_order_of_arrival_does_not_show() -> None:
    rows = [
        row("PASS"),
        row("UNDECIDED", "6.1", reason="the model crashed", fault=True),
        row("FAIL", "6.1", "zeta", findings=FOUND),
        row("UNDECIDED", "7.2", reason="another crash", fault=True),
    ]
    assert json.dumps(matrix_of(*rows).to_json()) == json.dumps(matrix_of(*reversed(rows)).to_json())


def test_a_failure_under_several_kernels_is_told_once() -> None:
    matrix = matrix_of(
        row("FAIL", "rfc", findings=FOUND), row("FAIL", "6.1", findings=FOUND), row("FAIL", "7.2", findings=FOUND[:1])
    )
    assert list(matrix.failed()) == [
        "acme under rfc, 6.1: DRV-22: A title. [c]",
        "    one",
        "    DRV-24: two",
        "acme under 7.2: DRV-22: A title. [c]",
        "    one",
    ]


@pytest.mark.parametrize(
    ("rows", "tested"),
    [
        ([row("PASS")], True),
        ([row("FAIL")], True),
        ([row("XFAIL")], True),
        ([row("N/A"), row("UNDECIDED")], False),
        ([row("PASS", vendor=SUITE)], False),
    ],
)
def test_tested(rows: list[dict[str, Any]], tested: bool) -> None:
    assert matrix_of(*rows).tested() is tested


def test_faults_are_of_the_suite_only() -> None:
    matrix = matrix_of(
        row("FAIL", findings=FOUND),
        row("FAIL", vendor=SUITE, findings=FOUND[:1]),
        row("UNDECIDED", reason="the model crashed", fault=True),
        row("UNDECIDED", reason="nothing is expected"),
    )
    assert matrix.faults() == ["c: one", "the model crashed"]


def test_reasons_are_counted() -> None:
    rows = [row("N/A", reason=f"r{number % 8}") for number in range(20)]
    lines = list(matrix_of(*rows).reasons())
    assert lines[0] == "      N/A      3  r0"
    assert lines[-1] == "      N/A      4  for 2 other reasons (--matrix-json has them all)"


def test_the_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    matrix = matrix_of(row("PASS"))
    matrix.write(tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == matrix.to_json()
    matrix.add(row("PASS", extra=object()))
    with pytest.raises(TypeError):
        matrix.write(tmp_path / "m.json")
    assert len(json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["cases"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        matrix_of().write(tmp_path / "nowhere" / "m.json")
