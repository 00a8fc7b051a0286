"""A QEMU whose AMD IOMMU does not claim to cache entries that are absent.

QEMU's amd-iommu always sets ``NpCache`` in its capability's header (AMD I/O Virtualization Technology Specification, "IOMMU
Capability Header").  Linux takes that for an emulated IOMMU, where each new mapping has to be flushed as well, and gives up lazy
invalidation.  There is no option for it, but the header is one number in the program: a copy with another number does without.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from iommukit.errors import InputError
from iommukit_oracle.guest.packages import cache_folder
from iommukit_oracle.hardware.qemu import Program

NP_CACHE = 1 << 26
HEADER = 0x1F03_000F
"""The header as QEMU 7.2 sets it (``hw/i386/amd_iommu.h``, ``AMDVI_CAPAB_FEATURES``)."""
BESIDE = ("share", "lib", "lib64", "libexec")
"""Folders beside that of the program where QEMU looks for its firmware and modules."""


def without_np_cache(program: Program, folder: Path | None = None) -> Program:
    """A copy of QEMU for x86-64 whose AMD IOMMU does not have ``NpCache`` set, in the cache folder.

    Raises ``InputError`` where the program is none in which exactly one number can be the header.
    """
    return replace(program, path=str(_copy(program, folder or cache_folder())))


@lru_cache
def _copy(program: Program, folder: Path) -> Path:
    original = Path(program.path).resolve()
    try:
        data = original.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=str(original)) from error
    # QEMU finds what belongs to it from its own place, so the copy stands among links to the same neighbours.
    root = folder / "qemu" / hashlib.sha256(data).hexdigest()
    copy = root / original.parent.name / original.name
    if not copy.exists():
        changed = _changed(data, original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        for name in BESIDE:
            beside = original.parent.parent / name
            if beside.is_dir():
                with suppress(FileExistsError):
                    (root / name).symlink_to(beside)
        number, partial = tempfile.mkstemp(dir=copy.parent)
        with open(number, "wb") as file:
            file.write(changed)
        os.chmod(partial, 0o755)
        os.replace(partial, copy)
    return copy


def _changed(data: bytes, original: Path) -> bytes:
    header = HEADER.to_bytes(4, "little")
    places = data.count(header)
    if places != 1:
        raise InputError(
            f"the header of the AMD IOMMU's capability, {HEADER:#010x}, was expected once and is there {places} times, "
            "so that NpCache cannot be cleared; QEMU 7.2 is known to have it",
            source=str(original),
        )
    return data.replace(header, (HEADER & ~NP_CACHE).to_bytes(4, "little"))
