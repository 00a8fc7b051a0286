"""Debian's packages in a folder of their own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from iommukit_oracle.guest import packages
from iommukit_oracle.guest.kernels import kernel_files
from iommukit_oracle.guest.packages import Archive, Packages, Unavailable
from iommukit_oracle.guest.uefi import uefi_firmware

from .conftest import Unpacked


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


def test_names_match_wholly_and_are_in_the_order_of_their_numbers(tmp_path: Path, answers: dict[str, str]) -> None:
    answers["k-"] = "k-6.1.0-9\nk-6.1.0-10\nk-6.1.0-10-dbg\nk-6.1.0-2\nk-6.10.0-1\n"
    assert Packages(Archive("amd64"), tmp_path).named("k-", r"k-6\.1\.0-\d+") == ["k-6.1.0-2", "k-6.1.0-9", "k-6.1.0-10"]
    assert Packages(Archive("amd64"), tmp_path).named("z-", ".*") == []


def test_firmware_comes_from_its_package(tmp_path: Path, unpacked: Unpacked) -> None:
    unpacked("bookworm-arm64", "qemu-efi-aarch64", {"usr/share/doc/x": b""})
    with pytest.raises(Unavailable, match=r"qemu-efi-aarch64 does not hold QEMU_EFI.fd"):
        uefi_firmware(tmp_path)
    unpacked("bookworm-arm64", "qemu-efi-aarch64", {"usr/share/qemu-efi-aarch64/QEMU_EFI.fd": b"code"})
    assert uefi_firmware(tmp_path).read_bytes() == b"code"
