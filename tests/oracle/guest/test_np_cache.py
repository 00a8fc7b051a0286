"""A copy of QEMU whose AMD IOMMU has another capability header."""

from __future__ import annotations

from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.np_cache import without_np_cache
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
    copy = without_np_cache(program, tmp_path / "cache")
    path = Path(copy.path)
    assert path.read_bytes() == b"code" + CLEARED + b"more"
    assert path.stat().st_mode & 0o111
    assert (path.parent.parent / "share/qemu/bios.bin").read_bytes() == b"bios"
    assert (copy.arch, copy.release) == (program.arch, program.release)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert Path(program.path).read_bytes() == b"code" + HEADER + b"more"


def test_a_program_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    copies = {
        without_np_cache(installed(tmp_path / name, HEADER + extra), tmp_path).path
        for name, extra in (("a", b"1"), ("b", b"2"), ("c", b"1"))
    }
    assert len(copies) == 2


@pytest.mark.parametrize(("content", "times"), [(b"", 0), (HEADER * 2, 2)])
def test_a_program_that_cannot_be_changed(content: bytes, times: int, tmp_path: Path) -> None:
    program = installed(tmp_path / "usr", content)
    with pytest.raises(InputError, match=rf"qemu-system-x86_64: .* expected once and is there {times} times, so that"):
        without_np_cache(program, tmp_path)
    assert not (tmp_path / "qemu").exists()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: cannot be read: No such file or directory"):
        without_np_cache(Program("x86_64", str(tmp_path / "nothing"), "7.2.0"), tmp_path)
