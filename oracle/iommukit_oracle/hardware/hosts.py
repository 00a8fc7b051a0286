"""What an architecture's machine needs before it is of use without an operating system: code that waits, and where PCI is."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from iommukit_oracle.hardware.agent import image
from iommukit_oracle.hardware.pci import ConfigSpace, Ecam, Ports
from iommukit_oracle.hardware.qtest import Qtest


def _x86_firmware() -> bytes:
    """64 KiB of HLT, with CLI, HLT and a jump back at the reset vector."""
    code = bytearray(b"\xf4" * 0x10000)
    code[0xFFF0:0xFFF4] = b"\xfa\xf4\xeb\xfd"
    return bytes(code)


@dataclass(frozen=True, slots=True)
class PciHost:
    """How configuration space is reached, and the memory window for base address registers (bytes)."""

    config: Callable[[Qtest], ConfigSpace]
    window: int


@dataclass(frozen=True, slots=True)
class Host:
    """One architecture.

    ``package`` is Debian's; ``firmware`` makes the firmware, which ``option`` loads; ``timing`` makes virtual time jump to the next
    timer while the processor halts, so that no DMA is waited for; ``windows`` is the first I/O virtual address for the devices'
    windows: without it they lie at their physical addresses, and stay in place under pass-through.
    """

    package: str
    firmware: Callable[[], bytes]
    option: str = "-bios"
    timing: Sequence[str] = ("-icount", "shift=0,sleep=off")
    pci: PciHost | None = None
    windows: int | None = None


HOSTS: Mapping[str, Host] = {
    "x86_64": Host("qemu-system-x86", _x86_firmware, pci=PciHost(Ports, 0xE000_0000)),
    # WFI and a jump back, in either language.
    "aarch64": Host(
        "qemu-system-arm",
        lambda: struct.pack("<II", 0xD503_207F, 0x17FF_FFFF),
        pci=PciHost(lambda qtest: Ecam(qtest, 0x40_1000_0000), 0x1000_0000),
    ),
    "riscv64": Host(
        "qemu-system-misc or, since Debian 13, qemu-system-riscv",
        lambda: struct.pack("<II", 0x1050_0073, 0xFFDF_F06F),
        pci=PciHost(lambda qtest: Ecam(qtest, 0x3000_0000), 0x4000_0000),
    ),
    "s390x": Host(
        "qemu-system-misc or, since Debian 13, qemu-system-s390x", image, option="-kernel", timing=(), windows=0x1_0100_0000
    ),
}
"""By the suffix of ``qemu-system-…``.  On s390 addresses begin at 4 GiB and are handed out from the top down."""
