"""QEMU, with a driver of a page in place of a vendor's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from iommukit.errors import InputError
from iommukit.hookspecs import Emulation
from iommukit_oracle.hardware.platform import QemuPlatform
from iommukit_oracle.hardware.qemu import find

from .drivers import DRIVERS, Driver

Boot = Callable[..., QemuPlatform]


def need(binary: str) -> None:
    """QEMU, or the test is skipped; where everything has to be tried that is an error."""
    try:
        find(binary)
    except InputError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture
def boot() -> Iterator[Boot]:
    """Starts machines, which end with the test."""
    running: list[QemuPlatform] = []

    def start(machine: Emulation, **more: object) -> QemuPlatform:
        need(machine.binary)
        running.append(QemuPlatform(machine, **more))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for platform in running:
        platform.close()


@pytest.fixture(params=DRIVERS)
def hardware(request: pytest.FixtureRequest, boot: Boot) -> tuple[QemuPlatform, Driver]:
    """Each IOMMU, brought up, with the devices' windows mapped."""
    driver_class = DRIVERS[request.param]
    platform = boot(driver_class.machine)
    driver = driver_class(platform.bus)
    driver.start()
    for device in driver.machine.machine["devices"]:
        for window in platform.engine(device["name"]).windows:
            driver.open(window)
    return platform, driver


EVERY_PCI_MACHINE = [DRIVERS[name].machine for name in ("vtd", "smmu")]
EVERY_MACHINE = [driver.machine for driver in DRIVERS.values()]
