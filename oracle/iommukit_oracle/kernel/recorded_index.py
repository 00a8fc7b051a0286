"""Makes the index of what recorded boots vouch for (``recorded.py``).

For each cell that passes, everything that its run shows is looked up (``seen.py``) in the boots of the same kernel and vendor.
``python -m iommukit_oracle.kernel.recorded_index [FOLDER]`` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from iommukit.errors import InputError
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.report.answer import answer
from iommukit.report.runs import run_case
from iommukit.report.vouchers import digest_of_played, seal
from iommukit.scenario.load import load_scenarios, shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel import index_file
from iommukit_oracle.kernel.asked import Asked
from iommukit_oracle.kernel.index_file import digest_of_file
from iommukit_oracle.kernel.recorded import INDEX, Entry, FileEntry, Index, read_index
from iommukit_oracle.kernel.seen import Seen, see
from iommukit_oracle.recording import iter_recordings, recording_files, shipped_recordings


def build_index(folder: Path, registry: VendorRegistry | None = None, scenarios: Sequence[Scenario] = ()) -> Index:
    """Hold every cell against what the recordings of its kernel and vendor show.  Raises ``InputError``."""
    registry = registry or VendorRegistry.installed()
    chosen = scenarios or load_scenarios([shipped_scenarios()])
    found = {}
    for path in recording_files([folder]):
        recordings = list(iter_recordings(path))
        kinds = {(each.kernel, each.vendor) for each in recordings}
        if len(kinds) != 1:
            raise InputError("recordings of one kernel and one vendor were expected", source=str(path))
        ((kernel, vendor),) = kinds
        if vendor in registry and kernel in PROFILES:
            cells = cells_of(see(recordings, registry), kernel, vendor, registry, chosen)
            found[path.name] = FileEntry(sha256=digest_of_file(path), kernel=kernel, vendor=vendor, cells=cells)
    return Index(files=found)


def cells_of(seen: Seen, kernel: str, vendor: str, registry: VendorRegistry, scenarios: Sequence[Scenario]) -> dict[str, Entry]:
    """The scenarios whose every step was seen under one kernel with one vendor, or was seen to end otherwise."""
    profile, maker = get_kernel(kernel), registry.get(vendor)
    cells = {}
    for scenario in scenarios:
        asked = Asked(scenario.steps, kernel)
        result = run_case(scenario, profile, maker, registry, watchers=(asked,))
        if result.outcome is not Outcome.PASS or asked.unlike:
            continue
        against = seen.against(asked.facts)
        shown = against or seen.vouches(asked.facts)
        if shown:
            told = seal(digest_of_played(scenario), answer(scenario, result))
            cells[scenario.scenario] = Entry(seal=told, shown=shown, agrees=not against)
    return cells


def write_index(folder: Path, registry: VendorRegistry | None = None) -> Path:
    """Keep the index of a folder beside its recordings; the file that was written.  Raises ``InputError``."""
    return index_file.write_index(folder / INDEX, build_index(folder, registry))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the index of a folder and say how much it has; 2 for bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) > 1 or any(each.startswith("-") for each in given):
        print("usage: python -m iommukit_oracle.kernel.recorded_index [FOLDER]", file=sys.stderr)
        return 2
    folder = Path(given[0]) if given else shipped_recordings()
    try:
        path = write_index(folder)
        files = read_index(folder).files
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for file in files.values():
        print(f"{len(file.cells):>6}  {file.kernel} {file.vendor}")
    print(f"{sum(len(file.cells) for file in files.values()):>6}  cells in all: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
