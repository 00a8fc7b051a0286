"""Recording a trace: boot a real kernel with one disk behind the IOMMU, read from it, and keep what the IOMMU API was asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iommukit.errors import InputError
from iommukit_oracle.guest.boot import MACHINES, Guest, GuestMachine
from iommukit_oracle.guest.kernels import GuestKernel
from iommukit_oracle.guest.tracing import CMDLINE, STATS, quiet_trace
from iommukit_oracle.guest.userland import initrd
from iommukit_oracle.trace_summary import summed_up
from iommukit_oracle.traces import Phase, Trace, TraceDevice, TraceGroup, TraceHeader, Work, from_kernel

LIMIT = 16 << 20
"""Bytes that are read at most, and the disk's size: the kernel's buffer has room for some ten thousand events."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of QEMU: its name in a trace, the value of ``-device``, the PCI class it has, and the modules with its driver."""

    kind: Literal["disk", "nvme"]
    argument: str
    class_code: str
    modules: Sequence[str]


DISKS: Mapping[str, Disk] = {
    "nvme": Disk("nvme", "nvme,serial=iommukit", "010802", ("nvme",)),
    "virtio": Disk("disk", "virtio-blk-pci,iommu_platform=on,disable-legacy=on", "010000", ("virtio_pci", "virtio_blk")),
}
MORE: Mapping[str, str] = {"intel_vtd": "intel_iommu=on"}
"""What a vendor's IOMMU needs on the command line."""


def machine_for(vendor: str) -> GuestMachine:
    """QEMU's machine with a vendor's IOMMU.  Raises ``InputError``."""
    known = {machine.vendor: machine for machine in MACHINES.values()}
    if vendor not in known:
        raise InputError(f"no machine of QEMU has the IOMMU of {vendor!r}; there are {', '.join(known)}")
    return known[vendor]


def record_trace(kernel: GuestKernel, vendor: str, device: str, size: int, cmdline: str = "") -> Trace:
    """Boot, read ``size`` bytes, and keep the trace since the boot.

    Raises ``InputError`` where that cannot be had, with the reason: no such disk, no trace on this kernel, events lost.
    """
    machine, disk = machine_for(vendor), DISKS[device]
    zpci = machine.debian == "s390x"
    if zpci and device != "virtio":
        raise InputError(f"on s390 QEMU's only disk on PCI is virtio, not {device}")
    if not 0 < size <= LIMIT:
        raise InputError(f"a trace reads between 1 byte and {LIMIT >> 20} MiB, not {size} bytes")
    argument = f"{disk.argument},id=disk,drive=store"
    devices = ("zpci,uid=1,fid=1,target=disk", argument) if zpci else (f"{argument},addr=4",)
    extra = ("-blockdev", f"null-co,node-name=store,size={LIMIT},read-zeroes=on")
    words = " ".join(word for word in (CMDLINE, MORE.get(vendor, ""), cmdline) if word)
    start = initrd(kernel, machine.debian, disk.modules)
    with Guest(machine, kernel.image, start, words, devices=devices, extra=extra) as guest:
        counts = {"boot": _entries(guest)}
        inserted = guest.ask("insert", *guest.ask("read", "/mods/order"))
        if failed := {name: said for name, said in inserted.items() if said != "ok"}:
            raise InputError(f"the guest could not load {failed}")
        counts["probe"] = _entries(guest)
        state = guest.ask("state")
        found = next((each for each in state["functions"] if each["class"] == disk.class_code), None)
        if found is None or not found["driver"]:
            raise InputError(f"no driver of {kernel.package} took the {device} disk")
        if found["group"] == "":
            raise InputError(f"{found['address']} is in no group: {kernel.package} does not use the IOMMU of {vendor}")
        said = guest.ask("disk", found["address"], str(size))
        if said != "ok":
            raise InputError(f"the {device} disk could not be read: {said}")
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
            work=Work(kind=disk.kind, device=found["address"], amount=size, result=said),
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
            f"{kernel.package} traced no map for the {device} disk, whose group has the type {kind or '(none)'}: "
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
