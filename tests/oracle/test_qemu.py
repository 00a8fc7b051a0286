"""The process, its memory and its registers: found, started, shared, lost, gone."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iommukit.errors import HardwareLost, InputError
from iommukit.hookspecs import Emulation
from iommukit_oracle.hardware import agent
from iommukit_oracle.hardware.hosts import HOSTS
from iommukit_oracle.hardware.platform import QemuPlatform
from iommukit_oracle.hardware.qemu import Program, find

from .conftest import EVERY_MACHINE, Boot, need
from .drivers import AmdVi, Vtd, Zpci, pci_machine

RISCV = pci_machine("riscv64", "-M", "virt", base=1 << 31)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("machine", [*EVERY_MACHINE, RISCV], ids=lambda machine: " ".join(machine.arguments[:4]))
def test_memory_is_the_same_on_both_sides(machine: Emulation, boot: Boot) -> None:
    platform = boot(machine)
    memory, order = platform.bus.memory, "big" if machine.binary == "s390x" else "little"
    for at in (platform.buffers.start, platform.buffers.stop - 8, memory.end - 8):
        memory.set_word(at, 0x1122_3344_5566_7788)
        assert platform.bus.read(at, 8) == int.from_bytes(memory.read(at, 8), order)  # type: ignore[arg-type]
        platform.bus.write(at, 8, 0xAABB_CCDD_0102_0304)
        assert memory.read(at, 8) == 0xAABB_CCDD_0102_0304.to_bytes(8, order)  # type: ignore[arg-type]
        platform.bus.write(at + 4, 4, 0xCAFE)
        assert platform.bus.read(at + 4, 4) == 0xCAFE


def test_registers_are_those_of_the_iommu(boot: Boot) -> None:
    bus = boot(Vtd.machine).bus
    assert bus.read(Vtd.base, 4) == 0x10, "version 1.0"
    bus.write(Vtd.base + 0x20, 8, 0x1234_5000)
    assert bus.read(Vtd.base + 0x20, 8) == 0x1234_5000
    assert bus.read(Vtd.base + 0x24, 4) == 0


def test_a_platform_tells_its_release(boot: Boot) -> None:
    platform = boot(Vtd.machine)
    program = find("x86_64")
    assert platform.name == f"QEMU {program.release}"
    assert platform.emulation is Vtd.machine
    assert program.version >= (7, 0)
    version = platform.qemu.monitor.ask("query-version")["qemu"]
    assert program.version == (version["major"], version["minor"])


def test_trace_events_are_kept(boot: Boot) -> None:
    platform = boot(AmdVi.machine, trace=("amdvi_pages_*",))
    driver = AmdVi(platform.bus)
    driver.start()
    assert "amdvi_pages_inval" not in platform.qemu.process.said()
    driver.flush()
    assert "amdvi_pages_inval AMD-Vi pages for domain 0x7 invalidated" in platform.qemu.process.said()


def test_the_monitor_passes_on_what_qemu_refuses(boot: Boot) -> None:
    with pytest.raises(ValueError, match=r"no-such-command: .*has not been found"):
        boot(Vtd.machine).qemu.monitor.ask("no-such-command")


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", HOSTS)
def test_a_missing_qemu_names_its_package(arch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=re.escape(f"qemu-system-{arch} is not on the path; Debian has it in the package {HOSTS[arch].package}")
    ):
        find(arch)


def test_an_unknown_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match="nothing is known of QEMU's machines for 'vax'; there are x86_64, aarch64, riscv64, s390x"
    ):
        find("vax")


def test_something_else_by_the_name_of_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    impostor = tmp_path / "qemu-system-x86_64"
    impostor.write_text("#!/bin/sh\necho hello\n")
    impostor.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match="does not tell its version: 'hello'"):
        find("x86_64")


def test_a_release_without_a_patch_level() -> None:
    assert Program("x86_64", "qemu", "10.0").version == (10, 0)


def test_arguments_that_qemu_refuses() -> None:
    need("x86_64")
    with pytest.raises(InputError, match=r"QEMU \S+ \(x86_64\) does not start: .*'no-such-iommu' is not a valid device model"):
        QemuPlatform(Emulation("x86_64", ("-M", "q35", "-device", "no-such-iommu"), {"devices": []}))


def test_an_address_off_the_root_bus() -> None:
    need("x86_64")
    machine = {"devices": [{"name": "nic", "address": "0000:01:00.0"}]}
    with pytest.raises(InputError, match=r"nic is at 0000:01:00\.0, which is not on the root bus"):
        QemuPlatform(Emulation("x86_64", ("-M", "q35"), machine))


@pytest.mark.parametrize("driver", [Vtd, Zpci])
def test_a_dead_qemu_is_told_with_its_end(driver: type[Vtd | Zpci], boot: Boot) -> None:
    platform = boot(driver.machine)
    os.kill(platform.qemu.process.pid, 6)
    with pytest.raises(HardwareLost, match=r"QEMU \S+ \(\w+\) died of SIGABRT"):
        driver(platform.bus).start()
    assert not platform.qemu.process.running


def test_last_words(boot: Boot) -> None:
    """What it said last is told, warnings apart: here of a request that it has stopped."""
    platform = boot(Vtd.machine)
    Vtd(platform.bus).start()
    platform.engine("nic").store(0x1234_5000, 8)
    os.kill(platform.qemu.process.pid, 6)
    with pytest.raises(HardwareLost, match=r"died of SIGABRT; its last words: qemu-system-x86_64: \w.*"):
        platform.engine("nic").store(0x1234_5000, 8)


# ---- nothing stays behind --------------------------------------------------------------------------------------------


def open_files() -> dict[str, str]:
    gc.collect()
    return {entry.name: os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


def test_a_closed_platform_leaves_nothing() -> None:
    before = open_files()
    for machine in (Vtd.machine, Zpci.machine):
        need(machine.binary)
        with QemuPlatform(machine) as platform:
            platform.engine("nic")
            pid = platform.qemu.process.pid
            assert alive(pid)
        assert not alive(pid)
        del platform
    assert open_files() == before


def test_an_exception_ends_qemu() -> None:
    need("x86_64")
    pid = 0

    def fail() -> None:
        nonlocal pid
        with QemuPlatform(Vtd.machine) as platform:
            pid = platform.qemu.process.pid
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert pid
    assert not alive(pid)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_platform_ends() -> None:
    need("x86_64")
    platform = QemuPlatform(Vtd.machine)
    pid = platform.qemu.process.pid
    del platform
    gc.collect()
    assert not alive(pid)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), 9)"], ids=["exit", "kill"])
def test_qemu_ends_with_the_interpreter(end: str) -> None:
    need("x86_64")
    code = f"""
import os, sys
from iommukit.hookspecs import Emulation
from iommukit_oracle.hardware.platform import QemuPlatform
platform = QemuPlatform(Emulation("x86_64", ("-M", "q35"), {{"devices": []}}))
print(platform.qemu.process.pid, flush=True)
{end}
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    pid, until = int(answer.stdout), time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(pid)


# ---- the guest of s390 -----------------------------------------------------------------------------------------------


def test_the_agent_s_bytes_are_its_source(tmp_path: Path) -> None:
    source = Path(agent.__file__).with_suffix(".S")
    try:
        subprocess.run(["s390x-linux-gnu-as", "-march=z10", "-o", tmp_path / "agent.o", source], check=True)
        subprocess.run(["s390x-linux-gnu-objcopy", "-O", "binary", tmp_path / "agent.o", tmp_path / "agent.bin"], check=True)
    except FileNotFoundError:
        if "CI" in os.environ:
            raise
        pytest.skip("no assembler for s390x: Debian has it in the package binutils-s390x-linux-gnu")
    assert (tmp_path / "agent.bin").read_bytes() == agent.CODE
