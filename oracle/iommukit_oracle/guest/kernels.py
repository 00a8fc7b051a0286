"""Kernels to boot: Debian's by the names that profiles have, or somebody's own image.

A release is a pattern for the names of Debian's packages and the suites that are asked for them in turn; the newest package counts.
What has been fetched once stays in the cache folder, so that a release which an archive has dropped can still be booted there.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iommukit.errors import InputError
from iommukit_oracle.guest.packages import Archive, Packages, Unavailable, cache_folder


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel to boot.

    ``name`` is that of its profile; ``modules`` are folders with its modules and with the list of those that are built in
    (``modules.builtin``), none where all is built in; ``package`` says where it comes from.
    """

    name: str
    image: Path
    modules: tuple[Path, ...]
    package: str


@dataclass(frozen=True, slots=True)
class Release:
    """Where Debian has a kernel: suites in the order in which they are asked, a pattern of the package's name before ``-ARCH``."""

    suites: Sequence[str]
    pattern: str


RELEASES: Mapping[str, Release] = {
    "6.1": Release(("bookworm",), r"linux-image-6\.1\.0-\d+"),
    "6.12": Release(("bookworm-backports", "trixie"), r"linux-image-6\.12\.\d+\+deb\d+"),
    "7.2": Release(("sid",), r"linux-image-7\.2\.\d+\+deb\d+"),
}
"""By the names of the profiles."""

UNWANTED = ("drivers/gpu/", "drivers/media/", "drivers/staging/", "drivers/infiniband/", "drivers/net/wireless/", "/sound/", "/fs/")
"""Modules that no guest here loads: most of a kernel's bytes."""
PARTS = ("linux-base-", "linux-binary-", "linux-modules-")
"""Packages that a kernel's package is split into since Debian 14."""


def kernel_files(path: str) -> bool:
    """Which of a kernel's files are kept: the kernel, its configuration, and the modules of small machines."""
    if "/modules/" in path:
        return not any(part in path for part in UNWANTED)
    return path.startswith("boot/") and not path.startswith("boot/System.map")


def debian_kernel(name: str, arch: str, folder: Path | None = None) -> GuestKernel:
    """The kernel of a release for one of Debian's architectures.  Raises ``InputError``, or ``Unavailable`` with all reasons."""
    release = RELEASES.get(name)
    if release is None:
        raise InputError(f"no kernel package is known for {name}; there are {', '.join(RELEASES)}, or give your own image")
    reasons = []
    for suite in release.suites:
        packages = Packages(Archive(arch, suite), folder)
        try:
            found = packages.named(release.pattern.split("\\")[0].partition("+")[0], rf"{release.pattern}-{re.escape(arch)}")
            if found:
                return packaged_kernel(name, packages, found[-1])
            reasons.append(f"{suite} has none for {arch} today")
        except Unavailable as error:
            reasons.append(str(error))
    raise Unavailable(f"Linux {name} is not to be had: {'; '.join(reasons)}")


def packaged_kernel(name: str, packages: Packages, package: str, version: str | None = None) -> GuestKernel:
    """The kernel of a package, by name and version."""
    roots = [packages.unpacked(package, version, wanted=kernel_files)]
    if not _images(roots):
        own = package.removeprefix("linux-image-")
        parts = [part for part in packages.depends(package) if part.startswith(PARTS) and part.endswith(own)]
        roots += [packages.unpacked(part, wanted=kernel_files) for part in parts]
    images, modules = _images(roots), _modules(roots)
    if not images or not modules:
        raise Unavailable(f"{package} does not hold a kernel and its modules")
    return GuestKernel(name, images[0], tuple(modules), f"{package} ({packages.archive.suite})")


def own_kernel(name: str, image: Path, modules: Path | None = None) -> GuestKernel:
    """Somebody's own build.  Raises ``InputError`` where a path is not what it should be."""
    if not image.is_file():
        raise InputError("a kernel image was expected", source=str(image))
    if modules is not None and not modules.is_dir():
        raise InputError("a folder with modules was expected, such as lib/modules/RELEASE", source=str(modules))
    return GuestKernel(name, image, () if modules is None else (modules,), f"own image {image.name}")


def _modules(roots: Sequence[Path]) -> list[Path]:
    return [path for root in roots for place in ("lib", "usr/lib") for path in sorted(root.glob(f"{place}/modules/*"))]


def _images(roots: Sequence[Path]) -> list[Path]:
    return [
        path for root in roots for place in ("boot/vmlinu?-*", "usr/lib/modules/*/vmlinu?") for path in sorted(root.glob(place))
    ]


# ---- the kernel inside an image --------------------------------------------------------------------------------------

_SETUP_SECTORS, _HEADER, _PAYLOAD = 0x1F1, 0x202, 0x248
"""Offsets in a bzImage (Documentation/arch/x86/boot.rst): size of the real-mode part, ``HdrS``, place and length of the payload."""
_PVH_NOTE = 18
"""``XEN_ELFNOTE_PHYS32_ENTRY``: where a kernel can be entered without its boot code."""


def _xz(data: bytes) -> bytes:
    stream = lzma.LZMADecompressor()
    unpacked = stream.decompress(data)
    if not stream.eof:
        raise EOFError("the stream ends too early")
    return unpacked


def _zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        raise ValueError("zstd is not installed")
    # The size of what was packed follows the stream.
    return subprocess.run(["zstd", "-dc"], input=data[:-4], capture_output=True, check=True).stdout


_UNPACK: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": gzip.decompress,
}
_BROKEN = (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error, struct.error, subprocess.CalledProcessError)
"""What unpacking and reading a broken image raise."""


def direct_image(image: Path, folder: Path | None = None) -> Path:
    """An image that QEMU enters directly: the ELF file inside a bzImage, kept in the cache.

    A processor that is emulated takes seconds to unpack a kernel.  Where it is no such image, the image itself is answered.
    """
    data = image.read_bytes()
    if data[_HEADER : _HEADER + 4] != b"HdrS":
        return image
    target = (folder or cache_folder()) / "images" / hashlib.sha256(data).hexdigest()
    if not target.exists():
        try:
            kernel = _payload(data)
            if not _has_direct_entry(kernel):
                return image
        except _BROKEN:
            return image
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{id(data):x}.partial")
        partial.write_bytes(kernel)
        partial.replace(target)
    return target


def _payload(data: bytes) -> bytes:
    """What a bzImage unpacks; nothing where that is packed in another way."""
    start, length = struct.unpack_from("<II", data, _PAYLOAD)
    start += ((data[_SETUP_SECTORS] or 4) + 1) * 512
    packed = data[start : start + length]
    for magic, unpack in _UNPACK.items():
        if packed.startswith(magic):
            return unpack(packed)
    return b""


def _has_direct_entry(kernel: bytes) -> bool:
    """Whether a 64-bit ELF file has the note."""
    if kernel[:6] != b"\x7fELF\x02\x01":
        return False
    (headers,) = struct.unpack_from("<Q", kernel, 32)
    size, count = struct.unpack_from("<HH", kernel, 54)
    for number in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", kernel, headers + number * size)
        end = offset + length if kind == 4 else offset  # PT_NOTE
        while offset + 12 <= end:
            name, description, note = struct.unpack_from("<III", kernel, offset)
            if note == _PVH_NOTE and kernel[offset + 12 : offset + 15] == b"Xen":
                return True
            offset += 12 + (name + 3 & -4) + (description + 3 & -4)
    return False
