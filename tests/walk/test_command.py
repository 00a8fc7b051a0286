"""``iommukit walk`` as it is called: pages, JSON, limits, bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from iommukit.cli.main import cli
from iommukit.report.schemas import schema
from tests.walk.elf import core
from tests.walk.toy import READ, ROOT, WRITE, Ram, registry

Walk = Callable[..., Result]


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """Call ``iommukit walk dump`` on a memory, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(ram: Ram, *args: str, machine: int = 62) -> Result:
        Path("dump").write_bytes(core(list(ram.segments()), machine=machine))
        return CliRunner().invoke(cli, ("walk", "dump", *args), obj=registry())

    return call


@pytest.fixture
def ram() -> Ram:
    found = Ram()
    found.put(0xFFFF_E000, 0x1000)
    found.put(0xFFFF_F000, 0x2000)
    found.put(0x1000, 0x9000, flags=READ)
    found.put(0x20_0000, 0x4000_0000, level=2)
    return found


TOY = ("--vendor", "toy", "--root", f"root={ROOT:#x}")


def test_the_whole_map(walk: Walk, ram: Ram) -> None:
    result = walk(ram, *TOY)
    assert result.stdout.splitlines() == [
        "dump: 20 KiB of x86_64; toy from root 0x100000",
        "",
        "00:03.0 (0x18)  translated, domain 0x4",
        "  device  at 0x1000  0x99  V=1",
        "IOVA        size   physical    rights  pages       first entry",
        "0x1000      4 KiB  0x9000      r-      1 of 4 KiB  E1 at 0x104008",
        "0x200000    2 MiB  0x40000000  rw      1 of 2 MiB  E2 at 0x103008",
        "0xffffe000  8 KiB  0x1000      rw      2 of 4 KiB  E1 at 0x102ff0",
        "  3 ranges, 2060 KiB",
        "",
        "00:04.0 (0x20)  pass-through",
        "  device  at 0x1000  0x99  V=1",
        "",
        "00:05.0 (0x28)  bad entry: V=1 with T=7",
        "  device  at 0x1000  0x99  V=1",
    ]
    assert result.exit_code == 1  # the bad entry
    assert walk(ram, *TOY, "--device", "00:03.0").exit_code == 0


@pytest.mark.parametrize("device", ["00:03.0", "0000:00:03.0", "0x18", "24"])
def test_one_address_of_one_device(walk: Walk, ram: Ram, device: str) -> None:
    result = walk(ram, *TOY, "--device", device, "--iova", "0xfffff123")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2:] == [
        "00:03.0 (0x18)  translated, domain 0x4",
        "  device  at 0x1000    0x99      V=1",
        "  E3      at 0x100018  0x101003  R=1 W=1",
        "  E2      at 0x101ff8  0x102003  R=1 W=1",
        "  E1      at 0x102ff8  0x2003    R=1 W=1",
        "  0xfffff123 → 0x2123 (rw, page of 4 KiB)",
    ]


def test_an_address_that_is_not_mapped(walk: Walk, ram: Ram) -> None:
    result = walk(ram, *TOY, "--device", "0x18", "--iova", "0x3000")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2:] == ["  E1      at 0x104018  0x0       R=0 W=0", "  0x3000 → not present"]
    passed = walk(ram, *TOY, "--device", "0x20", "--iova", "0x3000")
    assert passed.exit_code == 0
    assert passed.stdout.splitlines()[-1] == "  0x3000 → 0x3000"


def test_json_is_as_its_schema_says(walk: Walk, ram: Ram) -> None:
    for extra in ((), ("--device", "0x18"), ("--iova", "0x3000"), ("--iova", "0x1000")):
        jsonschema.validate(json.loads(walk(ram, *TOY, *extra, "--json").stdout), schema("walk"))
    answer = json.loads(walk(ram, *TOY, "--device", "0x18", "--json").stdout)
    assert answer["devices"][0]["domain"] == 4
    assert answer["devices"][0]["ranges"][2] == {
        "iova": "0xffffe000",
        "size": 8192,
        "physical": "0x1000",
        "read": True,
        "write": True,
        "pages": {"4096": 2},
        "entries": [
            {"name": "E3", "address": "0x100018", "value": "0x101003", "meaning": "R=1 W=1"},
            {"name": "E2", "address": "0x101ff8", "value": "0x102003", "meaning": "R=1 W=1"},
            {"name": "E1", "address": "0x102ff0", "value": "0x1003", "meaning": "R=1 W=1"},
        ],
    }


def test_plain_memory(walk: Walk, ram: Ram, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(b"".join(data for _, data in ram.segments()))
    args = ("walk", "ram", "--base", hex(ROOT), *TOY, "--device", "0x18", "--iova", "0x1000")
    result = CliRunner().invoke(cli, args, obj=registry())
    assert result.stdout.splitlines()[-1] == "  0x1000 → 0x9000 (r-, page of 4 KiB)"


def test_a_limit_is_said(walk: Walk, ram: Ram) -> None:
    result = walk(ram, *TOY, "--limit", "2")
    assert result.stdout.splitlines()[-1] == "cut: more than 2 ranges; --limit allows for more"
    assert json.loads(walk(ram, *TOY, "--limit", "2", "--json").stdout)["cut"].startswith("more than 2 ranges")
    assert json.loads(walk(ram, *TOY, "--limit", "3", "--json").stdout)["cut"] is None


@pytest.mark.parametrize("odd", [READ | WRITE, READ], ids=["joined", "apart"])
def test_tables_that_name_each_other_end(walk: Walk, odd: int) -> None:
    """Every entry of the root names the root: 2^27 pages, which join or do not."""
    ram = Ram()
    ram.tables[ROOT] = [ROOT | READ | WRITE, ROOT | odd] * 256
    before = time.monotonic()
    result = walk(ram, *TOY, "--device", "0x18", "--tables", "2000")
    assert time.monotonic() - before < 10
    assert result.stdout.splitlines()[-1].startswith("cut: more than ")


def test_tables_outside_the_dump(walk: Walk) -> None:
    ram = Ram()
    ram.tables[ROOT] = [1 << 40 | READ] * 512
    result = walk(ram, *TOY, "--device", "0x18")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "  0 ranges, 0 bytes, 512 bad entries"


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no-root": (("--vendor", "toy"), "--root root=VALUE is needed; toy has root (where the tables begin), mode (1 for nothing)"),
    "other-root": (("--vendor", "toy", "--root", "rtaddr=1"), "--root rtaddr=1: NAME=VALUE was expected, with a name among root"),
    "root-twice": ((*TOY, "--root", "root=1"), "--root root is given twice"),
    "root-text": (("--vendor", "toy", "--root", "root=here"), "--root root: a number from 0 to 2^64 - 1 was expected"),
    "root-large": (("--vendor", "toy", "--root", "root=0x10000000000000000"), "a number from 0 to 2^64 - 1 was expected"),
    "device": ((*TOY, "--device", "00:3"), "--device: a PCI address such as 00:03.0 or a number was expected, not '00:3'"),
    "device-text": ((*TOY, "--device", "nic"), "--device: a number from 0"),
    "iova": ((*TOY, "--iova", "-1"), "--iova: a number from 0"),
    "base": ((*TOY, "--base", "x"), "--base: a number from 0"),
    "limit": ((*TOY, "--limit", "0"), "--limit"),
    "blind": (("--vendor", "blind"), "blind does not read tables"),
    "vendor": (("--vendor", "acme"), "no vendor 'acme'; installed: blind, toy"),
    "no-vendor": ((), "Missing option '--vendor'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, walk: Walk, ram: Ram) -> None:
    args, message = BAD[name]
    result = walk(ram, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_dump_of_another_machine(walk: Walk, ram: Ram) -> None:
    result = walk(ram, *TOY, machine=183)
    assert (result.exit_code, result.stderr) == (2, "iommukit: dump: is of aarch64; toy exists on x86_64\n")
