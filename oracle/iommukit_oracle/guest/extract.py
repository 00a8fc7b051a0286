"""A small extract of a guest's memory: only the pages that a walk of its tables reads.

    python -m iommukit_oracle.guest.extract intel intel-scalable arm amd -o FOLDER

boots each guest, and writes ``NAME.elf.xz``, a sparse ELF core of those pages, and ``NAME.json``: the kernel, the registers from
which its tables are found, and what the kernel's trace says is mapped.
"""

from __future__ import annotations

import argparse
import json
import lzma
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iommukit.errors import InputError
from iommukit.hw.memory import TableReader, Words
from iommukit.machine.dump import MACHINES as ELF_MACHINES
from iommukit.machine.dump import Dump
from iommukit.vendors import Vendor, VendorRegistry
from iommukit_oracle.guest.mappings import CASES, MappedGuest, mapped_guest

PAGE = 4096


class Watched(TableReader):
    """A dump that remembers which pages were read."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self.pages: set[int] = set()

    def _saw(self, address: int, size: int) -> None:
        self.pages.update(range(address & -PAGE, address + size, PAGE))

    def word(self, address: int) -> int:
        """As the dump does."""
        self._saw(address, 8)
        return self._dump.word(address)

    def big_word(self, address: int) -> int:
        """As the dump does."""
        self._saw(address, 8)
        return self._dump.big_word(address)

    def table(self, address: int, count: int) -> Words:
        """As the dump does."""
        self._saw(address, 8 * count)
        return self._dump.table(address, count)

    def big_table(self, address: int, count: int) -> Words:
        """As the dump does."""
        self._saw(address, 8 * count)
        return self._dump.big_table(address, count)


def pages_read(dump: Dump, vendor: Vendor, roots: Mapping[str, int]) -> list[int]:
    """The addresses of the pages that a whole walk reads."""
    watched = Watched(dump)
    for walk in vendor.ops.walk_tables(memory=watched, roots=roots, requester=None, iova=None):
        for _ in walk.pages:
            pass
    return sorted(watched.pages)


def sparse_core(dump: Dump, pages: list[int]) -> bytes:
    """An ELF core of some pages of a dump, adjoining ones in one segment.  Little-endian, like the machines it is made for."""
    machine = next(number for number, arch in ELF_MACHINES.items() if arch == dump.arch)
    segments: list[list[int]] = []
    for page in pages:
        if segments and segments[-1][1] == page:
            segments[-1][1] += PAGE
        else:
            segments.append([page, page + PAGE])
    at = 64 + 56 * len(segments)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    for start, end in segments:
        head += struct.pack("<IIQQQQQQ", 1, 4, at, 0, start, end - start, end - start, 0)
        at += end - start
    return head + b"".join(dump.table(start, (end - start) // 8).tobytes() for start, end in segments)


def described(guest: MappedGuest) -> dict[str, Any]:
    """What is known of a guest besides its memory, fit for JSON.

    Numbers are 0x… text; ``mapped`` are runs of pages that go on in both address spaces: IOVA, physical address, size in bytes.
    """
    runs: list[list[int]] = []
    for iova, physical in sorted(guest.mapped.elements()):
        if runs and (iova, physical) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1][2] += PAGE
        else:
            runs.append([iova, physical, PAGE])
    return {
        "vendor": guest.vendor,
        "kernel": guest.kernel,
        "roots": {name: hex(value) for name, value in guest.roots.items()},
        "mapped": [" ".join(map(hex, run)) for run in runs],
    }


def extracts(names: list[str], folder: Path) -> Iterator[Path]:
    """Boot the guests of those names and write what is needed of each; yields the files.  Raises ``InputError``."""
    registry = VendorRegistry.installed()
    for name in names:
        if name not in CASES:
            raise InputError(f"no guest {name!r}; there are {', '.join(CASES)}")
        with tempfile.TemporaryDirectory() as temporary:
            guest = mapped_guest(Path(temporary), CASES[name])
            dump = Dump(guest.dump)
            data = sparse_core(dump, pages_read(dump, registry.get(guest.vendor), guest.roots))
        for path, content in (
            (folder / f"{name}.elf.xz", lzma.compress(data)),
            (folder / f"{name}.json", (json.dumps(described(guest), indent=0) + "\n").encode()),
        ):
            path.write_bytes(content)
            yield path


def main() -> None:
    """Write the extracts of the guests that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="+", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("-o", "--output", type=Path, default=Path("."), metavar="FOLDER")
    arguments = parser.parse_args()
    for path in extracts(arguments.names, arguments.output):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
