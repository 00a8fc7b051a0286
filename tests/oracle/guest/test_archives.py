"""What a guest starts from: the archive as a kernel reads it, and modules in the order of their needs."""

from __future__ import annotations

import lzma
import stat
import subprocess
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.initramfs import CpioEntry, Modules, archive, cpio


def entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An archive's entries as a kernel reads them: name, mode, content."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        assert data[at + 110 + length - 1] == 0
        at = at + 110 + length + 3 & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[at : at + size])
        at = at + size + 3 & ~3


def test_an_archive_holds_its_entries() -> None:
    given = [CpioEntry(name, stat.S_IFREG | 0o644, bytes(size)) for name, size in (("a", 0), ("bc", 5), ("d/e", 4))]
    assert entries(cpio(given)) == {entry.name: (entry.mode, entry.data) for entry in given}


def test_files_come_behind_their_folders_and_the_console() -> None:
    found = entries(archive({"init": b"#!", "a/b/c": b"x"}))
    names = list(found)
    assert found["init"] == (stat.S_IFREG | 0o755, b"#!")
    assert stat.S_ISCHR(found["dev/console"][0])
    for folder in ("a", "a/b", "dev", "proc", "sys", "tmp"):
        assert stat.S_ISDIR(found[folder][0])
    assert names.index("a") < names.index("a/b") < names.index("a/b/c")
    assert names.index("dev") < names.index("dev/console")


def module(needs: str = "") -> bytes:
    """As much of a module as is read."""
    return b"\x7fELF\0depends=" + needs.encode() + b"\0"


def test_modules_come_behind_what_they_need(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    parts = ((one, "card", "net,clock-base"), (other, "net", ""), (one, "clock-base", "net,timer"), (one, "x", "card"))
    for folder, name, needs in parts:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.ko").write_bytes(module(needs))
    (other / "modules.builtin").write_text("kernel/drivers/timer.ko\nkernel/fs/a-file.ko\n")
    modules = Modules(one, other)
    found = modules.in_order(["card", "timer", "a-file", "net"])
    assert list(found) == ["net", "clock_base", "card"]
    assert found["card"] == module("net,clock-base")
    assert "timer" in modules
    assert "card" in modules
    assert "sound" not in modules
    with pytest.raises(InputError, match="the kernel has no module sound"):
        modules.in_order(["sound"])


def test_modules_are_unpacked(tmp_path: Path, zstd: str) -> None:
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(module("b")))
    (tmp_path / "b.ko.zst").write_bytes(subprocess.run([zstd, "-c"], input=module(), capture_output=True, check=True).stdout)
    assert Modules(tmp_path).in_order(["a"]) == {"b": module(), "a": module("b")}
