"""Indexes beside recordings: what was found out about each file, held to the digest of its bytes.

Where a file is missing or another, its entry says nothing.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from iommukit.errors import InputError
from iommukit_oracle.compact import compress, write_files


class Strict(BaseModel):
    """No unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Strict):
    """One file; ``sha256`` is of its bytes."""

    sha256: str


Index = TypeVar("Index", bound=BaseModel)
Entry = TypeVar("Entry", bound=FileEntry)


def digest_of_file(path: Path) -> str:
    """Of its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unchanged(folder: Path, files: Mapping[str, Entry]) -> Iterator[Entry]:
    """The entries of those files of a folder that are as they were."""
    for name, entry in files.items():
        path = folder / name
        if path.is_file() and digest_of_file(path) == entry.sha256:
            yield entry


def read_index(path: Path, kind: type[Index], written_by: str) -> Index | None:
    """An index, ``None`` where there is none.  Raises ``InputError`` that names the command for what is no index."""
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(lzma.decompress(path.read_bytes()))
    except (OSError, lzma.LZMAError, ValidationError) as error:
        raise InputError(f"is no index: `{written_by}` writes it", source=str(path)) from error


def write_index(path: Path, index: BaseModel) -> Path:
    """Keep an index; the file that was written.  Raises ``InputError``."""
    write_files({path: compress([index.model_dump_json(exclude_defaults=True)])}, path.parent)
    return path
