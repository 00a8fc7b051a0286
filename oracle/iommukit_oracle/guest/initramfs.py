"""What a guest's kernel unpacks into its first file system: an archive (cpio, newc), and modules in the order of their needs."""

from __future__ import annotations

import lzma
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from iommukit.errors import InputError

FOLDERS = ("dev", "proc", "sys", "tmp")
"""Folders that are there in any case."""


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


def _name(path: Path) -> str:
    """A module's name, as ``lsmod`` prints it."""
    return path.name.split(".ko")[0].replace("-", "_")


class Modules:
    """A kernel's modules by name, unpacked in folders; one of them has the list of those that are built in."""

    def __init__(self, *folders: Path) -> None:
        self._paths = {_name(path): path for folder in folders for path in folder.rglob("*.ko*")}
        lists = [path for folder in folders if (path := folder / "modules.builtin").exists()]
        self._builtin = {_name(Path(line)) for path in lists for line in path.read_text().splitlines()}

    def __contains__(self, name: str) -> bool:
        """Whether the kernel has it, as a module or built in."""
        return name in self._paths or name in self._builtin

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

        Those that are built into the kernel are passed over; raises ``InputError`` for one that the kernel does not have at all.
        """
        found: dict[str, bytes] = {}

        def need(name: str) -> None:
            if name in found or name in self._builtin:
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


def archive(files: Mapping[str, bytes]) -> bytes:
    """An archive of files by path, all of them executable, with the folders above them, the console and the mount points."""
    folder, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    above = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    return cpio(
        [
            *(CpioEntry(name, folder) for name in sorted(above.union(FOLDERS))),
            CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            CpioEntry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
            *(CpioEntry(name, file, data) for name, data in files.items()),
        ]
    )
