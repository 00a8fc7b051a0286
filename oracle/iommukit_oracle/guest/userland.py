"""What a guest starts from: Perl with its libraries, the agent as init, and a kernel's modules.

Perl is in every Debian (``perl-base``): one process that calls the kernel itself, where a shell would need a program for each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from iommukit_oracle.guest.initramfs import Modules, archive
from iommukit_oracle.guest.kernels import GuestKernel
from iommukit_oracle.guest.packages import Archive, Packages, Unavailable

SUITE = "bookworm"
"""The suite whose programs the guest runs, whatever its kernel."""
AGENT = "agent.pl"


@dataclass(frozen=True, slots=True)
class Userland:
    """By Debian's architecture: the machine's name as the agent looks for it, and where programs look for the dynamic linker."""

    machine: str
    linker: str


USERLANDS: Mapping[str, Userland] = {
    "amd64": Userland("x86_64", "lib64/ld-linux-x86-64.so.2"),
    "arm64": Userland("aarch64", "lib/ld-linux-aarch64.so.1"),
    "s390x": Userland("s390x", "lib/ld64.so.1"),
}

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "perl-base": ("usr/bin/perl", "/strict.pm", "/warnings.pm", "/Errno.pm", "/Config.pm", "/Exporter.pm"),
    "libc6": ("/libc.so.6", "/libm.so.6", "/ld-linux-x86-64.so.2", "/ld-linux-aarch64.so.1", "/ld64.so.1"),
    "libcrypt1": ("/libcrypt.so.1.1.0",),
}
"""The packages and what is wanted of each, by the end of its path."""


def programs(arch: str, folder: Path | None = None) -> dict[str, bytes]:
    """The files of Perl and its libraries, by their paths in the guest."""
    userland = USERLANDS[arch]
    packages = Packages(Archive(arch, SUITE), folder)
    found: dict[str, bytes] = {f"machine/{userland.machine}": b""}
    for name, endings in PACKAGES.items():
        root = packages.unpacked(name)
        for path in sorted(root.rglob("*")):
            inside = str(path.relative_to(root))
            if path.is_file() and inside.endswith(endings) and "gconv" not in inside:
                found[_place(inside, userland)] = path.read_bytes()
    for needed in ("bin/perl", "lib/libc.so.6", "lib/libm.so.6", "lib/libcrypt.so.1", userland.linker):
        if needed not in found:
            raise Unavailable(f"Debian's packages {', '.join(PACKAGES)} for {arch} do not hold {needed}")
    return found


def _place(path: str, userland: Userland) -> str:
    """Where the guest has a package's file."""
    name = path.rpartition("/")[2]
    if name == "perl":
        return "bin/perl"
    if name == userland.linker.rpartition("/")[2]:
        return userland.linker
    if ".so." in name:
        return "lib/" + name.replace("libcrypt.so.1.1.0", "libcrypt.so.1")
    return path


def initrd(kernel: GuestKernel, arch: str, modules: Iterable[str], files: Mapping[str, bytes] | None = None) -> bytes:
    """The archive that a guest of this kernel starts from; further ``files`` by path.

    Raises ``InputError`` for a module that the kernel does not have, loadable or built in; of a kernel without a folder of modules
    all are taken to be built in.
    """
    loaded = Modules(*kernel.modules).in_order(modules) if kernel.modules else {}
    agent = (resources.files("iommukit_oracle.guest") / AGENT).read_bytes()
    return archive(
        {
            "init": agent,
            **programs(arch),
            **{f"mods/{name}.ko": data for name, data in loaded.items()},
            "mods/order": "".join(f"{name}\n" for name in loaded).encode(),
            **(files or {}),
        }
    )
