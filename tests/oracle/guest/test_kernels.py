"""Kernels from Debian's packages and from elsewhere, and what QEMU enters."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.kernels import RELEASES, debian_kernel, direct_image, own_kernel
from iommukit_oracle.guest.packages import Unavailable

from .conftest import Unpacked


def test_the_newest_package_counts(tmp_path: Path, answers: dict[str, str], unpacked: Unpacked) -> None:
    answers["linux-image-6"] = answers["linux-image-6.1"] = (
        "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-50-amd64\nlinux-image-6.1.0-51-rt-amd64\nlinux-image-6.1.0-52-amd64-unsigned\n"
    )
    unpacked(
        "bookworm-amd64",
        "linux-image-6.1.0-50-amd64",
        {"boot/vmlinuz-6.1.0-50-amd64": b"", "boot/config-6.1.0-50-amd64": b"", "lib/modules/6.1.0-50-amd64/modules.builtin": b""},
    )
    kernel = debian_kernel("6.1", "amd64", tmp_path)
    assert kernel.name == "6.1"
    assert kernel.package == "linux-image-6.1.0-50-amd64 (bookworm)"
    assert kernel.image.name == "vmlinuz-6.1.0-50-amd64"
    assert [folder.name for folder in kernel.modules] == ["6.1.0-50-amd64"]


def test_a_kernel_in_parts(tmp_path: Path, answers: dict[str, str], unpacked: Unpacked) -> None:
    own = "7.2.13+deb14-amd64"
    answers["linux-image-7"] = answers["linux-image-7.2"] = f"linux-image-{own}\n"
    needs = ("linux-base", f"linux-binary-{own}", f"linux-modules-{own}", "kmod")
    answers[f"linux-image-{own}"] = "".join(f"  Depends: {name}\n" for name in needs)
    unpacked("sid-amd64", f"linux-image-{own}", {"usr/share/doc/x": b""})
    unpacked("sid-amd64", f"linux-binary-{own}", {f"usr/lib/modules/{own}/vmlinuz": b""})
    unpacked("sid-amd64", f"linux-modules-{own}", {f"usr/lib/modules/{own}/kernel/a.ko": b""})
    kernel = debian_kernel("7.2", "amd64", tmp_path)
    assert kernel.image.name == "vmlinuz"
    assert any((folder / "kernel/a.ko").exists() for folder in kernel.modules)
    assert kernel.package == f"linux-image-{own} (sid)"


def test_a_kernel_that_is_not_to_be_had(tmp_path: Path, answers: dict[str, str], unpacked: Unpacked) -> None:
    with pytest.raises(
        Unavailable, match=r"6\.12 is not to be had: bookworm-backports has none for s390x today; trixie has none for s390x today"
    ):
        debian_kernel("6.12", "s390x", tmp_path)
    with pytest.raises(InputError, match=r"no kernel package is known for 5\.4; there are 6\.1, 6\.12, 7\.2, or give"):
        debian_kernel("5.4", "amd64", tmp_path)
    assert list(RELEASES) == ["6.1", "6.12", "7.2"]
    answers["linux-image-6"] = answers["linux-image-6.1"] = "linux-image-6.1.0-1-arm64\n"
    unpacked("bookworm-arm64", "linux-image-6.1.0-1-arm64", {"usr/share/doc/x": b""})
    with pytest.raises(Unavailable, match="does not hold a kernel and its modules"):
        debian_kernel("6.1", "arm64", tmp_path)


def test_an_image_of_ones_own(tmp_path: Path) -> None:
    image = tmp_path / "Image"
    with pytest.raises(InputError, match=r"Image: a kernel image was expected"):
        own_kernel("rfc", image)
    image.write_bytes(b"")
    assert own_kernel("rfc", image).modules == ()
    with pytest.raises(InputError, match=r"nowhere: a folder with modules was expected"):
        own_kernel("rfc", image, tmp_path / "nowhere")
    kernel = own_kernel("rfc", image, tmp_path)
    assert (kernel.name, kernel.modules, kernel.package) == ("rfc", (tmp_path,), "own image Image")


def elf(*notes: tuple[int, bytes, bytes]) -> bytes:
    """A 64-bit file with one segment of notes: type, name, description."""
    body = b"".join(
        struct.pack("<III", len(name), len(text), kind) + name + bytes(-len(name) % 4) + text + bytes(-len(text) % 4)
        for kind, name, text in notes
    )
    start = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return start + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(body), len(body), 4) + body


KERNEL = elf((1, b"GNU\0", b"xyz"), (18, b"Xen\0", b"\0\0\0\1\0\0\0\0"))


def bzimage(payload: bytes) -> bytes:
    """An image whose real-mode part has one sector."""
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"more"


def packed(form: str, zstd: str) -> bytes:
    """The kernel, compressed as kernels are."""
    if form == "zstd":
        stream = subprocess.run([zstd, "-c"], input=KERNEL, capture_output=True, check=True).stdout
        return stream + struct.pack("<I", len(KERNEL))
    return lzma.compress(KERNEL) if form == "xz" else gzip.compress(KERNEL)


@pytest.mark.parametrize("form", ["xz", "gzip", "zstd"])
def test_the_kernel_inside_an_image(form: str, tmp_path: Path, zstd: str) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(packed(form, zstd)))
    inside = direct_image(image, tmp_path)
    assert inside != image
    assert inside.read_bytes() == KERNEL
    assert direct_image(image, tmp_path) == inside
    assert [path.name for path in inside.parent.iterdir()] == [inside.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KERNEL,
        bzimage(lzma.compress(KERNEL)[:40]),
        bzimage(lzma.compress(KERNEL + bytes(range(256)) * 99)[:-60]),
        bzimage(gzip.compress(KERNEL)[:40]),
        bzimage(gzip.compress(KERNEL)[:-8] + bytes(8)),
        bzimage(b"\x28\xb5\x2f\xfd broken"),
        bzimage(b"\x02\x21\x4c\x18 lz4 is not known"),
        bzimage(gzip.compress(b"MZ no ELF file")),
        bzimage(gzip.compress(elf((1, b"GNU\0", b"")))),
        bzimage(gzip.compress(KERNEL[:70])),
        bzimage(gzip.compress(KERNEL[:-30])),
        bzimage(gzip.compress(KERNEL))[:0x24A],
    ],
    ids=lambda content: f"{len(content)}",
)
def test_what_cannot_be_entered_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(content)
    assert direct_image(image, tmp_path) == image
