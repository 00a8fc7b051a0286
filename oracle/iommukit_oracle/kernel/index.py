"""Makes the index of what real kernels vouch for (``evidence.py``): the model is held against every boot of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from iommukit.kernel.profiles import get_kernel
from iommukit.report.answer import answer
from iommukit.report.runs import run_case
from iommukit.report.vouchers import digest_of_played, seal
from iommukit.scenario.load import load_scenarios, shipped_scenarios
from iommukit.scenario.model import Scenario
from iommukit.vendors import VendorRegistry
from iommukit_oracle.kernel import index_file
from iommukit_oracle.kernel.agreement import Agreement, Standing, check
from iommukit_oracle.kernel.cases import cases
from iommukit_oracle.kernel.evidence import INDEX, Entry, FileEntry, Index
from iommukit_oracle.kernel.index_file import digest_of_file
from iommukit_oracle.kernel.record import BootRecord
from iommukit_oracle.kernel.store import load_store
from iommukit_oracle.observations import Verdict
from iommukit_oracle.recording import recording_files


def build_index(folder: Path, scenarios: Iterable[Scenario] = (), registry: VendorRegistry | None = None) -> Index:
    """Hold the model against all boots of a folder.  ``scenarios`` take the place of shipped ones with the same id.

    Raises ``InputError``.
    """
    registry = registry or VendorRegistry.installed()
    known = {each.scenario: each for each in (*load_scenarios([shipped_scenarios()]), *scenarios)}
    return Index(files={path.name: _file_entry(path, known, registry) for path in recording_files([folder])})


def write_index(folder: Path, scenarios: Iterable[Scenario] = (), registry: VendorRegistry | None = None) -> Path:
    """Keep the index of a folder beside its boots; the file that was written.  Raises ``InputError``."""
    return index_file.write_index(folder / INDEX, build_index(folder, scenarios, registry))


def _file_entry(path: Path, scenarios: dict[str, Scenario], registry: VendorRegistry) -> FileEntry:
    store = load_store([path])
    played = [scenarios[name] for name in dict.fromkeys(name for name, _, _ in store.runs) if name in scenarios]
    runs = []
    for kernel, vendor in sorted({(boot.kernel, boot.vendor) for boot in store.boots}):
        if vendor not in registry:
            continue
        profile, maker = get_kernel(kernel), registry.get(vendor)
        for each in check(cases(played, [profile], [maker]), store, registry).agreements:
            verdict = _verdict(each)
            found = store.find(each.scenario, kernel, vendor)
            if verdict is not None and found is not None:
                scenario = scenarios[each.scenario]
                told = seal(digest_of_played(scenario), answer(scenario, run_case(scenario, profile, maker, registry)))
                agrees, reason = verdict
                runs.append(
                    Entry(
                        scenario=each.scenario,
                        kernel=kernel,
                        vendor=vendor,
                        release=_release(found[0]),
                        seal=told,
                        agrees=agrees,
                        reason=reason,
                    )
                )
    return FileEntry(sha256=digest_of_file(path), runs=tuple(sorted(runs, key=lambda run: (run.kernel, run.vendor, run.scenario))))


def _verdict(agreement: Agreement) -> tuple[bool, str] | None:
    """Whether the model agrees, and the name of the difference; ``None`` where nothing was compared, or not all.

    What only the boot shows, and has a name, says nothing against the scenario.
    """
    if agreement.standing is Standing.AGREES:
        return True, ""
    if agreement.standing is Standing.DIFFERS:
        return False, ""
    if agreement.standing is not Standing.KNOWN:
        return None
    named = [seen.reason for seen in agreement.observations if seen.verdict is Verdict.KNOWN]
    if named:
        return False, named[0]
    unseen = any(seen.verdict is Verdict.UNDECIDED and seen.kind in ("result", "group") for seen in agreement.observations)
    return None if unseen else (True, "")


def _release(boot: BootRecord) -> str:
    """As ``uname -r`` has it; the record has the whole line, ``Linux version 6.12.95+deb12-amd64 (…``."""
    return boot.uname.removeprefix("Linux version ").partition(" ")[0]
