"""Where the boots are kept in which real kernels played scenarios: a JSON line a boot, a file for each kernel and vendor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from iommukit.errors import InputError
from iommukit.report.vouchers import Place
from iommukit_oracle.compact import compress, write_files
from iommukit_oracle.kernel.record import BootRecord, RunRecord
from iommukit_oracle.recording import parse_line, read_lines, recording_files, shipped_recordings


def shipped_boots() -> Path:
    """The folder of the boots that come with the project."""
    return shipped_recordings() / "scenarios"


def write_boots(folder: Path, kernel: str, vendor: str, boots: Iterable[BootRecord]) -> Path:
    """Keep the boots of one kernel and vendor; the file that was written.

    The same boots give the same bytes, in whatever order they come.  Raises ``InputError`` where nothing can be written.
    """
    path = folder / f"{kernel}-{vendor}.jsonl.xz"
    write_files({path: compress(sorted(map(boot_line, boots)))}, folder)
    return path


def boot_line(boot: BootRecord) -> str:
    """A boot as one line: short JSON, what is as usual left out."""
    return boot.model_dump_json(by_alias=True, exclude_defaults=True)


def iter_boots(path: Path) -> Iterator[tuple[str, BootRecord]]:
    """The boots of one file, each with its file and line.  Raises ``InputError`` naming them for what is no boot."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            source = f"{path}:{number}"
            yield source, parse_line(BootRecord, line, source)


@dataclass(slots=True)
class Store:
    """Boots, and the runs in them by scenario, kernel and vendor."""

    boots: list[BootRecord] = field(default_factory=list)
    runs: dict[Place, tuple[BootRecord, RunRecord]] = field(default_factory=dict)

    def add(self, boot: BootRecord, source: str = "a boot") -> None:
        """Take in a boot.  Raises ``InputError`` for a scenario that is there already: nobody could say which counts."""
        for run in boot.runs:
            place = run.scenario, boot.kernel, boot.vendor
            if place in self.runs:
                raise InputError(f"{run.scenario} under {boot.kernel} on {boot.vendor} is there twice", source=source)
            self.runs[place] = boot, run
        self.boots.append(boot)

    def find(self, scenario: str, kernel: str, vendor: str) -> tuple[BootRecord, RunRecord] | None:
        """What a kernel did with a scenario, and the boot that it was in; ``None`` where nobody has tried."""
        return self.runs.get((scenario, kernel, vendor))


def load_store(paths: Iterable[Path]) -> Store:
    """The boots of files and folders.  Raises ``InputError``."""
    store = Store()
    for path in recording_files(paths):
        for source, boot in iter_boots(path):
            store.add(boot, source)
    return store
