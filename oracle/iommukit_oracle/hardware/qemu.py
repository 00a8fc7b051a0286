"""QEMU as a process: found, started, and gone when it is no longer wanted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

from iommukit.errors import HardwareLost, InputError
from iommukit.hw.memory import PhysicalMemory
from iommukit_oracle.hardware.hosts import HOSTS, Host
from iommukit_oracle.hardware.qmp import Monitor
from iommukit_oracle.hardware.qtest import Qtest

PATIENCE = 30.0
"""Seconds of real time after which QEMU counts as lost; nothing that is asked of it takes a hundredth of that."""


@dataclass(frozen=True, slots=True)
class Program:
    """An installed QEMU: ``arch`` is the suffix of its name, ``release`` what it calls itself, such as ``7.2.22``."""

    arch: str
    path: str
    release: str

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)

    @property
    def host(self) -> Host:
        """What is known of its machines."""
        return HOSTS[self.arch]


def find(arch: str) -> Program:
    """The QEMU on the path for an architecture.  Raises ``InputError`` that names Debian's package where there is none."""
    host = HOSTS.get(arch)
    if host is None:
        raise InputError(f"nothing is known of QEMU's machines for {arch!r}; there are {', '.join(HOSTS)}")
    name = f"qemu-system-{arch}"
    path = shutil.which(name)
    if path is None:
        raise InputError(f"{name} is not on the path; Debian has it in the package {host.package}")
    return _program(arch, path)


@lru_cache
def _program(arch: str, path: str) -> Program:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False).stdout
    except subprocess.TimeoutExpired as error:
        raise InputError(f"does not tell its version within {PATIENCE:.0f} s", source=path) from error
    except OSError as error:
        raise InputError(f"cannot be asked for its version: {error.strerror}", source=path) from error
    found = re.search(r"version (\d+\.\d+[.\d]*)", answer)
    if found is None:
        raise InputError(f"does not tell its version: {answer.strip()!r}", source=path)
    return Program(arch, path, found[1])


class Process:
    """QEMU's process and all that it says.  It ends with its object, and with the interpreter."""

    def __init__(self, program: Program, arguments: Sequence[str], passed: Sequence[int]) -> None:
        self.name = f"QEMU {program.release} ({program.arch})"
        self._log = os.memfd_create("qemu-log")
        self._popen = subprocess.Popen(
            [*leash(), program.path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=passed,
        )
        self._end = weakref.finalize(self, _end, self._popen, self._log)

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def said(self) -> str:
        """All that it has written to its standard output and error so far, trace events among it."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, size, 0).decode(errors="replace")

    def lost(self, what: str) -> HardwareLost:
        """What to raise where it has failed to do something: its end, if it has met it, and its last words."""
        try:
            code: int | None = self._popen.wait(1)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            what = f"died of {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
        words = [line for line in self.said().splitlines() if line.startswith("qemu") and "warning:" not in line]
        return HardwareLost(f"{self.name} {what}" + (f"; its last words: {words[-1]}" if words else ""))

    def kill(self) -> None:
        """End it, at once: it has nothing to save.  ``said`` still answers afterwards."""
        _kill(self._popen)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _end(process: subprocess.Popen[bytes], log: int) -> None:
    _kill(process)
    os.close(log)


@lru_cache
def leash() -> tuple[str, ...]:
    """A command in front that has the kernel kill the process when this one ends, even without warning."""
    path = shutil.which("setpriv")
    return (path, "--pdeathsig", "KILL") if path else ()


def inherited(file: int) -> str:
    """How the other process opens a file that it inherits."""
    return f"/proc/self/fd/{file}"


class Qemu:
    """A running QEMU whose processor waits, with the guest's memory shared.

    ``arguments`` choose machine and devices.  ``files`` are read and written by the guest's disks: in ``arguments`` a name in
    braces, such as ``{disk}``, stands for the file's path.  ``trace`` are patterns of QEMU's trace events, which end up in
    ``process.said()``.  Nothing of it is left in any folder: files, memory and sockets have no names.

    Raises ``InputError`` where QEMU does not start with these arguments.  A context manager; a process that was forgotten ends with
    its object, with the interpreter, and where ``setpriv`` is installed with whatever ends the interpreter.
    """

    def __init__(
        self,
        program: Program,
        arguments: Sequence[str],
        *,
        memory_size: int,
        memory_base: int = 0,
        files: Mapping[str, int] | None = None,
        trace: Sequence[str] = (),
    ) -> None:
        self.program = program
        files = files or {}
        paths = {name: inherited(file) for name, file in files.items()}
        with (
            open(os.memfd_create("qemu-ram"), "r+b", buffering=0) as ram,
            open(os.memfd_create("qemu-firmware"), "r+b", buffering=0) as firmware,
            ExitStack() as theirs,
        ):
            ram.truncate(memory_size)
            firmware.write(program.host.firmware())
            mine, monitor = (connection(theirs) for _ in range(2))
            self.memory = PhysicalMemory(memory_size, memory_base, file=ram.fileno())
            self.process = Process(
                program,
                [
                    *(argument.format_map(paths) if "{" in argument else argument for argument in arguments),
                    *("-m", f"{memory_size >> 20}M", "-machine", "memory-backend=ram"),
                    *("-object", f"memory-backend-file,id=ram,size={memory_size},mem-path={inherited(ram.fileno())},share=on"),
                    *("-accel", "tcg", *program.host.timing, program.host.option, inherited(firmware.fileno())),
                    *("-display", "none", "-nodefaults", "-no-user-config", "-serial", "none", "-qtest-log", "none"),
                    *("-chardev", f"socket,id=qtest,fd={mine.theirs}", "-qtest", "chardev:qtest"),
                    *("-chardev", f"socket,id=qmp,fd={monitor.theirs}", "-mon", "chardev=qmp,mode=control"),
                    *(word for pattern in trace for word in ("-trace", f"enable={pattern}")),
                ],
                [ram.fileno(), firmware.fileno(), mine.theirs, monitor.theirs, *files.values()],
            )
        self.qtest = Qtest(mine.ours, self.process.lost)
        self.monitor = Monitor(monitor.ours, self.process.lost)
        try:
            self.qtest.read(memory_base, 4)  # answered once the machine is there
        except BaseException as error:
            self.close()
            if isinstance(error, HardwareLost):
                raise InputError(f"{self.process.name} does not start: {error}") from error
            raise

    def close(self) -> None:
        """End the process and give the memory back.  ``process.said()`` still answers."""
        self.qtest.close()
        self.monitor.close()
        self.process.kill()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pair(NamedTuple):
    """Both ends of a connection; the other process's as a number."""

    ours: socket.socket
    theirs: int


def connection(theirs: ExitStack, patience: float = PATIENCE) -> Pair:
    """A connection to a process that is about to start; its end is closed here with the stack.

    ``patience``: seconds after which a read gives up.
    """
    ours, other = socket.socketpair()
    ours.settimeout(patience)
    return Pair(ours, theirs.enter_context(other).fileno())
