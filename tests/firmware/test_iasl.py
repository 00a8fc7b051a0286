"""Agreement with iasl, field by field."""

from __future__ import annotations

from pathlib import Path

from tests.firmware.conftest import FORMATS
from tests.firmware.iasl import BITS, NAMES, Report, compare


def test_every_field_that_iasl_shows(tables_folder: Path) -> None:
    report = Report()
    texts = sorted(tables_folder.glob("linuxhw/*.iasl.txt"))
    for path in texts:
        data = path.with_name(path.name.replace(".iasl.txt", ".aml")).read_bytes()
        before = len(report.wrong)
        compare(path.read_text(encoding="latin-1"), FORMATS[data[:4]].layout(data), report)
        report.wrong[before:] = [f"{path.name}: {wrong}" for wrong in report.wrong[before:]]
    assert len(texts) == 203
    assert report.wrong == []
    assert report.left == {}, "lines that are neither compared nor known to be no field"
    assert set(report.compared) == set(NAMES), "a name of iasl's that no table has, or the other way round"
    assert set(report.bits) == set(BITS)
    assert report.compared.total() == 18_330
    assert report.bits.total() == 7_169


def test_the_comparison_notices(tables_folder: Path) -> None:
    path = min(tables_folder.glob("linuxhw/ivrs-*.iasl.txt"))
    data = path.with_name(path.name.replace(".iasl.txt", ".aml")).read_bytes()
    text = path.read_text(encoding="latin-1")
    for old, new in (
        ("Base Address : 00000000FD200000", "Base Address : 00000000FD200001"),
        ("Coherent : 1", "Coherent : 0"),
        ("Handle :", "Variety :"),
        ('"AMDI0020"', '"AMDI0021"'),
    ):
        report = Report()
        assert old in text
        compare(text.replace(old, new, 1), FORMATS[data[:4]].layout(data), report)
        assert len(report.wrong) == 1, (old, report.wrong)
