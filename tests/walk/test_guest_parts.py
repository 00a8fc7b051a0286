"""What a guest is made of, without booting it: archives, packages, traces."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest import packages
from iommukit_oracle.guest.initramfs import CpioEntry, Modules, cpio, initramfs
from iommukit_oracle.guest.mappings import decoded_pages, live_pages
from iommukit_oracle.guest.packages import Archive, Packages, Unavailable, kernel_files


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """An archive's entries as a kernel reads them: name, mode, content."""
    found = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        assert archive[at + 110 + length - 1] == 0
        at = at + 110 + length + 3 & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[at : at + size])
        at = at + size + 3 & ~3


def test_an_archive_holds_its_entries() -> None:
    entries = [CpioEntry(name, stat.S_IFREG | 0o644, bytes(size)) for name, size in (("a", 0), ("bc", 5), ("d/e", 4))]
    assert unpacked(cpio(entries)) == {entry.name: (entry.mode, entry.data) for entry in entries}


def test_modules_come_behind_what_they_need(tmp_path: Path) -> None:
    for name, needs in (("card", b"net,clock-base"), ("net", b""), ("clock_base", b"net"), ("other", b"card")):
        (tmp_path / f"{name.replace('_', '-')}.ko").write_bytes(b"\x7fELF\0depends=" + needs + b"\0")
    modules = Modules(tmp_path).in_order(["card"])
    assert list(modules) == ["net", "clock_base", "card"]
    found = unpacked(initramfs(b"program", "#!/bin/sh\n", modules))
    assert found["mods/order"][1] == b"net\nclock_base\ncard\n"
    assert found["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert found["mods/card.ko"][1] == modules["card"]
    with pytest.raises(InputError, match="the kernel has no module sound"):
        Modules(tmp_path).in_order(["sound"])


def test_a_package_is_unpacked_once_and_as_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    tree = tmp_path / "tree"
    for path in (
        "DEBIAN/control",
        "boot/vmlinuz-1",
        "boot/System.map-1",
        "lib/modules/1/drivers/net/a.ko",
        "lib/modules/1/sound/b.ko",
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(path)
    (tree / "DEBIAN/control").write_text("Package: k\nVersion: 1\nArchitecture: all\nMaintainer: n <n@n>\nDescription: d\n")
    (tree / "boot/link").symlink_to("/etc/passwd")
    (tree / "DEBIAN").chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "k.deb"], check=True, capture_output=True)
    fetched = []

    def download(self: Packages, name: str, version: str | None) -> Path:
        fetched.append(name)
        return Path(shutil.copy(tmp_path / "k.deb", self.folder / "k_1.deb"))

    monkeypatch.setattr(Packages, "_download", download)
    for _ in range(2):
        root = Packages(Archive("amd64"), tmp_path / "cache").unpacked("k", wanted=kernel_files)
    assert fetched == ["k"]
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "boot/vmlinuz-1",
        "lib/modules/1/drivers/net/a.ko",
    ]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "KEYRING", tmp_path / "key.gpg")
    with pytest.raises(Unavailable, match=r"key.gpg is missing; it comes with the package debian-archive-keyring"):
        Packages(Archive("amd64"), tmp_path).depends("x")
    (tmp_path / "key.gpg").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get is not on the path"):
        Packages(Archive("amd64"), tmp_path).depends("x")


TRACE = """@TRACE|entries: 1 overrun: 0
@map|iova=0x0000000000001000 - 0x0000000000002000 paddr=0x0000000000009000 size=4096
@TRACE|entries: 3 overrun: 0
@map|iova=0x0000000000001000 - 0x0000000000002000 paddr=0x0000000000009000 size=4096
@map|iova=0x0000000000004000 - 0x0000000000006000 paddr=0x0000000000020000 size=8192
@unmap|iova=0x0000000000001000 - 0x0000000000002000 size=4096 unmapped_size=4096
@READY
"""


def test_what_is_mapped_is_what_was_not_unmapped() -> None:
    assert live_pages(TRACE) == Counter([(0x4000, 0x20000), (0x5000, 0x21000)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("entries: 3 overrun: 0", "entries: 3 overrun: 7", "the trace is not complete"),
        ("entries: 3", "entries: 4", "3 events were printed"),
        ("@unmap|iova=0x0000000000001000", "@unmap|iova=0x0000000000007000", "an unmap of 0x7000, which is mapped 0 times"),
    ],
)
def test_a_trace_that_cannot_be_relied_on(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        live_pages(TRACE.replace(old, new))


def test_a_domain_of_several_devices_counts_once() -> None:
    device = {"mode": "translated", "domain": 1, "device": "x", "ranges": [{"iova": "0x1000", "physical": "0x2000", "size": 8192}]}
    other = device | {"domain": 2}
    found = decoded_pages({"devices": [device, device, other, {"mode": "pass-through", "domain": 3, "ranges": []}]})
    assert found == Counter({(0x1000, 0x2000): 2, (0x2000, 0x3000): 2})
    with pytest.raises(InputError, match="x has a bad entry for 0x1000: gone"):
        decoded_pages({"devices": [device | {"ranges": [{"iova": "0x1000", "physical": None, "size": 1, "reason": "gone"}]}]})
