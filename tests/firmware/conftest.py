"""The real tables of the shared folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iommukit.machine.acpi import AcpiFormat
from iommukit.machine.viot import VIOT
from iommukit_amd_vi.firmware import IVRS
from iommukit_arm_smmu.firmware import IORT
from iommukit_intel_vtd.firmware import DMAR

FORMATS: dict[bytes, AcpiFormat[Any]] = {b"DMAR": DMAR, b"IVRS": IVRS, b"IORT": IORT, b"VIOT": VIOT}

RealTable = tuple[Path, AcpiFormat[Any], bytes]


@pytest.fixture(scope="session")
def tables_folder(shared_folder: Path) -> Path:
    """Tables of real machines, of fwts and of QEMU."""
    return shared_folder / "tables"


@pytest.fixture(scope="session")
def good_tables(shared_folder: Path) -> list[RealTable]:
    """All tables that their machines and emulators used, with their formats."""
    paths = [
        *shared_folder.glob("tables/linuxhw/*.aml"),
        *shared_folder.glob("tables/qemu/*.aml"),
        *shared_folder.glob("machines/*/table.bin"),
    ]
    return [(path, FORMATS[path.read_bytes()[:4]], path.read_bytes()) for path in sorted(paths)]
