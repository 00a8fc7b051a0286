"""Perl, the agent and a kernel's modules in one archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest import userland
from iommukit_oracle.guest.kernels import GuestKernel
from iommukit_oracle.guest.packages import Unavailable
from iommukit_oracle.guest.userland import USERLANDS, initrd, programs

from .conftest import Unpacked
from .test_archives import entries, module

LIBRARIES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu", "s390x": "s390x-linux-gnu"}


@pytest.fixture
def debian(unpacked: Unpacked) -> None:
    """As much of three packages as is needed, and some that is not."""
    for arch, name in LIBRARIES.items():
        linker = USERLANDS[arch].linker.rpartition("/")[2]
        lib = f"usr/lib/{name}"
        perl = {
            "usr/bin/perl": b"perl",
            "usr/bin/perl5": b"",
            f"{lib}/perl-base/strict.pm": b"strict",
            f"{lib}/perl-base/POSIX.pm": b"",
        }
        unpacked(f"bookworm-{arch}", "perl-base", perl)
        unpacked(
            f"bookworm-{arch}",
            "libc6",
            {f"lib/{name}/{file}": file.encode() for file in ("libc.so.6", "libm.so.6", linker, "libz.so.6")}
            | {f"{lib}/gconv/libc.so.6": b"another"},
        )
        unpacked(f"bookworm-{arch}", "libcrypt1", {f"lib/{name}/libcrypt.so.1.1.0": b"crypt"})


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize("arch", USERLANDS)
def test_perl_is_where_programs_look_for_it(arch: str, tmp_path: Path) -> None:
    found = programs(arch, tmp_path)
    linker = USERLANDS[arch].linker
    assert found == {
        f"machine/{USERLANDS[arch].machine}": b"",
        "bin/perl": b"perl",
        f"usr/lib/{LIBRARIES[arch]}/perl-base/strict.pm": b"strict",
        "lib/libc.so.6": b"libc.so.6",
        "lib/libm.so.6": b"libm.so.6",
        "lib/libcrypt.so.1": b"crypt",
        linker: linker.rpartition("/")[2].encode(),
    }


def test_a_package_without_what_is_needed(tmp_path: Path, unpacked: Unpacked) -> None:
    for name in userland.PACKAGES:
        unpacked("bookworm-amd64", name, {"usr/bin/perl": b""})
    with pytest.raises(Unavailable, match=r"for amd64 do not hold lib/libc\.so\.6"):
        programs("amd64", tmp_path)


@pytest.mark.usefixtures("debian")
def test_what_a_guest_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOMMUKIT_CACHE", str(tmp_path))
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "card.ko").write_bytes(module("net"))
    (modules / "net.ko").write_bytes(module())
    kernel = GuestKernel("6.1", tmp_path, (modules,), "")
    found = entries(initrd(kernel, "amd64", ["card"], {"etc/x": b"more"}))
    assert found["init"][1].startswith(b"#!/bin/perl\n")
    assert found["mods/order"][1] == b"net\ncard\n"
    assert found["mods/card.ko"][1] == module("net")
    assert found["etc/x"][1] == b"more"
    assert "bin/perl" in found
    with pytest.raises(InputError, match="the kernel has no module sound"):
        initrd(kernel, "amd64", ["sound"])
    # All is built into a kernel that comes without modules.
    assert entries(initrd(GuestKernel("own", tmp_path, (), ""), "amd64", ["sound"]))["mods/order"][1] == b""
