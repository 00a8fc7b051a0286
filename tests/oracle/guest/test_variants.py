"""Copies of QEMU with other numbers in them: a capability's header, vendor and device of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.variants import OWN_NUMBERS, WITHOUT_NP_CACHE, numbered, variant
from iommukit_oracle.hardware.qemu import Program

HEADER, CLEARED = bytes.fromhex("0f00031f"), bytes.fromhex("0f00031b")


def installed(folder: Path, content: bytes) -> Program:
    """A program that is installed with its neighbours."""
    for name in ("bin", "share/qemu", "lib"):
        (folder / name).mkdir(parents=True)
    (folder / "share/qemu/bios.bin").write_bytes(b"bios")
    path = folder / "bin/qemu-system-x86_64"
    path.write_bytes(content)
    return Program("x86_64", str(path), "7.2.0")


def test_one_number_differs_and_all_neighbours_are_found(tmp_path: Path) -> None:
    program = installed(tmp_path / "usr", b"code" + HEADER + b"more")
    copy = variant(program, [WITHOUT_NP_CACHE], tmp_path / "cache")
    path = Path(copy.path)
    assert path.read_bytes() == b"code" + CLEARED + b"more"
    assert path.stat().st_mode & 0o111
    assert (path.parent.parent / "share/qemu/bios.bin").read_bytes() == b"bios"
    assert (copy.arch, copy.release) == (program.arch, program.release)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert Path(program.path).read_bytes() == b"code" + HEADER + b"more"


def test_a_program_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    copies = {
        variant(installed(tmp_path / name, HEADER + extra), [WITHOUT_NP_CACHE], tmp_path).path
        for name, extra in (("a", b"1"), ("b", b"2"), ("c", b"1"))
    }
    assert len(copies) == 2


@pytest.mark.parametrize(("content", "times"), [(b"", 0), (HEADER * 2, 2)])
def test_a_program_that_cannot_be_changed(content: bytes, times: int, tmp_path: Path) -> None:
    program = installed(tmp_path / "usr", content)
    with pytest.raises(InputError, match=rf"qemu-system-x86_64: .* expected once and is there {times} times, so that"):
        variant(program, [WITHOUT_NP_CACHE], tmp_path)
    assert not (tmp_path / "qemu").exists()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: cannot be read: No such file or directory"):
        variant(Program("x86_64", str(tmp_path / "nothing"), "7.2.0"), [WITHOUT_NP_CACHE], tmp_path)


def test_a_model_is_given_other_numbers_and_the_copy_another_place(tmp_path: Path) -> None:
    program = installed(tmp_path / "usr", HEADER + bytes.fromhex("ad15c007"))
    trace, both = (numbered("pvscsi", "19e5:a12e"),), (WITHOUT_NP_CACHE, numbered("pvscsi", "19e5:a12e"))
    copies = [Path(variant(program, changes, tmp_path).path) for changes in (trace, both)]
    assert [path.read_bytes() for path in copies] == [HEADER + bytes.fromhex("e5192ea1"), CLEARED + bytes.fromhex("e5192ea1")]


def test_nothing_to_change_is_the_program_itself(tmp_path: Path) -> None:
    program = installed(tmp_path / "usr", b"")
    assert variant(program, [], tmp_path / "cache") is program
    assert not (tmp_path / "cache").exists()


def test_a_model_that_has_not_its_own_numbers_once(tmp_path: Path) -> None:
    program = installed(tmp_path / "usr", b"")
    with pytest.raises(InputError, match="vendor and device of pvscsi, 0x07c015ad, was expected once and is there 0 times"):
        variant(program, [numbered("pvscsi", "19e5:a12e")], tmp_path)


def test_models_have_numbers_of_their_own() -> None:
    assert len(set(OWN_NUMBERS.values())) == len(OWN_NUMBERS)
