"""The same, without booting: extracts of real guests' memory that lie in ``data`` (see its README)."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from iommukit.cli.main import cli
from iommukit.machine.dump import Dump
from iommukit.vendors import VendorRegistry
from iommukit_oracle.guest.extract import pages_read, sparse_core
from iommukit_oracle.guest.mappings import NIC, PAGE, decoded_pages

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))


@pytest.fixture(params=NAMES)
def known(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is known of an extract, which lies as ``guest.elf`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("guest.elf").write_bytes(lzma.decompress((DATA / f"{request.param}.elf.xz").read_bytes()))
    found: dict[str, Any] = json.loads((DATA / f"{request.param}.json").read_text())
    return found


def walk(known: dict[str, Any], *args: str) -> Any:
    roots = [word for name, value in known["roots"].items() for word in ("--root", f"{name}={value}")]
    result = CliRunner().invoke(cli, ["walk", "guest.elf", "--vendor", known["vendor"], *roots, *args, "--json"])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def test_there_are_extracts_of_several_vendors() -> None:
    assert len(NAMES) >= 3


def test_every_mapping_is_found_and_nothing_else(known: dict[str, Any]) -> None:
    runs = [[int(number, 0) for number in run.split()] for run in known["mapped"]]
    mapped = Counter((iova + offset, physical + offset) for iova, physical, size in runs for offset in range(0, size, PAGE))
    assert len(mapped) > 200
    assert decoded_pages(walk(known)) == mapped


def test_each_address_by_itself(known: dict[str, Any]) -> None:
    (whole,) = walk(known, "--device", NIC)["devices"]
    for each in whole["ranges"][::40]:
        (device,) = walk(known, "--device", NIC, "--iova", hex(int(each["iova"], 0) + 0x123))["devices"]
        (page,) = device["ranges"]
        assert (page["iova"], page["physical"]) == (each["iova"], each["physical"])
        assert page["entries"] == each["entries"]
        assert all(entry["meaning"] for entry in (*device["entries"], *page["entries"]))


def test_what_is_not_mapped_has_a_reason(known: dict[str, Any]) -> None:
    for address in ("0x7000000000", "0xffffffffffff000"):
        (device,) = walk(known, "--device", NIC, "--iova", address)["devices"]
        (nothing,) = device["ranges"]
        assert nothing["physical"] is None
        assert nothing["reason"]


def test_an_extract_holds_what_a_walk_reads(known: dict[str, Any]) -> None:
    """Made again from itself, it is the same."""
    dump = Dump("guest.elf")
    roots = {name: int(value, 0) for name, value in known["roots"].items()}
    pages = pages_read(dump, VendorRegistry.installed().get(known["vendor"]), roots)
    Path("again.elf").write_bytes(sparse_core(dump, pages))
    assert Dump("again.elf").size <= dump.size
    before = walk(known)
    Path("again.elf").rename("guest.elf")
    assert walk(known) | {"memory": 0} == before | {"memory": 0}


@pytest.mark.parametrize("known", ["amd"], indirect=True)
def test_another_vendor_s_table_is_recognised_as_such(known: dict[str, Any]) -> None:
    root = int(known["roots"]["devtab"], 0) & ~0xFFF
    result = CliRunner().invoke(cli, ["walk", "guest.elf", "--vendor", "intel_vtd", "--root", f"rtaddr={root:#x}"])
    assert result.exit_code == 1
    assert result.stdout.count("bad entry") == 3
    assert "all 256 entries are bad: is this the right root, and intel_vtd's table?" in result.stdout
