"""Firmware with which an arm64 guest finds ACPI tables rather than a device tree."""

from __future__ import annotations

from pathlib import Path

from iommukit_oracle.guest.packages import Archive, Packages, Unavailable

PACKAGE = "qemu-efi-aarch64"
FILE = "QEMU_EFI.fd"
SUITE = "bookworm"
WORD = "acpi=force"
"""The kernel's word: it prefers the device tree, which QEMU hands over as well."""


def uefi_firmware(folder: Path | None = None) -> Path:
    """UEFI for QEMU's ``virt`` (``-bios``), from Debian's package; a boot takes 2.5 to 3 s with it.

    The kernel is told ``WORD`` besides.  Raises ``Unavailable`` where the package is not to be had.
    """
    root = Packages(Archive("arm64", SUITE), folder).unpacked(PACKAGE, wanted=lambda path: path.endswith(f"/{FILE}"))
    found = sorted(root.rglob(FILE))
    if not found:
        raise Unavailable(f"{PACKAGE} does not hold {FILE}")
    return found[0]
