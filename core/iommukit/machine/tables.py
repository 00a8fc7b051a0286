"""Firmware tables as files beside a machine file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iommukit.errors import InputError
from iommukit.machine.model import Machine

BASE64 = "base64:"
"""How a table inside a machine file begins."""


def load_tables(machine: Machine, folder: Path) -> Machine:
    """Replace table file names by the files' bytes, relative to the machine file's folder.

    Raises ``InputError`` for a missing file or a path that leaves the folder.
    """
    loaded: dict[str, Any] = {}
    for signature, raw in machine.firmware.items():
        loaded[signature] = raw
        if not isinstance(raw, str) or raw.startswith(BASE64):
            continue
        path = folder / raw
        source = f"{machine.source}, firmware {signature}"
        if Path(raw).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{raw} lies outside the machine file's folder", source=source)
        try:
            loaded[signature] = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", source=str(path)) from error
    return machine.model_copy(update={"firmware": loaded}) if loaded else machine
