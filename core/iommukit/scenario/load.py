"""Loading scenario and machine files.

A file holds one document or several, separated by ``---``.  A machine is named by a path (relative to the scenario file), by the
name of a file in a ``machines`` folder beside it, or by the name of a machine that comes with the project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iommukit.errors import InputError
from iommukit.kernel.profiles import get_kernel
from iommukit.machine.documents import parse_documents, read_text, validate_document
from iommukit.machine.model import Machine
from iommukit.machine.tables import load_tables
from iommukit.scenario.expectation import check_expectations
from iommukit.scenario.model import ANY_KERNEL, Scenario

SUFFIXES = (".yaml", ".yml")


def shipped_machines() -> Path:
    """The folder of the machine files that come with the project."""
    return Path(str(resources.files("iommukit.machine"))) / "files"


def shipped_scenarios() -> Path:
    """The folder of the conformance scenarios.  Raises ``InputError`` where the suite is not installed."""
    found = find_spec("iommukit_conformance")
    if found is None or found.origin is None:
        raise InputError("the conformance scenarios are not installed (package iommukit_conformance)")
    return Path(found.origin).parent / "scenarios"


def load_machine(name: str, folder: Path | None = None) -> Machine:
    """Load a machine by path or name.

    Raises ``InputError`` for an unknown name, an unreadable or a wrong file.
    """
    path = _find_machine(name, folder)
    return _load_machine_file(path, path.stat().st_mtime_ns)


def _find_machine(name: str, folder: Path | None) -> Path:
    candidates = [Path(name)] if folder is None else [folder / name]
    base = candidates[0]
    for suffix in SUFFIXES:
        if base.name:
            candidates.append(base.with_name(base.name + suffix))
        if folder is not None and "/" not in name:
            candidates.extend(parent / "machines" / (name + suffix) for parent in (folder, folder.parent))
    for candidate in candidates:
        if _is_file(candidate):
            return candidate
    if "/" not in name:
        found = machine_index().get(name)
        if found is not None:
            return found
    shown = name if len(name) <= 80 else name[:77] + "…"
    raise InputError(f"no machine {shown!r}: no such file, and {_known_machines(name)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _known_machines(name: str) -> str:
    """What the project has in place of an unknown name: near misses, else those that are not captured."""
    index = machine_index()
    close = get_close_matches(name, index, n=3)
    if close:
        return f"the project has {', '.join(close)}"
    own = [known for known, path in index.items() if path.parent == shipped_machines()]
    return f"the project has {', '.join(own)} and {len(index) - len(own)} captured ones"


@lru_cache(maxsize=1)
def machine_index() -> dict[str, Path]:
    """The project's machines: name to file."""
    return {path.stem: path for path in sorted(shipped_machines().rglob("*.yaml"))}


@lru_cache(maxsize=512)
def _load_machine_file(path: Path, changed: int) -> Machine:
    text = read_text(path)
    documents = parse_documents(text, str(path))
    if len(documents) != 1:
        raise InputError(f"one machine was expected, not {len(documents)} documents", source=str(path))
    machine = validate_document(Machine, documents[0], text=text, source=str(path)).read_from(str(path))
    return load_tables(machine, path.parent)


def load_scenarios(paths: Iterable[Path]) -> list[Scenario]:
    """Load every scenario of files and folders, machines resolved.

    Raises ``InputError`` for the first thing wrong: a missing file, a wrong document, an id that appears twice.
    """
    scenarios: list[Scenario] = []
    seen: dict[str, str] = {}
    for path, found in _files(paths):
        for scenario in load_scenario_file(path, skip_machines=found):
            if scenario.scenario in seen:
                message = f"scenario id {scenario.scenario!r} appears in {seen[scenario.scenario]} too"
                raise InputError(message, source=str(path))
            seen[scenario.scenario] = str(path)
            scenarios.append(scenario)
    return scenarios


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """The files to load, and whether each was found in a folder."""
    for path in paths:
        if path.is_dir():
            found = [each for each in sorted(path.rglob("*")) if each.suffix in SUFFIXES and each.is_file()]
            found = [each for each in found if "machines" not in each.relative_to(path).parent.parts]
            if not found:
                raise InputError("no scenario files (*.yaml) in this folder", source=str(path))
            yield from ((each, True) for each in found)
        else:
            yield path, False


def load_scenario_file(path: Path, *, skip_machines: bool = False) -> list[Scenario]:
    """Load the scenarios of one file, machines resolved; a folder may hold machine files beside them, which are skipped."""
    text = read_text(path)
    documents = parse_documents(text, str(path))
    if skip_machines and documents and all(map(_is_machine, documents)):
        return []
    if not documents:
        raise InputError("is empty; a scenario was expected", source=str(path))
    several = len(documents) > 1
    return [
        load_scenario(
            document,
            source=f"{path}, document {number}" if several else str(path),
            folder=path.parent,
            text=None if several else text,
        )
        for number, document in enumerate(documents, start=1)
    ]


def _is_machine(document: Any) -> bool:
    return isinstance(document, dict) and "machine" in document and "scenario" not in document


def load_scenario(document: Any, *, source: str, folder: Path | None = None, text: str | None = None) -> Scenario:
    """Validate one scenario and resolve its machine; step and expectation names are checked against the machine's devices."""
    scenario = validate_document(Scenario, document, text=text, source=source)
    machine = scenario.machine
    try:
        if isinstance(machine, str):
            machine = load_machine(machine, folder)
        else:
            machine = machine.read_from(source)
            if folder is not None:
                machine = load_tables(machine, folder)
    except InputError as error:
        raise InputError(str(error), source=source, place="machine") from error
    scenario = scenario.model_copy(update={"machine": machine})
    for kernel in scenario.expect:
        if kernel != ANY_KERNEL:
            try:
                get_kernel(kernel)
            except InputError as error:
                raise InputError(str(error), source=source, place="expect") from error
    check_expectations(scenario, machine, source)
    names = {device.name for device in machine.devices}
    for number, step in enumerate(scenario.steps, start=1):
        for name in step.device_names:
            if name not in names:
                known = ", ".join(sorted(names)) or "none"
                raise InputError(
                    f"no device {name!r} in the machine; there are {known}", source=source, place=f"steps[{number - 1}].{step.op}"
                )
    return scenario
