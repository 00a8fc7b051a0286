"""Copies of QEMU with other numbers in them."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.variants import HEADER, NP_CACHE, OWN_NUMBERS, WITHOUT_NP_CACHE, numbered, variant
from iommukit_oracle.hardware.qemu import Program


def _program(folder: Path, data: bytes) -> Program:
    (folder / "bin").mkdir()
    (folder / "share").mkdir()
    path = folder / "bin" / "qemu-system-test"
    path.write_bytes(data)
    return Program("test", str(path), "7.2.0")


def test_a_number_is_another_one_in_the_copy(tmp_path: Path) -> None:
    program = _program(tmp_path, b"before" + HEADER.to_bytes(4, "little") + bytes.fromhex("ad15c007") + b"after")
    header = (HEADER & ~NP_CACHE).to_bytes(4, "little")
    made = variant(program, [WITHOUT_NP_CACHE, numbered("pvscsi", "19e5:a12e")], tmp_path / "cache")
    assert Path(made.path).read_bytes() == b"before" + header + bytes.fromhex("e5192ea1") + b"after"
    assert Path(made.path).stat().st_mode & stat.S_IXUSR
    assert (Path(made.path).parent.parent / "share").resolve() == tmp_path / "share"
    assert replace(made, path=program.path) == program


def test_nothing_to_change_is_the_program_itself(tmp_path: Path) -> None:
    program = _program(tmp_path, b"")
    assert variant(program, [], tmp_path / "cache") is program
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("times", [0, 2])
def test_a_number_that_is_not_there_once_is_refused(tmp_path: Path, times: int) -> None:
    program = _program(tmp_path, bytes.fromhex("ad15c007") * times)
    with pytest.raises(InputError, match=f"vendor and device of pvscsi, 0x07c015ad, was expected once and is there {times} times"):
        variant(program, [numbered("pvscsi", "19e5:a12e")], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_models_have_numbers_of_their_own() -> None:
    assert len(set(OWN_NUMBERS.values())) == len(OWN_NUMBERS)
