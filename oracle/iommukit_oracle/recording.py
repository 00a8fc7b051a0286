"""Recordings: what a real kernel did in one boot, as data.

A file holds one boot a line, as JSON; ``.jsonl`` is plain, ``.jsonl.xz`` compressed.  ``recordings/README.md`` says how they were
made and what each key means.  Keys that a recording lacks are taken as empty, keys that are not known are passed over.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iommukit.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.xz")
Line = TypeVar("Line", bound=BaseModel)

Address = Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]
"""A PCI address as sysfs writes it."""
Region = Annotated[str, Field(pattern=r"^0x[0-9a-f]+-0x[0-9a-f]+-[a-z-]+$")]
"""A line of ``reserved_regions``, dashes for blanks."""


class _Entry(BaseModel):
    """A part of a recording: immutable, tolerant of further keys."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class IommuEntry(_Entry):
    """One IOMMU below ``/sys/class/iommu``; ``attrs`` holds ``name=value`` words such as ``cap`` and ``ecap``."""

    name: str
    devices: tuple[str, ...] = ()
    attrs: str = ""

    def attribute(self, name: str) -> str | None:
        """The value of one of the words."""
        words = dict(word.partition("=")[::2] for word in self.attrs.split())
        return words.get(name)


class PciEntry(_Entry):
    """One PCI function; a function listed twice was looked at twice."""

    bdf: Address
    id: str = Field(pattern=r"^(0x)?[0-9a-f]{4}:(0x)?[0-9a-f]{4}$")
    class_code: str = Field("0x000000", alias="class", pattern=r"^0x[0-9a-f]{6}$")
    driver: str = ""
    group: str = ""
    removable: str = ""

    @property
    def ids(self) -> str:
        """``vendor:device`` as machine files write it."""
        return self.id.replace("0x", "")


class GroupEntry(_Entry):
    """One group: sysfs ``type``, members, ``device=driver`` pairs, lines of ``reserved_regions`` with dashes for blanks."""

    id: int
    type: str
    devices: tuple[str, ...] = ()
    drivers: str = ""
    reserved: tuple[Region, ...] = ()

    @property
    def bound(self) -> dict[str, str]:
        """Driver by device."""
        return bound_drivers(self.drivers)

    @property
    def regions(self) -> tuple[str, ...]:
        """The lines of ``reserved_regions``."""
        return tuple(" ".join(line.split("-", 2)) for line in self.reserved)


class WriteEntry(_Entry):
    """One write to a group's ``type``.

    ``wrote`` is the text, written with a newline; after ``raw:`` it is a format of ``printf`` and no newline is added.
    ``result`` is ``ok`` or the error text.
    """

    tag: str = ""
    group: int | str = ""
    devices: str = ""
    drivers_bound: str = ""
    wrote: str
    result: str
    type_before: str
    type_after: str
    dmesg: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """The group's devices."""
        return tuple(name for name in self.devices.split(",") if name)

    @property
    def bound(self) -> dict[str, str]:
        """Driver by device."""
        return bound_drivers(self.drivers_bound)


class QmpEntry(_Entry):
    """A command that the host gave to QEMU while the guest ran."""

    cmd: str
    args: dict[str, Any] = Field(default_factory=dict)


class Recording(_Entry):
    """One boot of a real kernel.

    ``policy_log`` is the selection of ``iommu_log`` that tells of policy, without trailing blanks; ``events`` are the guest's other
    lines in order, see ``events.py``.
    """

    id: str
    kernel: str
    vendor: str
    arch: str
    cmdline: str
    qemu_args: str
    groups: tuple[GroupEntry, ...]
    uname: str = ""
    qemu: str = ""
    policy_log: tuple[str, ...] = ()
    iommu_log: tuple[str, ...] = ()
    iommus: tuple[IommuEntry, ...] = ()
    pci: tuple[PciEntry, ...] = ()
    writes: tuple[WriteEntry, ...] = ()
    events: tuple[str, ...] = ()
    qmp: tuple[QmpEntry, ...] = ()
    snapshots: dict[str, tuple[GroupEntry, ...]] = Field(default_factory=dict)
    """By name, in order."""
    firmware: dict[str, tuple[Region, ...]] | None = None
    """The memory that firmware was made to reserve, by the device's address; ``None`` where only the groups tell of it."""

    @property
    def functions(self) -> tuple[PciEntry, ...]:
        """The PCI functions as they were at the end of boot."""
        first: dict[str, PciEntry] = {}
        for entry in self.pci:
            first.setdefault(entry.bdf, entry)
        return tuple(first.values())


def bound_drivers(text: str) -> dict[str, str]:
    """``device=driver,…`` as a mapping."""
    return dict(pair.partition("=")[::2] for pair in text.split(",") if pair)


def load_recordings(path: Path) -> list[Recording]:
    """Load one file.  Raises ``InputError`` with file and line for what is no recording."""
    return list(iter_recordings(path))


def iter_recordings(path: Path) -> Iterator[Recording]:
    """The recordings of one file, one at a time.  Raises ``InputError``."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield parse_recording(line, f"{path}:{number}")


def parse_recording(line: str, source: str) -> Recording:
    """One line.  Raises ``InputError`` for what is no JSON, lacks a key or has a value of the wrong kind."""
    return parse_line(Recording, line, source)


def parse_line(kind: type[Line], line: str, source: str) -> Line:
    """One line of a kind of recording.  Raises ``InputError`` for what is no JSON, lacks a key or has a value of the wrong kind."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "is nested too deeply"
        raise InputError(f"is no JSON: {reason}", source=source) from error
    if not isinstance(data, dict):
        raise InputError(f"a recording (a JSON object) was expected, not {type(data).__name__}", source=source)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = "this key is missing" if first["type"] == "missing" else first["msg"].lower()
        raise InputError(message, source=source, place=place) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a plain or compressed file.  Raises ``InputError`` where it cannot be read."""
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"is no recording: a name ending in {' or '.join(SUFFIXES)} was expected", source=str(path))
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except (lzma.LZMAError, EOFError) as error:
        raise InputError("is no xz file, or a damaged one", source=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})", source=str(path)) from error
    return text.split("\n")


def recording_files(paths: Iterable[Path]) -> list[Path]:
    """The files among paths, folders opened.  Raises ``InputError`` for a folder without recordings."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES))
            if not inside:
                raise InputError(f"no recordings (*{' or *'.join(SUFFIXES)}) in this folder", source=str(path))
            found.extend(inside)
        else:
            found.append(path)
    return found


def shipped_recordings() -> Path:
    """The folder of the recordings that come with the project."""
    return Path(str(resources.files("iommukit_oracle"))) / "recordings"
