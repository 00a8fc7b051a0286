"""Fixtures of the whole test suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real tables, machines and recordings, which lies beside the repository and is not part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        reason = "the folder of real tables is absent"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
