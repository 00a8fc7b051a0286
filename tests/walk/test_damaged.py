"""Dumps that lack tables, and what is no dump: one bad entry each, or one line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iommukit.cli.main import cli

BASE = 0x10000
FAR = 0x7FFF_0000
"""Where no memory is."""


def walk(folder: Path, words: Mapping[int, int], *args: str) -> Result:
    """Walk a plain memory of 64 KiB from ``BASE`` on, with these words by address."""
    memory = bytearray(1 << 16)
    for address, word in words.items():
        memory[address - BASE : address - BASE + 8] = word.to_bytes(8, "little")
    (folder / "ram").write_bytes(memory)
    return CliRunner().invoke(cli, ["walk", str(folder / "ram"), "--base", hex(BASE), *args])


VTD = ("--vendor", "intel_vtd", "--root", f"rtaddr={BASE:#x}")
SMMU = ("--vendor", "arm_smmu", "--root", f"strtab_base={BASE:#x}")
AMD = ("--vendor", "amd_vi", "--root", f"devtab={BASE:#x}")


def test_a_context_table_that_is_missing_hides_no_other_bus(tmp_path: Path) -> None:
    words = {BASE + 16: FAR | 1, BASE + 2 * 16: BASE + 0x1000 | 1, BASE + 0x1000: BASE + 0x2000 | 1, BASE + 0x1008: 0x102}
    result = walk(tmp_path, words, *VTD)
    assert result.exit_code == 1
    assert "01:00.0 (0x100)  bad entry: context access (reason 0x9)" in result.stdout
    assert "02:00.0 (0x200)  translated, domain 0x1" in result.stdout


def test_a_second_level_stream_table_that_is_missing_hides_no_other(tmp_path: Path) -> None:
    bypass = 0b100 << 1 | 1
    result = walk(tmp_path, {BASE: FAR | 1, BASE + 8: BASE + 0x4000 | 1, BASE + 0x4000: bypass}, *SMMU)
    assert result.exit_code == 1
    assert "00:00.0 (0x0)  bad entry: F_STE_FETCH: no memory for the entry" in result.stdout
    assert "01:00.0 (0x100)  pass-through" in result.stdout


def test_a_gcr3_table_that_is_missing_hides_no_other_device(tmp_path: Path) -> None:
    # V, TV, GV, GLX 0, IR and IW; the GCR3 table's address in its three pieces (2.2.2.1).
    root = FAR >> 12
    low = 3 | 1 << 55 | (root & 7) << 58 | 3 << 61
    high = (root >> 3 & 0xFFFF) << 16 | root >> 19 << 43
    result = walk(tmp_path, {BASE: low, BASE + 8: high, BASE + 32: 3 | 3 << 61, BASE + 40: 7}, *AMD)
    assert result.exit_code == 1
    assert f"bad entry, domain 0x0: no memory for the GCR3 table at {FAR:#x}" in result.stdout
    assert "00:00.1 (0x1)  pass-through, domain 0x7" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*VTD, "--device", "0x10000"), "0x10000 is no requester id"),
        ((*AMD, "--device", "0xffff"), "0xffff is beyond the device table of 128 entries"),
        ((*VTD, "--device", "\u0663"), "--device: a number from 0 to 2^64 - 1 was expected"),
    ],
)
def test_devices_that_cannot_be(tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    result = walk(tmp_path, {}, *args)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = "/dev/zero"
    if kind == "pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
    result = CliRunner().invoke(cli, ["walk", path, *VTD])
    assert result.exit_code == 2
    assert "a file was expected, not a pipe or device" in result.stderr
