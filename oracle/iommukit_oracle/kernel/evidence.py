"""Which cells of the behaviour matrix real kernels vouch for: an index kept beside the recordings, so that nothing is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iommukit.report.vouchers import Evidence, Place, Record
from iommukit.vendors import Vendor
from iommukit_oracle.kernel import index_file
from iommukit_oracle.kernel.index_file import Strict, unchanged
from iommukit_oracle.kernel.recorded import recorded
from iommukit_oracle.kernel.store import shipped_boots
from iommukit_oracle.recording import shipped_recordings

INDEX = "agreement.json.xz"


class Entry(Strict):
    """How the model stands with one run; ``seal``, ``release`` and ``reason`` are those of ``iommukit.report.vouchers.Record``."""

    scenario: str
    kernel: str
    vendor: str
    release: str
    seal: str
    agrees: bool = True
    reason: str = ""


class FileEntry(index_file.FileEntry):
    """The runs of one file of boots."""

    runs: tuple[Entry, ...]


class Index(Strict):
    """All files of a folder."""

    files: dict[str, FileEntry]


def read_index(folder: Path) -> Index:
    """The index of a folder, empty where there is none.  Raises ``InputError`` for what is no index."""
    return index_file.read_index(folder / INDEX, Index, "iommukit oracle kernel record") or Index(files={})


def evidence(vendors: Sequence[Vendor], folder: Path | None = None, recordings: Path | None = None) -> Evidence:
    """What vouches for the model: records of scenarios and recorded boots of a folder each, and QEMU's hardware.

    Without folders it is all that is shipped; with one, that alone.
    """
    from iommukit_conformance.selection import EMULATED

    if folder is None and recordings is None:
        folder, recordings = shipped_boots(), shipped_recordings()
    records: dict[Place, Record] = {}
    if folder is not None:
        for entry in unchanged(folder, read_index(folder).files):
            for run in entry.runs:
                records[run.scenario, run.kernel, run.vendor] = Record(run.seal, run.release, run.agrees, run.reason)
    tried = [vendor.name for vendor in vendors if "emulation" in vendor.ops.implemented]
    emulated = frozenset((kernel, vendor) for kernel in EMULATED for vendor in tried)
    return Evidence(records, emulated, recorded(recordings) if recordings is not None else {})
