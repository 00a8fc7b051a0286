"""All 108 rows of the boot table, lines included, for every profile that the table has a column for."""

import csv
from pathlib import Path

import pytest

from iommukit.kernel.profiles import PROFILES
from iommukit.kernel.start import new_boot_state, parse_cmdline
from iommukit.machine.model import BootSpec
from iommukit.vendors import VendorRegistry

TABLE = Path(__file__).parents[1] / "data" / "boot_policy.csv"
ROWS = list(csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines()))
COLUMNS = {
    "6.1": ("v61_type", "v61_lines"),
    "6.1.192": ("v61_type", "v61_lines"),
    "6.12": ("v612_type", "v612_lines"),
    "7.2": ("v612_type", "v612_lines"),
    "rfc": ("rfc_intended_policy", "rfc_lines"),
    "rfc-as-posted": ("rfc_as_written_policy", "rfc_lines"),
    "rfc-unconverted": ("rfc_as_written_policy", "rfc_lines"),
}
"""The profile's columns: the decision and the lines."""
LEGACY = ("intel_iommu=strict", "amd_iommu=fullflush")


@pytest.fixture(scope="module")
def registry() -> VendorRegistry:
    return VendorRegistry.installed()


def _cmdline(row: dict[str, str], legacy: str) -> str:
    words = ["quiet"]
    if row["legacy_strict"] == "1":
        words.append(legacy)  # first, because its place must not matter
    if row["passthrough_arg"]:
        words.append(f"iommu.passthrough={row['passthrough_arg']}")
    if row["strict_arg"]:
        words.append(f"iommu.strict={row['strict_arg']}")
    return " ".join(words)


def test_the_table_is_whole() -> None:
    keys = ("kconfig", "passthrough_arg", "strict_arg", "mem_encrypt", "legacy_strict")
    assert len({tuple(row[key] for key in keys) for row in ROWS}) == len(ROWS) == 108


@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize("name", COLUMNS)
def test_every_row(name: str, legacy: str, registry: VendorRegistry) -> None:
    from iommukit.kernel.profiles import get_kernel

    kernel = get_kernel(name)
    decision, lines = COLUMNS[name]
    wrong = []
    for number, row in enumerate(ROWS, start=2):
        boot = BootSpec.model_validate(
            {
                "kconfig": row["kconfig"].lower(),
                "cmdline": _cmdline(row, legacy),
                "memory_encryption": row["mem_encrypt"] == "1",
            }
        )
        state = new_boot_state(kernel, "x86_64", boot)
        parse_cmdline(state, registry)
        printed = [line.removeprefix("iommu: ") for line in state.default.settle(state.kconfig, state.memory_encryption)]
        got = state.default.policy().name if decision.startswith("rfc") else state.default.domain_type().name
        # In the table a line's trailing blank is followed by the blank before the separator.
        wanted = row[lines].split(" | ")
        if (got, printed) != (row[decision], wanted):
            wrong.append(f"line {number}: wanted {row[decision]} {wanted}, got {got} {printed}")
    assert not wrong, "\n".join(wrong)


def test_every_profile_is_held_against_the_table() -> None:
    assert set(PROFILES) <= set(COLUMNS)
