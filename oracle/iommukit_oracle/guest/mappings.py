"""What a real kernel maps for DMA: a guest whose network card is up, the kernel's trace of every map and unmap, and its memory.

The trace does not say in which domain a page is mapped, so the guest has one device that does DMA, besides the direct regions that
the kernel maps at boot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iommukit.errors import InputError
from iommukit_oracle.guest.boot import MACHINES, Guest
from iommukit_oracle.guest.initramfs import Modules, initramfs
from iommukit_oracle.guest.packages import busybox, debian_kernel

PAGE = 4096
NIC = "00:04.0"
"""The PCI address of the card."""
READY = "@READY"
"""What the guest prints when the trace is complete and nothing moves any more."""

CMDLINE = "trace_event=iommu:map,iommu:unmap trace_buf_size=4M trace_clock=global ipv6.disable=1"
"""A kernel that finds its clock unstable, as on a busy host, changes to this clock by itself and forgets the trace so far."""
DEVICES = ("e1000e,addr=4,netdev=net,mac=52:54:00:00:00:01",)
NETWORK = ("-netdev", "user,id=net,restrict=on")

INIT = r"""#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tracefs tracefs /sys/kernel/tracing
exec </dev/console >/dev/console 2>&1
stty -echo -onlcr
echo 1 > /proc/sys/kernel/printk
read version < /proc/version
echo "@KERNEL|$version"
while read name; do insmod /mods/$name.ko || echo "@FAILED|insmod $name"; done < /mods/order
for card in /sys/class/net/*; do
    [ -e $card/device ] || continue
    ip link set ${card##*/} up
    waited=0
    while [ "`cat $card/operstate`" != up ] && [ $waited -lt 100 ]; do sleep 0.1; waited=$((waited + 1)); done
    udhcpc -i ${card##*/} -n -q -t 5 -T 2 -s /bin/true > /dev/null 2>&1 && echo "@LEASE|${card##*/}"
done
for group in /sys/kernel/iommu_groups/*; do
    read type < $group/type
    echo "@GROUP|${group##*/}|$type|`ls $group/devices | tr '\n' ' '`"
done
trace=/sys/kernel/tracing
moves() { grep -hE '^(entries|overrun)' $trace/per_cpu/cpu0/stats | tr '\n' ' '; }
while true; do
    before=`moves`
    echo "@TRACE|$before"
    sed -nE 's/^.*: (map|unmap): IOMMU: (.*)$/@\1|\2/p' $trace/trace
    sleep 0.2
    [ "`moves`" = "$before" ] && break
done
echo @READY
sleep 600
poweroff -f
"""


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
    console: str


def live_pages(console: str) -> Counter[tuple[int, int]]:
    """The pages that were mapped and not unmapped again, by the last complete trace on a console.

    Raises ``InputError`` where the trace lost events, and for an unmap of what nobody mapped.
    """
    last = console.rpartition("@TRACE|")[2]
    counts = dict(re.findall(r"(entries|overrun): (\d+)", last.partition("\n")[0]))
    if counts.get("overrun") != "0":
        raise InputError(f"the trace is not complete: {counts}")
    mapped: dict[int, list[int]] = {}
    events = 0
    for kind, text in re.findall(r"^@(map|unmap)\|(.*)$", last, re.MULTILINE):
        events += 1
        numbers = {name: int(value, 0) for name, value in re.findall(r"(\w+)=(0x[0-9a-f]+|\d+)", text)}
        size = numbers["size"] if kind == "map" else numbers["unmapped_size"]
        for offset in range(0, size, PAGE):
            pages = mapped.setdefault(numbers["iova"] + offset, [])
            if kind == "map":
                pages.append(numbers["paddr"] + offset)
            elif len(pages) != 1:
                raise InputError(f"an unmap of {numbers['iova'] + offset:#x}, which is mapped {len(pages)} times")
            else:
                pages.pop()
    if str(events) != counts.get("entries"):
        raise InputError(f"{events} events were printed of {counts}")
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
def network_guest(case: Case, suite: str = "bookworm") -> Iterator[Guest]:
    """Boot a guest whose card is up and quiet; its console has said ``READY``."""
    machine = MACHINES[case.machine]
    archive = machine.archive(suite)
    kernel = debian_kernel(archive)
    start = initramfs(busybox(archive).read_bytes(), INIT, Modules(kernel.modules).in_order(["e1000e"]))
    words = f"{CMDLINE} {case.cmdline}".strip()
    with Guest(machine, kernel.image, start, words, options=case.options, devices=DEVICES, extra=NETWORK) as guest:
        guest.wait_for(READY)
        yield guest


def mapped_guest(folder: Path, case: Case, suite: str = "bookworm") -> MappedGuest:
    """Boot a guest, stop it, and keep its memory in ``folder``, which takes as many bytes as it has."""
    with network_guest(case, suite) as guest:
        guest.stop()
        console = guest.console()
        dump = folder / "guest.elf"
        guest.dump(dump)
        release = re.search(r"@KERNEL\|Linux version (\S+).*Debian (\S+)", console)
        kernel = f"Debian {release[2]} ({release[1]})" if release else ""
        return MappedGuest(dump, guest.machine.vendor, kernel, guest.roots(), live_pages(console), console)
