"""Copies of QEMU in which a number of the program is another one, for what no option changes.

QEMU's amd-iommu always sets ``NpCache`` in its capability's header (AMD I/O Virtualization Technology Specification, "IOMMU
Capability Header").  Linux takes that for an emulated IOMMU, where each new mapping has to be flushed as well, and gives up lazy
invalidation.  And a device of QEMU has its maker's numbers, while Linux knows some devices by theirs: those that need an identity
domain, ports that isolate without saying so.  Each of these is one number in the program, so a copy with another number does.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from iommukit.errors import InputError
from iommukit_oracle.guest.packages import cache_folder
from iommukit_oracle.hardware.qemu import Program

NP_CACHE = 1 << 26
HEADER = 0x1F03_000F
"""The header as QEMU 7.2 sets it (``hw/i386/amd_iommu.h``, ``AMDVI_CAPAB_FEATURES``)."""
OWN_NUMBERS: Mapping[str, str] = {
    "e1000e": "8086:10d3",
    "pcie-root-port": "1b36:000c",
    "pvscsi": "15ad:07c0",
    "vmxnet3": "15ad:07b0",
}
"""Vendor and device of the models that can be given others."""
BESIDE = ("share", "lib", "lib64", "libexec")
"""Folders beside that of the program where QEMU looks for its firmware and modules."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a number is, and what it is to be; both as they stand in the program."""

    what: str
    old: int
    new: int


WITHOUT_NP_CACHE = Change("the header of the AMD IOMMU's capability", HEADER, HEADER & ~NP_CACHE)


def numbered(model: str, numbers: str) -> Change:
    """Give a model of ``OWN_NUMBERS`` another vendor and device, written ``8086:3a3e``."""
    return Change(f"vendor and device of {model}", _word(OWN_NUMBERS[model]), _word(numbers))


def _word(numbers: str) -> int:
    vendor, _, device = numbers.partition(":")
    return int(device, 16) << 16 | int(vendor, 16)


def variant(program: Program, changes: Iterable[Change], folder: Path | None = None) -> Program:
    """A copy of QEMU in the cache folder, changed; the program itself where there is nothing to change.

    Raises ``InputError`` where the program is none in which exactly one number can be the one that is meant.
    """
    wanted = tuple(changes)
    return replace(program, path=str(_copy(program, wanted, folder or cache_folder()))) if wanted else program


@lru_cache
def _copy(program: Program, changes: tuple[Change, ...], folder: Path) -> Path:
    original = Path(program.path).resolve()
    try:
        data = original.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=str(original)) from error
    for change in changes:
        data = _changed(data, change, original)
    # QEMU finds what belongs to it from its own place, so the copy stands among links to the same neighbours.
    root = folder / "qemu" / hashlib.sha256(data).hexdigest()
    copy = root / original.parent.name / original.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        for name in BESIDE:
            beside = original.parent.parent / name
            if beside.is_dir():
                with suppress(FileExistsError):
                    (root / name).symlink_to(beside)
        number, partial = tempfile.mkstemp(dir=copy.parent)
        with open(number, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o755)
        os.replace(partial, copy)
    return copy


def _changed(data: bytes, change: Change, original: Path) -> bytes:
    old = change.old.to_bytes(4, "little")
    places = data.count(old)
    if places != 1:
        raise InputError(
            f"{change.what}, {change.old:#010x}, was expected once and is there {places} times, so that it cannot be changed; "
            "QEMU 7.2 is known to have it",
            source=str(original),
        )
    return data.replace(old, change.new.to_bytes(4, "little"))
