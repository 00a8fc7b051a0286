"""Which cells of the behaviour matrix the recorded boots vouch for: an index kept beside them, so that nothing is replayed.

``recorded_index.py`` writes it.
"""

from __future__ import annotations

from pathlib import Path

from iommukit.report.vouchers import Place, Shown
from iommukit_oracle.kernel import index_file
from iommukit_oracle.kernel.index_file import Strict, unchanged

INDEX = "situations.json.xz"


class Entry(Strict):
    """A cell: its ``seal`` (``iommukit.report.vouchers.seal``), and the recordings that show it, or that show otherwise."""

    seal: str
    shown: tuple[str, ...]
    agrees: bool = True


class FileEntry(index_file.FileEntry):
    """The cells of one file of recordings, by scenario."""

    kernel: str
    vendor: str
    cells: dict[str, Entry]


class Index(Strict):
    """All files of a folder."""

    files: dict[str, FileEntry]


def read_index(folder: Path) -> Index:
    """The index of a folder, empty where there is none.  Raises ``InputError`` for what is no index."""
    found = index_file.read_index(folder / INDEX, Index, "python -m iommukit_oracle.kernel.recorded_index")
    return found or Index(files={})


def recorded(folder: Path) -> dict[Place, Shown]:
    """What the recordings of a folder show, as its index has it."""
    found: dict[Place, Shown] = {}
    for file in unchanged(folder, read_index(folder).files):
        for scenario, entry in file.cells.items():
            found[scenario, file.kernel, file.vendor] = Shown(entry.seal, entry.shown, entry.agrees)
    return found
