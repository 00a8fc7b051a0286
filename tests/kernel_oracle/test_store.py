"""Boots as data: written, read, looked up; damaged files are told by file and line."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.kernel.record import BootRecord
from iommukit_oracle.kernel.store import Store, boot_line, iter_boots, load_store, write_boots

from .conftest import LIVE


def other(boot: BootRecord) -> BootRecord:
    """Another boot, with other scenarios."""
    runs = tuple(run.model_copy(update={"scenario": f"{run.scenario}-too"}) for run in boot.runs)
    return boot.model_copy(update={"cmdline": "iommu.strict=0", "runs": runs})


def test_what_is_written_is_read(boot: BootRecord, tmp_path: Path) -> None:
    path = write_boots(tmp_path / "new", boot.kernel, boot.vendor, [boot, other(boot)])
    assert path.name == "6.12-intel_vtd.jsonl.xz"
    assert [source for source, _ in iter_boots(path)] == [f"{path}:1", f"{path}:2"]
    store = load_store([path.parent])
    assert store.find(LIVE, "6.12", "intel_vtd") == (boot, next(run for run in boot.runs if run.scenario == LIVE))
    assert store.find(LIVE, "6.1", "intel_vtd") is None


def test_the_order_of_boots_does_not_matter(boot: BootRecord, tmp_path: Path) -> None:
    one, two = (
        write_boots(tmp_path / name, "6.12", "intel_vtd", boots).read_bytes()
        for name, boots in (("a", [boot, other(boot)]), ("b", [other(boot), boot]))
    )
    assert one == two


def test_a_scenario_that_is_there_twice(boot: BootRecord, tmp_path: Path) -> None:
    path = write_boots(tmp_path, "6.12", "intel_vtd", [boot, boot])
    with pytest.raises(InputError, match=r"jsonl\.xz:2: .* under 6\.12 on intel_vtd is there twice"):
        load_store([path])


def broken(boot: BootRecord, **changes: object) -> str:
    return json.dumps({**json.loads(boot_line(boot)), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "runs: tuple should have at least 1 item"),
        ({"runs": [{"scenario": "a"}]}, "runs.0.digest: this key is missing"),
        ({"pci": [{"bdf": "../..", "id": "8086:10d3"}]}, "pci.0.bdf: string should match pattern"),
        ({"surprise": 1}, "surprise: extra inputs are not permitted"),
        ({"kernel": None}, "kernel: input should be a valid string"),
    ],
)
def test_a_wrong_line_is_told_by_its_place(changes: dict[str, object], message: str, boot: BootRecord, tmp_path: Path) -> None:
    path = tmp_path / "boots.jsonl"
    path.write_text(f"{boot_line(other(boot))}\n{broken(boot, **changes)}\n")
    with pytest.raises(InputError) as caught:
        load_store([path])
    assert str(caught.value).startswith(f"{path}:2")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xfd7zXZ\x00rest", "is no xz file, or a damaged one"),
        (lzma.compress(b"{}")[:-4], "is no xz file, or a damaged one"),
        (lzma.compress(b"[" * 100_000), "is nested too deeply"),
        (lzma.compress(b"[1]"), "a recording"),
        (lzma.compress(b"\xff"), "is not UTF-8 text"),
    ],
)
def test_a_damaged_file(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "boots.jsonl.xz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_store([path])


def test_where_nothing_can_be_written(boot: BootRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_boots(tmp_path / "file", "6.12", "intel_vtd", [boot])


def test_an_empty_store() -> None:
    assert Store().find("a", "b", "c") is None
