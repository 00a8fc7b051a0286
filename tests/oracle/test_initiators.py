"""Each device of QEMU that does DMA, behind each of its IOMMUs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from iommukit.errors import NotApplicable
from iommukit.hw.platform import UNMAPPED, Initiator, WindowClosed
from iommukit_oracle.hardware.initiators import EduInitiator, LsiInitiator
from iommukit_oracle.hardware.platform import QemuPlatform

from .conftest import Boot
from .drivers import PAGE, Driver, Vtd

Hardware = tuple[QemuPlatform, Driver]
IOVA = 0x1_0000_0000
"""What is added to addresses on s390, where they begin here."""


def engines(hardware: Hardware) -> list[tuple[str, Initiator]]:
    platform, driver = hardware
    return [(device["name"], platform.engine(device["name"])) for device in driver.machine.machine["devices"]]


def address(driver: Driver, offset: int) -> int:
    return offset + (IOVA if driver.bus.instructions else 0)


def test_load_and_store_reach_what_is_mapped(hardware: Hardware) -> None:
    platform, driver = hardware
    memory, buffers, chance = platform.bus.memory, platform.buffers, random.Random(3)
    iova = address(driver, 0x1234_5000)
    first, second = buffers.start + 0x7000, buffers.start + 0x3000
    driver.map(iova, first)
    driver.map(iova + PAGE, second)
    driver.flush()
    for name, engine in engines(hardware):
        for size, at, offset in ((1, 0, 5), (8, 16, 0), (100, 7, 0xFC0), (2048, 100, 0x900), (512, 512, 0x200)):
            data = chance.randbytes(size)
            here = min(size, PAGE - offset)
            memory.write(first + offset, data[:here])
            memory.write(second, data[here:])
            engine.load(iova + offset, size, at)
            assert engine.peek(at, size) == data, (name, size, at)
            data = chance.randbytes(size)
            engine.poke(at, data)
            engine.store(iova + offset, size, at)
            assert memory.read(first + offset, here) + memory.read(second, size - here) == data, (name, size, at)


def test_a_store_touches_nothing_beside_it(hardware: Hardware) -> None:
    platform, driver = hardware
    memory, page, iova = platform.bus.memory, platform.buffers.start, address(driver, 0x5000_0000)
    driver.map(iova, page)
    driver.flush()
    for name, engine in engines(hardware):
        memory.write(page, b"\x11" * PAGE)
        engine.poke(3, b"\x22" * 40)
        engine.store(iova + 0x7F1, 40, 3)
        assert memory.read(page, PAGE) == b"\x11" * 0x7F1 + b"\x22" * 40 + b"\x11" * (PAGE - 0x7F1 - 40), name


def test_what_is_not_mapped_is_not_reached(hardware: Hardware) -> None:
    platform, driver = hardware
    memory, page, iova = platform.bus.memory, platform.buffers.start, address(driver, 0x2000_0000)
    secret, mine = b"a secret" * 4, b"not ours" * 4
    for name, engine in engines(hardware):
        driver.map(iova, page)
        driver.flush()
        engine.poke(0, mine)
        engine.store(iova, 32)
        assert memory.read(page, 32) == mine, name
        driver.unmap(iova)
        driver.flush()
        memory.write(page, secret)
        engine.store(iova, 32)
        assert memory.read(page, 32) == secret, name
        engine.load(iova, 32)
        assert secret not in engine.peek(0, 32), name


def test_load_words_names_the_holes(hardware: Hardware) -> None:
    platform, driver = hardware
    memory, count = platform.bus.memory, 700
    base = address(driver, 0x4000_0000)
    physical = platform.buffers.start + PAGE * np.array(random.Random(5).sample(range(count), count), dtype=np.uint64)
    holes = {0, 1, 130, 500, count - 1}
    for number, at in enumerate(physical.tolist()):
        memory.set_word(at + 24, 0xABCD_0000 + number)
        if number not in holes:
            driver.map(base + number * PAGE, at)
    driver.flush()
    iovas = base + 24 + PAGE * np.arange(count, dtype=np.uint64)
    wanted = [UNMAPPED if number in holes else 0xABCD_0000 + number for number in range(count)]
    for name, engine in engines(hardware):
        assert engine.load_words(iovas.astype(np.uint64)).tolist() == wanted, name


def test_a_device_is_used_again_after_a_fault(hardware: Hardware) -> None:
    platform, driver = hardware
    memory, page, iova = platform.bus.memory, platform.buffers.start, address(driver, 0x3000_0000)
    for name, engine in engines(hardware):
        engine.store(iova, 64)
        driver.map(iova, page)
        driver.flush()
        memory.write(page, b"once more unto the breach")
        engine.load(iova, 25)
        assert engine.peek(0, 25) == b"once more unto the breach", name
        driver.unmap(iova)
        driver.flush()


def test_a_device_that_does_not_reach_its_window_says_so(boot: Boot) -> None:
    platform = boot(Vtd.machine)
    driver = Vtd(platform.bus)
    driver.start()
    nic, bulk = platform.engine("nic"), platform.engine("bulk")
    with pytest.raises(WindowClosed, match="does not reach its window"):
        nic.peek(0, 8)
    iovas = np.array([0x1000, 0x2000], dtype=np.uint64)
    for engine in (nic, bulk):
        assert (engine.load_words(iovas) == UNMAPPED).all()
    for engine in (nic, bulk):
        driver.open(engine.windows[0])
    platform.bus.memory.set_word(platform.buffers.start, 77)
    driver.map(0x1000, platform.buffers.start)
    driver.flush()
    for engine in (nic, bulk):
        assert engine.load_words(iovas).tolist() == [77, UNMAPPED]


def test_the_limits_of_devices(boot: Boot) -> None:
    platform = boot(Vtd.machine)
    nic, bulk = platform.engine("nic"), platform.engine("bulk")
    assert isinstance(nic, EduInitiator)
    assert isinstance(bulk, LsiInitiator)
    with pytest.raises(ValueError, match="not in the buffer"):
        nic.load(0x1000, 2048, 2048)
    for call in (lambda: bulk.load(bulk.reach - 4, 8), lambda: bulk.load_words(np.array([bulk.reach], dtype=np.uint64))):
        with pytest.raises(ValueError, match="beyond the device's 32 bits"):
            call()
    with pytest.raises(NotApplicable, match=r"disk cannot be told to do DMA in QEMU .*: nic, second, bulk can"):
        platform.engine("disk")


def test_windows_are_nobody_else_s(hardware: Hardware) -> None:
    platform, _ = hardware
    memory = platform.bus.memory
    taken = [(window.physical, window.physical + window.size) for _, engine in engines(hardware) for window in engine.windows]
    assert all(start >= memory.pages.end and end <= memory.end for start, end in taken)
    assert all(one[1] <= other[0] for one, other in zip(sorted(taken), sorted(taken)[1:], strict=False))
    assert platform.buffers.stop <= memory.pages.start
