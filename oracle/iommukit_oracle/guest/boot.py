"""Booting the guest: a command line of QEMU for each architecture and IOMMU, and a running guest with its console and monitor."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from iommukit.errors import HardwareLost
from iommukit_oracle.guest.packages import Archive
from iommukit_oracle.hardware.qemu import find
from iommukit_oracle.hardware.qmp import Monitor

TIMEOUT = 240.0
"""Seconds of real time for a guest to say what it is waited for; a boot takes 3 to 12."""


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

    def archive(self, suite: str = "bookworm") -> Archive:
        """Where its packages come from."""
        return Archive(self.debian, suite)


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


class Guest:
    """A running guest.  A context manager; the process ends with it.

    ``machine`` is a key of ``MACHINES``; ``options`` are the IOMMU's (``caching-mode=on``), ``devices`` are values of ``-device``,
    ``extra`` further arguments.  Raises ``InputError`` without that QEMU.
    """

    def __init__(
        self,
        machine: GuestMachine,
        kernel: Path,
        initrd: bytes,
        cmdline: str,
        *,
        memory: int = 256 << 20,
        options: str = "",
        devices: Sequence[str] = (),
        extra: Sequence[str] = (),
    ) -> None:
        program = find(machine.arch)
        self.machine = machine
        self._folder = tempfile.TemporaryDirectory(prefix="iommukit-guest-")
        folder = Path(self._folder.name)
        (folder / "initrd").write_bytes(initrd)
        self._console = folder / "console"
        self._said = folder / "qemu"
        mine, theirs = socket.socketpair()
        mine.settimeout(TIMEOUT)
        arguments = [argument.replace("{options}", options).rstrip(",") for argument in machine.arguments]
        self.arguments = [
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg,thread=multi", "-smp", "1"),
            *("-m", f"{memory >> 20}M", *arguments, *extra),
            *(word for device in devices for word in ("-device", device)),
            *("-kernel", str(kernel), "-initrd", str(folder / "initrd")),
            *("-append", f"{machine.cmdline} quiet panic=-1 {cmdline}".strip()),
            *("-serial", f"file:{self._console}"),
            *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
        ]
        with open(self._said, "wb") as said:
            self._process = subprocess.Popen(
                [program.path, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process)
        self.monitor = Monitor(mine, self._lost)

    def _lost(self, what: str) -> HardwareLost:
        """What to raise where the guest has failed to do something, with QEMU's and the guest's last words."""
        words = [*self._said.read_text(errors="replace").splitlines()[-1:], *self.console().splitlines()[-1:]]
        return HardwareLost(f"the guest {what}: {' / '.join(words) or 'it said nothing'}")

    def console(self) -> str:
        """All that the guest has printed so far, without carriage returns."""
        return self._console.read_text(errors="replace").replace("\r", "") if self._console.exists() else ""

    def wait_for(self, line: str, timeout: float = TIMEOUT) -> str:
        """Wait until the guest has printed a line, and answer the whole console.  Raises ``HardwareLost`` when it is too late."""
        until = time.monotonic() + timeout
        while True:
            ended = self._process.poll() is not None
            text = self.console()
            if f"\n{line}\n" in f"\n{text}":
                return text
            if ended:
                raise self._lost(f"ended before it said {line!r}")
            if time.monotonic() > until:
                raise self._lost(f"did not say {line!r} within {timeout:.0f} s")
            time.sleep(0.05)

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
        self._end()
        self.monitor.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
