"""The PCI instructions of z/Architecture as QEMU executes them."""

from __future__ import annotations

import struct

import pytest

from iommukit_oracle.hardware.instructions import Agent, AgentInstructions
from iommukit_oracle.hardware.platform import QemuPlatform

from .conftest import Boot
from .drivers import PAGE, Zpci

REGISTER, DEREGISTER, RESET_ERROR = 4, 5, 7
VIRTIO_BLK = 0x1042_1AF4
CONFIGURATION = 15


@pytest.fixture
def platform(boot: Boot) -> QemuPlatform:
    return boot(Zpci.machine)


@pytest.fixture
def do(platform: QemuPlatform) -> AgentInstructions:
    instructions = platform.bus.instructions
    assert isinstance(instructions, AgentInstructions)
    return instructions


def test_list_pci_functions(do: AgentInstructions) -> None:
    done, answer = do.clp(struct.pack(">HHI24xHH", 32, 2, 0, 32 + 16 * 8, 0))
    assert (done.cc, done.interruption) == (0, 0)
    length, code = struct.unpack_from(">HH", answer)
    assert (length, code, len(answer)) == (32 + 2 * 16, 0x10, 32 + 16 * 8)
    functions = [struct.unpack_from(">HHIII", answer, at) for at in range(32, length, 16)]
    assert [(device << 16 | vendor, fid) for device, vendor, _, fid, _ in functions] == [(VIRTIO_BLK, 2), (VIRTIO_BLK, 3)]


def test_a_command_that_does_not_exist(do: AgentInstructions) -> None:
    done, answer = do.clp(struct.pack(">HHI24xHH", 32, 0x77, 0, 32, 0))
    assert done.cc in (0, 3)
    assert struct.unpack_from(">HH", answer)[1] != 0x10


def test_loads_and_stores(platform: QemuPlatform, do: AgentInstructions) -> None:
    driver = Zpci(platform.bus)
    driver.start()
    handle = driver.handles[0]
    ids = do.load(handle, CONFIGURATION, 0, 4)
    assert (ids.cc, ids.result) == (0, 0xF41A_4210), "little-endian on PCI, so the other way round in a register"
    command = 0b110 << 8
    assert do.store(handle, CONFIGURATION, 4, command, 2).cc == 0
    assert do.load(handle, CONFIGURATION, 4, 2).result == command
    assert do.load(0xDEAD_0000, CONFIGURATION, 0, 4).cc == 3, "no such handle"


def test_interruptions_are_told(platform: QemuPlatform, do: AgentInstructions) -> None:
    agent = Agent(platform.qemu)
    assert agent.execute(bytes(4))[2] == 1, "operation exception"
    driver = Zpci(platform.bus)
    driver.start()
    do.modify_controls(driver.handles[0], DEREGISTER, 0, b"")
    segment_table = struct.pack(">5Q", 0, 0, 1 << 32, (1 << 33) - 1, driver.top | 0x800)
    assert do.modify_controls(driver.handles[0], REGISTER, 0, segment_table).interruption == 0x15, "operand exception"


def test_registers_go_there_and_back(platform: QemuPlatform) -> None:
    agent = Agent(platform.qemu)
    values = [0x1111_2222_3333_4444 * (number + 1) for number in range(6)]
    assert agent.execute(bytes.fromhex("0700"), values) == (0, values, 0)
    condition, after, _ = agent.execute(bytes.fromhex("b9080045"), (1, 2))  # agr %r4, %r5
    assert (condition, after[0]) == (2, 3)


def test_the_agent_wakes_up(platform: QemuPlatform) -> None:
    """It waits after a while without a request."""
    import time

    agent = Agent(platform.qemu)
    for _ in range(3):
        assert agent.execute(bytes.fromhex("0700"))[2] == 0
        time.sleep(0.02)


def test_wrong_sequence_has_a_status(platform: QemuPlatform, do: AgentInstructions) -> None:
    driver = Zpci(platform.bus)
    driver.start()
    again = do.modify_controls(driver.handles[0], REGISTER, 0, driver.registration())
    assert (again.cc, again.status) == (1, 24), "registered already"
    assert do.modify_controls(driver.handles[0], DEREGISTER, 0, b"").cc == 0


def test_a_fault_is_an_event(platform: QemuPlatform, do: AgentInstructions) -> None:
    driver = Zpci(platform.bus)
    driver.start()
    nic = platform.engine("nic")
    driver.open(nic.windows[0])
    assert do.store_event() is None
    nic.store(0x1_2345_6000, 8)
    event = do.store_event()
    assert event is not None
    assert event[7] == 2, "notification type: PCI"
    assert event[11] == 1, "content code: an error"
    handle, fid, address, code = struct.unpack_from(">4xII4xQ6xH", event, 64)
    assert (handle, fid, address, code) == (driver.handles[0], 2, 0x1_2345_6000, 4)
    assert do.store_event() is None


def test_refresh_is_needed_for_a_new_entry(platform: QemuPlatform, do: AgentInstructions) -> None:
    driver = Zpci(platform.bus)
    driver.start()
    nic, page, iova = platform.engine("nic"), platform.buffers.start, 0x1_5000_0000
    driver.open(nic.windows[0])
    platform.bus.memory.set_big_word(driver._entry(iova), page)
    nic.poke(0, b"new entry")
    nic.store(iova, 9)
    assert platform.bus.memory.read(page, 9) != b"new entry"
    done = do.refresh_translations(driver.handles[0], iova, PAGE)
    assert (done.cc, done.interruption) == (0, 0)
    nic.store(iova, 9)
    assert platform.bus.memory.read(page, 9) == b"new entry"


def test_a_device_whose_tables_are_gone_does_nothing(platform: QemuPlatform, do: AgentInstructions) -> None:
    driver = Zpci(platform.bus)
    driver.start()
    nic, page, iova = platform.engine("nic"), platform.buffers.start, 0x1_5000_0000
    driver.open(nic.windows[0])
    driver.map(iova, page)
    nic.poke(0, b"before it")
    nic.store(iova, 9)
    assert do.modify_controls(driver.handles[0], DEREGISTER, 0, b"").cc == 0
    for data in (b"meanwhile", b"once more"):
        nic.poke(0, data)
        nic.store(iova, 9)
    assert platform.bus.memory.read(page, 9) == b"before it"
    assert do.modify_controls(driver.handles[0], REGISTER, 0, driver.registration()).cc == 0
    for at in (nic.windows[0].iova, iova):
        assert do.refresh_translations(driver.handles[0], at, nic.windows[0].size).cc == 0
    assert platform.bus.memory.read(page, 9) == b"before it", "nothing was left over"
    nic.poke(0, b"afterward")
    nic.store(iova, 9)
    assert platform.bus.memory.read(page, 9) == b"afterward"
