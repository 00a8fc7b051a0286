"""Which cells of the behaviour matrix the recorded boots vouch for: an index kept beside them, so that nothing is replayed.

An entry is of one file of recordings, with the digest of its bytes: where the file is missing or another, its entries say nothing.
``recorded_index.py`` writes it.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from iommukit.errors import InputError
from iommukit.report.vouchers import Place, Shown

INDEX = "situations.json.xz"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """A cell: its ``seal`` (``iommukit.report.vouchers.seal``), and the recordings that show it, or that show otherwise."""

    seal: str
    shown: tuple[str, ...]
    agrees: bool = True


class FileEntry(_Strict):
    """The cells of one file of recordings, by scenario; ``sha256`` is of its bytes."""

    sha256: str
    kernel: str
    vendor: str
    cells: dict[str, Entry]


class Index(_Strict):
    """All files of a folder."""

    files: dict[str, FileEntry]


def read_index(folder: Path) -> Index:
    """The index of a folder, empty where there is none.  Raises ``InputError`` for what is no index."""
    path = folder / INDEX
    if not path.is_file():
        return Index(files={})
    try:
        return Index.model_validate_json(lzma.decompress(path.read_bytes()))
    except (OSError, lzma.LZMAError, ValidationError) as error:
        raise InputError("is no index: `python -m iommukit_oracle.kernel.recorded_index` writes it", source=str(path)) from error


def recorded(folder: Path) -> dict[Place, Shown]:
    """What the recordings of a folder show, as its index has it."""
    found: dict[Place, Shown] = {}
    for name, file in read_index(folder).files.items():
        path = folder / name
        if path.is_file() and digest_of_file(path) == file.sha256:
            for scenario, entry in file.cells.items():
                found[scenario, file.kernel, file.vendor] = Shown(entry.seal, entry.shown, entry.agrees)
    return found


def digest_of_file(path: Path) -> str:
    """Of its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
