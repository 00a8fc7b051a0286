"""Debian's archive in a folder, and guests that are booted where they can be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.packages import Packages

Unpacked = Callable[[str, str, Mapping[str, bytes]], None]


@contextmanager
def needed() -> Iterator[None]:
    """QEMU and Debian's packages, or the test is skipped; where everything has to be tried that is an error."""
    try:
        yield
    except InputError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no guest can be booted here: {error}")


@pytest.fixture
def unpacked(tmp_path: Path) -> Unpacked:
    """Puts a package into the cache folder (the test's), as if it had been fetched: archive, name, files by path."""

    def put(archive: str, name: str, files: Mapping[str, bytes]) -> None:
        root = tmp_path / "debian" / archive / "unpacked" / name
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)

    return put


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What apt prints, by its last word; a word that is missing is what the archive does not know."""
    known: dict[str, str] = {}

    def apt(self: Packages, *command: str) -> str:
        return known.get(command[-1], "")

    monkeypatch.setattr(Packages, "_apt", apt)
    monkeypatch.setattr("iommukit_oracle.guest.packages.KEYRING", tmp_path)
    return known


@pytest.fixture
def zstd() -> str:
    """The program, or the test is skipped."""
    path = shutil.which("zstd")
    if path is None:
        if "CI" in os.environ:
            pytest.fail("zstd is not installed")
        pytest.skip("zstd is not installed")
    return path
