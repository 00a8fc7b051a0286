"""What a real kernel maps for DMA: a guest whose network card is up, the kernel's trace of every map and unmap, and its memory.

The trace does not say in which domain a page is mapped, so the guest has one device that does DMA, besides the direct regions that
the kernel maps at boot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iommukit.errors import HardwareLost, InputError
from iommukit_oracle.guest.boot import MACHINES, Guest
from iommukit_oracle.guest.kernels import debian_kernel
from iommukit_oracle.guest.tracing import CMDLINE, Event, quiet_trace
from iommukit_oracle.guest.userland import initrd

PAGE = 4096
NIC = "00:04.0"
"""The PCI address of the card."""
DEVICES = ("e1000e,addr=4,netdev=net,mac=52:54:00:00:00:01,romfile=",)
NETWORK = ("-netdev", "user,id=net,restrict=on")
PATIENCE = 20
"""Seconds for an answer from the network; it takes 2 to 3."""


@dataclass(frozen=True, slots=True)
class Case:
    """A key of ``MACHINES``, what is added to the kernel's command line, and the options of QEMU's IOMMU."""

    machine: str
    cmdline: str = ""
    options: str = ""


CASES: Mapping[str, Case] = {
    "intel": Case("intel", "intel_iommu=on iommu.strict=0", "aw-bits=48"),
    "intel-scalable": Case("intel", "intel_iommu=on,sm_on", "x-scalable-mode=on,aw-bits=48"),
    "arm": Case("arm", "iommu.strict=1"),
    "amd": Case("amd"),
}
"""What has been tried: lazy and strict, legacy and scalable mode."""


@dataclass(frozen=True, slots=True)
class MappedGuest:
    """What a guest left: its memory as an ELF core, the registers, and the pages that the kernel says are mapped.

    ``mapped`` counts (IOVA, physical address) of 4 KiB pages, in bytes: a pair counts twice where two domains have it.
    """

    dump: Path
    vendor: str
    kernel: str
    roots: dict[str, int]
    mapped: Counter[tuple[int, int]]


SIZES: Mapping[str, str] = {"map": "size", "unmap": "unmapped_size"}
"""The events that change what is mapped, and their field with the bytes."""


def live_pages(trace: Iterable[Event]) -> Counter[tuple[int, int]]:
    """The pages that were mapped and not unmapped again.  Raises ``InputError`` for an unmap of what nobody mapped."""
    mapped: dict[int, list[int]] = {}
    for event in trace:
        if event.name not in SIZES:
            continue
        start = event.number("iova")
        for iova in range(start, start + event.number(SIZES[event.name]), PAGE):
            pages = mapped.setdefault(iova, [])
            if event.name == "map":
                pages.append(event.number("paddr") + iova - start)
            elif len(pages) != 1:
                raise InputError(f"an unmap of {iova:#x}, which is mapped {len(pages)} times")
            else:
                pages.pop()
    return Counter((iova, physical) for iova, found in mapped.items() for physical in found)


def decoded_pages(walk: Mapping[str, Any]) -> Counter[tuple[int, int]]:
    """The pages in an answer of ``iommukit walk --json``, counted as in ``MappedGuest``: once for each domain.

    Devices of a group share a domain, which its tag tells.
    """
    domains = {device["domain"]: device for device in walk["devices"] if device["mode"] == "translated"}
    found: Counter[tuple[int, int]] = Counter()
    for device in domains.values():
        for each in device["ranges"]:
            if each["physical"] is None:
                raise InputError(f"{device['device']} has a bad entry for {each['iova']}: {each['reason']}")
            iova, physical = int(each["iova"], 0), int(each["physical"], 0)
            found.update((iova + offset, physical + offset) for offset in range(0, each["size"], PAGE))
    return found


@contextmanager
def network_guest(case: Case, kernel: str = "6.1") -> Iterator[Guest]:
    """Boot a guest whose card is up and has been answered.  Raises ``HardwareLost`` where it is not."""
    machine = MACHINES[case.machine]
    booted = debian_kernel(kernel, machine.debian)
    start = initrd(booted, machine.debian, ["e1000e"])
    words = f"{CMDLINE} ipv6.disable=1 {case.cmdline}".strip()
    with Guest(machine, booted.image, start, words, options=case.options, devices=DEVICES, extra=NETWORK) as guest:
        guest.load_modules()
        answer = guest.ask("network", f"0000:{NIC}", str(PATIENCE))
        if answer != "ok":
            raise HardwareLost(f"the guest's card does not work: {answer}")
        yield guest


def mapped_guest(folder: Path, case: Case, kernel: str = "6.1") -> MappedGuest:
    """Boot a guest, stop it, and keep its memory in ``folder``, which takes as many bytes as it has."""
    with network_guest(case, kernel) as guest:
        mapped = live_pages(quiet_trace(guest))
        release = re.search(r"Linux version (\S+).*Debian (\S+)", guest.ask("hello")["release"])
        guest.stop()
        dump = folder / "guest.elf"
        guest.dump(dump)
        said = f"Debian {release[2]} ({release[1]})" if release else ""
        return MappedGuest(dump, guest.machine.vendor, said, guest.roots(), mapped)
