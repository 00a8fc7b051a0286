"""The shipped recordings, each parsed and replayed once."""

from __future__ import annotations

from functools import cache

import pytest

from iommukit.vendors import VendorRegistry
from iommukit_oracle.observations import Replay
from iommukit_oracle.recording import Recording, load_recordings, recording_files, shipped_recordings
from iommukit_oracle.replay import replay


@cache
def registry() -> VendorRegistry:
    return VendorRegistry.installed()


@cache
def shipped() -> dict[str, Recording]:
    return {recording.id: recording for path in recording_files([shipped_recordings()]) for recording in load_recordings(path)}


@cache
def replayed(name: str) -> Replay:
    return replay(shipped()[name], registry())


@pytest.fixture(name="registry", scope="session")
def _registry() -> VendorRegistry:
    return registry()


@pytest.fixture(name="recordings", scope="session")
def _recordings() -> dict[str, Recording]:
    return shipped()
