"""Which cells of the behaviour matrix real kernels vouch for: an index kept beside the recordings, so that nothing is replayed.

Each entry is of one file, with the digest of its bytes: where a file is missing or another, its entries say nothing.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from iommukit.errors import InputError
from iommukit.report.vouchers import Evidence, Place, Record
from iommukit.vendors import Vendor
from iommukit_oracle.kernel.recorded import digest_of_file, recorded
from iommukit_oracle.kernel.store import shipped_boots
from iommukit_oracle.recording import shipped_recordings

INDEX = "agreement.json.xz"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """How the model stands with one run; ``seal``, ``release`` and ``reason`` are those of ``iommukit.report.vouchers.Record``."""

    scenario: str
    kernel: str
    vendor: str
    release: str
    seal: str
    agrees: bool = True
    reason: str = ""


class FileEntry(_Strict):
    """The runs of one file of boots; ``sha256`` is of its bytes."""

    sha256: str
    runs: tuple[Entry, ...]


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
        raise InputError("is no index: `iommukit oracle kernel record` writes it", source=str(path)) from error


def evidence(vendors: Sequence[Vendor], folder: Path | None = None, recordings: Path | None = None) -> Evidence:
    """What vouches for the model: records of scenarios and recorded boots of a folder each, and QEMU's hardware.

    Without folders it is all that is shipped; with one, that alone.
    """
    from iommukit_conformance.selection import EMULATED

    if folder is None and recordings is None:
        folder, recordings = shipped_boots(), shipped_recordings()
    records: dict[Place, Record] = {}
    if folder is not None:
        for name, entry in read_index(folder).files.items():
            path = folder / name
            if path.is_file() and digest_of_file(path) == entry.sha256:
                for run in entry.runs:
                    records[run.scenario, run.kernel, run.vendor] = Record(run.seal, run.release, run.agrees, run.reason)
    tried = [vendor.name for vendor in vendors if "emulation" in vendor.ops.implemented]
    emulated = frozenset((kernel, vendor) for kernel in EMULATED for vendor in tried)
    return Evidence(records, emulated, recorded(recordings) if recordings is not None else {})
