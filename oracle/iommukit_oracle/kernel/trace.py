"""Recording a trace: boot a real kernel with one device behind the IOMMU, have it work, keep what the IOMMU API was asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iommukit.errors import HardwareLost, InputError
from iommukit_oracle.guest.boot import BY_VENDOR, MACHINES, Guest, GuestMachine
from iommukit_oracle.guest.kernels import GuestKernel
from iommukit_oracle.guest.tracing import CMDLINE, STATS, quiet_trace
from iommukit_oracle.guest.userland import initrd
from iommukit_oracle.trace_summary import summed_up
from iommukit_oracle.traces import Phase, Trace, TraceDevice, TraceGroup, TraceHeader, Work, from_kernel

LIMIT = 16 << 20
"""Bytes that are read at most, and the disk's size: the kernel's buffer has room for some ten thousand events."""


SECONDS = 10
"""For a card to get an answer; a link that comes up takes two or three."""

Kind = Literal["disk", "nvme", "nic"]


@dataclass(frozen=True, slots=True)
class Worker:
    """A device of QEMU that can be put to work: the value of ``-device``, its PCI class, the modules with its driver."""

    argument: str
    class_code: str
    modules: Sequence[str]


_VIRTIO = "iommu_platform=on,disable-legacy=on"
WORKERS: Mapping[Kind, Worker] = {
    "disk": Worker(f"virtio-blk-pci,drive=store,{_VIRTIO}", "010000", ("virtio_pci", "virtio_blk")),
    "nvme": Worker("nvme,drive=store,serial=iommukit", "010802", ("nvme",)),
    "nic": Worker("e1000e,netdev=net,mac=52:54:00:00:00:01,romfile=", "020000", ("e1000e",)),
}
"""A virtio disk, an NVMe disk, a network card."""
WORKERS_ON_S390: Mapping[Kind, Worker] = {
    "disk": WORKERS["disk"],
    "nic": Worker(f"virtio-net-pci,netdev=net,{_VIRTIO},romfile=", "020000", ("virtio_pci", "virtio_net")),
}
"""QEMU has only virtio there."""
BACKENDS: Mapping[Kind, Sequence[str]] = {
    "disk": ("-blockdev", f"null-co,node-name=store,size={LIMIT},read-zeroes=on"),
    "nvme": ("-blockdev", f"null-co,node-name=store,size={LIMIT},read-zeroes=on"),
    "nic": ("-netdev", "user,id=net,restrict=on"),
}
MORE: Mapping[str, str] = {"intel_vtd": "intel_iommu=on"}
"""What a vendor's IOMMU needs on the command line."""


def machine_for(vendor: str) -> GuestMachine:
    """QEMU's machine with a vendor's IOMMU.  Raises ``InputError``."""
    if vendor not in BY_VENDOR:
        raise InputError(f"no machine of QEMU has the IOMMU of {vendor!r}; there are {', '.join(BY_VENDOR)}")
    return MACHINES[BY_VENDOR[vendor]]


def record_trace(kernel: GuestKernel, vendor: str, device: Kind, size: int, cmdline: str = "") -> Trace:
    """Boot, read ``size`` bytes of a disk or have a card ask the network, and keep the trace since the boot.

    Raises ``InputError`` where that cannot be had, with the reason: no such device, no trace on this kernel, events lost;
    ``HardwareLost`` where the guest does not survive, or where its device does not work.
    """
    machine = machine_for(vendor)
    zpci = machine.debian == "s390x"
    worker = (WORKERS_ON_S390 if zpci else WORKERS).get(device)
    if worker is None:
        raise InputError(f"QEMU has no {device} for s390; there are {', '.join(WORKERS_ON_S390)}")
    if not 0 < size <= LIMIT:
        raise InputError(f"a trace reads between 1 byte and {LIMIT >> 20} MiB, not {size} bytes")
    argument = f"{worker.argument},id={device}"
    devices = (f"zpci,uid=1,fid=1,target={device}", argument) if zpci else (f"{argument},addr=4",)
    command, amount = ("network", SECONDS) if device == "nic" else ("disk", size)
    words = " ".join(word for word in (CMDLINE, MORE.get(vendor, ""), cmdline) if word)
    start = initrd(kernel, machine.debian, worker.modules)
    with Guest(machine, kernel.image, start, words, devices=devices, extra=BACKENDS[device]) as guest:
        counts = {"boot": _entries(guest)}
        guest.load_modules()
        counts["probe"] = _entries(guest)
        state = guest.ask("state")
        found = next((each for each in state["functions"] if each["class"] == worker.class_code), None)
        if found is None or not found["driver"]:
            raise HardwareLost(f"no driver of {kernel.package} took the {device}")
        if found["group"] == "":
            raise InputError(f"{found['address']} is in no group: {kernel.package} does not use the IOMMU of {vendor}")
        said = guest.ask(command, found["address"], str(amount))
        if said != "ok":
            raise HardwareLost(f"the {device} does not work: {said}")
        counts["work"] = _entries(guest)
        hello = guest.ask("hello")
        events = from_kernel(quiet_trace(guest))
        counts["rest"] = len(events)
        state = guest.ask("state")
        header = TraceHeader(
            kernel=kernel.name,
            package=kernel.package,
            uname=hello["release"],
            qemu=guest.program.release,
            vendor=vendor,
            arch=machine.arch,
            cmdline=hello["cmdline"],
            qemu_args=shlex.join(guest.arguments),
            page_size=4096,
            resolution_ns=1000,
            work=Work(kind=device, device=found["address"], amount=amount, result=said),
            devices=tuple(_device(each) for each in state["functions"]),
            groups=tuple(_group(each) for each in state["groups"]),
            phases=tuple(
                Phase(name=name, events=count - before)
                for (name, count), before in zip(counts.items(), (0, *counts.values()), strict=False)
            ),
        )
    trace = Trace(header, events)
    if not summed_up(trace, "the kernel's trace").maps:
        kind = next(group.type for group in header.groups if group.id == int(found["group"]))
        raise InputError(
            f"{kernel.package} traced no map for the {device}, whose group has the type {kind or '(none)'}: "
            "an identity domain maps nothing, and s390 before 6.7 does not map through the IOMMU API"
        )
    return trace


def _entries(guest: Guest) -> int:
    """How many events the guest has had."""
    return next(int(line.split()[1]) for line in guest.ask("read", STATS) if line.startswith("entries:"))


def _device(function: Mapping[str, Any]) -> TraceDevice:
    return TraceDevice.model_validate(
        {
            **{name: function[name] for name in ("address", "id", "class", "driver")},
            "group": int(function["group"]) if function["group"] else None,
        }
    )


def _group(group: Mapping[str, Any]) -> TraceGroup:
    return TraceGroup(id=int(group["id"]), type=group["type"], regions=tuple(tuple(line.split()) for line in group["reserved"]))
