"""Booting the guest: a command line of QEMU for each architecture and IOMMU, and a running guest with its console and monitor."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from iommukit.errors import HardwareLost
from iommukit_oracle.guest.kernels import direct_image
from iommukit_oracle.hardware.qemu import Process, Program, connection, find, inherited
from iommukit_oracle.hardware.qmp import Monitor

TIMEOUT = 30.0
"""Seconds of real time for a guest to answer; a boot takes 2 to 5."""


@dataclass(frozen=True, slots=True)
class Register:
    """A register by its physical address: 64 bits, or 32."""

    address: int
    bits: int = 64


@dataclass(frozen=True, slots=True)
class GuestMachine:
    """A machine of QEMU with an IOMMU.

    ``vendor`` is the plugin's name, ``arch`` the suffix of ``qemu-system-…``, ``debian`` that of Debian's packages.  ``cmdline`` is
    what every kernel is told.  ``registers`` are those from which the tables are found, by the vendor's names for them.
    """

    vendor: str
    arch: str
    debian: str
    cmdline: str
    arguments: Sequence[str]
    registers: Mapping[str, Register]


_PC_CMDLINE = "console=ttyS0 no_timer_check"
"""On a busy host the check whether the timer ticks comes too early, and the kernel panics."""
_PC = ("-M", "q35,kernel-irqchip=split", "-cpu", "qemu64")

MACHINES: Mapping[str, GuestMachine] = {
    "intel": GuestMachine(
        "intel_vtd",
        "x86_64",
        "amd64",
        _PC_CMDLINE,
        (*_PC, "-device", "intel-iommu,intremap=on,{options}"),
        {"rtaddr": Register(0xFED9_0020)},
    ),
    "amd": GuestMachine(
        "amd_vi",
        "x86_64",
        "amd64",
        _PC_CMDLINE,
        (*_PC, "-device", "amd-iommu,intremap=on,{options}"),
        {"devtab": Register(0xFED8_0000)},
    ),
    "s390": GuestMachine(
        "s390",
        "s390x",
        "s390x",
        "console=ttysclp0",
        ("-M", "s390-ccw-virtio", "-cpu", "max,zpci=on"),
        {},
    ),
    "arm": GuestMachine(
        "arm_smmu",
        "aarch64",
        "arm64",
        "console=ttyAMA0",
        ("-M", "virt,iommu=smmuv3,gic-version=3,{options}", "-cpu", "cortex-a72"),
        {"strtab_base": Register(0x0905_0080), "strtab_base_cfg": Register(0x0905_0088, 32)},
    ),
}
"""By the names that recordings have for them."""
BY_VENDOR: Mapping[str, str] = {machine.vendor: name for name, machine in MACHINES.items()}
"""The name by vendor."""


class Guest:
    """A running guest and its agent.  A context manager; the process ends with it.

    ``machine`` is one of ``MACHINES``; ``options`` are the IOMMU's (``caching-mode=on``), ``devices`` are values of ``-device``,
    ``extra`` further arguments, ``program`` a QEMU in place of the one on the path.  Once made, the guest has booted and its agent
    listens.  Raises ``InputError`` without that QEMU, and ``HardwareLost`` with the last words where the guest does not come up.
    """

    def __init__(
        self,
        machine: GuestMachine,
        kernel: Path,
        initrd: bytes,
        cmdline: str = "",
        *,
        memory: int = 256 << 20,
        options: str = "",
        devices: Sequence[str] = (),
        extra: Sequence[str] = (),
        program: Program | None = None,
    ) -> None:
        self.machine = machine
        self.program = program or find(machine.arch)
        with open(os.memfd_create("guest-initrd"), "r+b") as start, ExitStack() as theirs:
            start.write(initrd)
            start.flush()
            console, monitor = (connection(theirs, TIMEOUT) for _ in range(2))
            arguments = [argument.replace("{options}", options).rstrip(",") for argument in machine.arguments]
            self.arguments = [
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg,thread=multi", "-smp", "1"),
                *("-m", f"{memory >> 20}M", *arguments, *extra),
                *(word for device in devices for word in ("-device", device)),
                *("-append", f"{machine.cmdline} quiet panic=-1 {cmdline}".strip()),
            ]
            """Those that make the machine; files and sockets come on top."""
            self.process = Process(
                self.program,
                [
                    *self.arguments,
                    *("-kernel", str(direct_image(kernel)), "-initrd", inherited(start.fileno())),
                    *("-chardev", f"socket,id=console,fd={console.theirs}", "-serial", "chardev:console"),
                    *("-chardev", f"socket,id=qmp,fd={monitor.theirs}", "-mon", "chardev=qmp,mode=control"),
                ],
                [start.fileno(), console.theirs, monitor.theirs],
            )
        self._socket = console.ours
        self._lines = console.ours.makefile("rb")
        self._console: list[str] = []
        self.monitor = Monitor(monitor.ours, self._lost)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def _lost(self, what: str) -> HardwareLost:
        """What to raise where the guest has failed to do something, with QEMU's and the guest's last words."""
        panics = [line for line in self._console if "Kernel panic" in line or "Unable to handle" in line or "BUG:" in line]
        said = [line for line in self.process.said().splitlines() if "warning:" not in line]
        words = [*said[-1:], *(panics[:1] or self._console[-1:])]
        return HardwareLost(f"the guest {what}: {' / '.join(words) or 'it said nothing'}")

    def console(self) -> str:
        """All that the guest has printed besides its agent's answers, without carriage returns."""
        return "\n".join(self._console)

    def _answer(self) -> Any:
        """The agent's next answer; what the kernel prints before it is kept: one that hangs may well go on complaining of that."""
        end = time.monotonic() + TIMEOUT
        while True:
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                read = self._lines.readline()
            except TimeoutError as error:
                raise self._lost(f"has not answered for {TIMEOUT:.0f} s") from error
            except OSError as error:
                raise self._lost("closed its console") from error
            if not read:
                raise self._lost("has ended")
            line = read.decode(errors="replace").strip("\r\n")
            before, _, answer = line.partition("@{")
            try:
                found = json.loads("{" + answer) if answer else None
            except ValueError:  # a kernel that panics speaks in between
                before, found = line, None
            if before:
                self._console.append(before)
            if found is not None:
                return found

    def ask(self, command: str, *words: str) -> Any:
        """Have the agent carry out a command, see ``agent.pl``.  Raises ``HardwareLost`` where the guest does not survive it."""
        line = "\t".join(_ODD.sub(lambda found: f"%{ord(found[0]):02x}", word) for word in (command, *words))
        try:
            self._socket.sendall(line.encode() + b"\n")
        except OSError as error:
            raise self._lost("closed its console") from error
        return self._answer()["answer"]

    def load_modules(self) -> None:
        """Load all modules that the guest was started with.  Raises ``HardwareLost`` where one is refused."""
        said = self.ask("insert", *self.ask("read", "/mods/order"))
        if failed := {name: result for name, result in said.items() if result != "ok"}:
            raise HardwareLost(f"the guest could not load {failed}")

    def stop(self) -> None:
        """Stop the processors: memory stays as it is."""
        self.monitor.ask("stop")

    def read_register(self, register: Register) -> int:
        """A register's value, read as a processor would read it."""
        unit = {32: "w", 64: "g"}[register.bits]
        said = self.monitor.ask("human-monitor-command", **{"command-line": f"xp /1{unit}x {register.address:#x}"})
        found = re.search(r":\s*(0x[0-9a-f]+)", said)
        if found is None:
            raise self._lost(f"has nothing at {register.address:#x} ({said.strip()})")
        return int(found[1], 16)

    def roots(self) -> dict[str, int]:
        """The registers from which the IOMMU finds its tables."""
        return {name: self.read_register(register) for name, register in self.machine.registers.items()}

    def dump(self, path: Path) -> None:
        """Write all of the guest's memory into a file, as an ELF core."""
        self.monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{path}")

    def close(self) -> None:
        """End the guest, at once."""
        self.process.kill()
        self.monitor.close()
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ODD = re.compile(r"[^ -$&-~]")
"""What a command's words may not hold as it is: tabs, newlines, the percent sign."""
