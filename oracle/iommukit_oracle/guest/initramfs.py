"""What a guest's kernel starts from: busybox, modules, a script as init, packed as a cpio archive (newc)."""

from __future__ import annotations

import lzma
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iommukit.errors import InputError

FOLDERS = ("bin", "dev", "mods", "proc", "sys", "tmp")


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """A file, folder, link or device node; ``data`` is the target of a link, ``device`` major and minor of a node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[CpioEntry]) -> bytes:
    """An archive as kernels unpack it (Documentation/driver-api/early-userspace/buffer-format.rst): no times, no owners."""
    out = bytearray()
    for number, entry in enumerate([*entries, CpioEntry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        major, minor = entry.device
        numbers = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % value for value in numbers) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)


class Modules:
    """A kernel's modules by name, unpacked in a folder."""

    def __init__(self, folder: Path) -> None:
        self._paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}

    def read(self, name: str) -> bytes:
        """A module, uncompressed."""
        path = self._paths[name]
        data = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".zst":
            return subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout
        return data

    def in_order(self, names: Iterable[str]) -> dict[str, bytes]:
        """The modules of those names and what they depend on, each behind its own needs.

        Raises ``InputError`` for one that the kernel does not have as a module.
        """
        found: dict[str, bytes] = {}

        def need(name: str) -> None:
            if name in found:
                return
            if name not in self._paths:
                raise InputError(f"the kernel has no module {name}")
            data = self.read(name)
            depends = re.search(rb"\0depends=([^\0]*)\0", data)
            for other in depends[1].decode().split(",") if depends and depends[1] else ():
                need(other.replace("-", "_"))
            found[name] = data

        for name in names:
            need(name.replace("-", "_"))
        return found


def initramfs(busybox: bytes, init: str, modules: Mapping[str, bytes], files: Mapping[str, bytes] | None = None) -> bytes:
    """The archive.

    ``init`` is a script for busybox's shell.  It finds the modules as ``/mods/NAME.ko``, their order in ``/mods/order``.
    """
    folder, program, text = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    entries = [CpioEntry(name, folder) for name in FOLDERS]
    entries += [
        CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        CpioEntry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
    ]
    entries += [CpioEntry("bin/busybox", program, busybox), CpioEntry("bin/sh", stat.S_IFLNK | 0o777, b"busybox")]
    entries += [CpioEntry("init", program, init.encode())]
    entries += [CpioEntry(f"mods/{name}.ko", text, data) for name, data in modules.items()]
    entries += [CpioEntry("mods/order", text, "".join(f"{name}\n" for name in modules).encode())]
    entries += [CpioEntry(name, program, data) for name, data in (files or {}).items()]
    return cpio(entries)
