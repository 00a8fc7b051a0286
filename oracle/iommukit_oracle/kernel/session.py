"""A booted guest in which scenarios are played: its state by the machine file's names, its set-up, and the way back to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from iommukit.errors import HardwareLost
from iommukit.machine.model import BootSpec, Machine
from iommukit_oracle.guest.boot import MACHINES, Guest
from iommukit_oracle.guest.initramfs import Modules, archive
from iommukit_oracle.guest.kernels import GuestKernel
from iommukit_oracle.guest.uefi import uefi_firmware
from iommukit_oracle.guest.userland import initrd
from iommukit_oracle.guest.variants import WITHOUT_NP_CACHE, numbered, variant
from iommukit_oracle.hardware.qemu import find
from iommukit_oracle.kernel.firmware import external_ports, from_lines, with_regions
from iommukit_oracle.kernel.realisation import NO_NP_CACHE, UEFI, Placed, Realisation
from iommukit_oracle.kernel.record import GroupRecord, SetUpRecord, StateRecord
from iommukit_oracle.recording import GroupEntry, IommuEntry, PciEntry

PCI = "/sys/bus/pci"
GROUPS = "/sys/kernel/iommu_groups"
TRACING = "/sys/kernel/tracing"
ATTACHED = "attach_device_to_domain"
"""The tracepoint of an attachment (``include/trace/events/iommu.h``)."""

MODULES: Mapping[str, tuple[str, ...]] = {
    "e1000e": ("e1000e",),
    "nvme": ("nvme",),
    "virtio-pci": ("virtio_pci", "virtio_net", "virtio_blk", "virtio_rng"),
    "vfio-pci": ("vfio_pci", "vfio_iommu_type1"),
    "pci-stub": ("pci_stub",),
    "xhci_hcd": ("xhci_pci",),
}
"""By driver: the modules that guests load for it; a kernel for s390 lacks some of them."""
ACS_ON = "29"
"""SV, RR, CR and UF of the access control register (PCIe 7.7.11.3)."""
IOMMU_CLASS = "0806"
"""Of an IOMMU that is a function itself."""
STAY = ("vfio", "pci_stub", "irqbypass")
"""Modules that are never unloaded, by the beginning of their names."""
STUB = "pci-stub"
"""A driver that takes any device and does nothing."""

ABOUT_DMA = re.compile(
    r"iommu|DMAR|AMD-Vi|IVRS|smmu|passthrough|pgtbl|untrusted|zpci|PCI-DMA|software IO TLB|Firmware Bug|StreamID|"
    r"default domain|cannot be in|DMA API|DMA bounce|Firmware has requested|^WARNING",
    re.IGNORECASE,
)
"""The kernel's lines that are kept."""
_COMMAND_LINE = re.compile(r"^(Kernel command|Command) line:")


def about_dma(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines about DMA protection, as printed."""
    return tuple(line for entry in lines for line in entry.split("\n") if ABOUT_DMA.search(line) and not _COMMAND_LINE.search(line))


@lru_cache(maxsize=32)
def start_archive(kernel: GuestKernel, arch: str) -> tuple[bytes, Mapping[str, tuple[str, ...]]]:
    """What guests of a kernel start from, and the modules that are in it by the driver that needs them, in order."""
    known = Modules(*kernel.modules)
    modules = {driver: tuple(known.in_order(name for name in names if name in known)) for driver, names in MODULES.items()}
    return initrd(kernel, arch, tuple(dict.fromkeys(chain.from_iterable(modules.values())))), modules


class Session:
    """A guest that has booted and been set up as its machine file says.  A context manager.

    Raises ``HardwareLost`` where the kernel does not survive what is asked of it.
    """

    def __init__(self, realisation: Realisation, machine: Machine, boot: BootSpec, kernel: GuestKernel) -> None:
        self.realisation = realisation
        self.machine = machine
        self.kernel = kernel.name
        self.guest = boot_guest(realisation, kernel)
        try:
            self._begin(boot, kernel)
        except BaseException:
            self.close()
            raise

    def _begin(self, boot: BootSpec, kernel: GuestKernel) -> None:
        guest = self.guest
        hello = guest.ask("hello")
        self.uname = " ".join(hello["release"].split())
        self.units = tuple(
            IommuEntry(
                name=unit["name"],
                devices=unit["devices"],
                attrs=" ".join(f"{name}={value}" for name, value in unit["registers"].items()),
            )
            for unit in hello["units"]
        )
        self.log = about_dma(guest.ask("log"))
        seen = guest.ask("state")
        self.groups = tuple(_group_entry(group, seen["functions"]) for group in seen["groups"])
        self.functions = tuple(PciEntry.model_validate(_function(each)) for each in seen["functions"])
        guest.ask("write", f"{PCI}/drivers_autoprobe", "0")
        self.modules = start_archive(kernel, guest.machine.debian)[1]
        self.inserted: dict[str, None] = {}
        guest.ask("write", f"{TRACING}/events/iommu/{ATTACHED}/enable", "1")
        self.meets_at_bind = bool(self.units) and any(
            not each["group"] for each in seen["functions"] if not each["class"].startswith(IOMMU_CLASS)
        )
        """Whether devices meet their IOMMU only when a driver is bound: some had no group when the kernel had booted."""
        self.drivers_loaded = boot.drivers == "loaded"
        self.set_up = tuple(self._set_up())
        self.start = self.state()
        self.regions = self._regions()

    def close(self) -> None:
        """End the guest."""
        self.guest.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what is there -----------------------------------------------------------------------------------------------

    def placed(self, name: str) -> Placed:
        """Where a device of the machine file is."""
        return self.realisation.placed[name]

    def look(self) -> dict[str, dict[str, Any]]:
        """The functions that are there, by address."""
        return {each["address"]: each for each in self.guest.ask("state")["functions"]}

    def state(self) -> StateRecord:
        """The groups and types of the machine's devices."""
        seen = self.guest.ask("state")
        present = {each["address"] for each in seen["functions"]}
        names = {placed.address: name for name, placed in self.realisation.placed.items() if placed.address in present}
        types = dict.fromkeys(names.values(), "none")
        groups = []
        for group in seen["groups"]:
            members = tuple(names.get(address, address) for address in group["devices"])
            if any(member in types for member in members):
                groups.append(GroupRecord(id=int(group["id"]), type=group["type"], devices=members))
                types.update({member: group["type"] for member in members if member in types})
        return StateRecord(groups=tuple(groups), types=types)

    def _regions(self) -> dict[str, tuple[str, ...]]:
        regions = {int(group["id"]): tuple(group["reserved"]) for group in self.guest.ask("state")["groups"]}
        return {name: regions[number] for name, number in self.start.members.items()}

    def new_lines(self) -> tuple[str, ...]:
        """The kernel's lines about DMA protection since the last call."""
        return about_dma(self.guest.ask("log"))

    def attachments(self) -> int:
        """How many attachments the kernel has told of so far."""
        lines = self.guest.ask("read", f"{TRACING}/trace")
        return sum(f" {ATTACHED}: " in line for line in lines)

    # ---- drivers -----------------------------------------------------------------------------------------------------

    def insert_driver(self, driver: str) -> None:
        """Load a driver, which the kernel would bind to whatever is found from now on."""
        missing = [name for name in self.modules.get(driver, ()) if name not in self.inserted]
        if missing:
            self.guest.ask("insert", *missing)
            self.inserted.update(dict.fromkeys(missing))

    def withdraw_drivers(self) -> None:
        """Unload the drivers that no device has, so that a device that comes is bound to none.

        Those of VFIO and the stub bind only where they are told to; one of VFIO's in use would be missed.
        """
        used = {each["driver"].replace("-", "_") for each in self.look().values()}
        idle = [name for name in reversed(self.inserted) if name not in used and not name.startswith(STAY)]
        if idle:
            self.guest.ask("withdraw", *idle)
            self.inserted = {name: None for name in self.inserted if name not in idle}

    def bind(self, address: str, driver: str) -> str:
        """Bind a driver, by its own will or by force; ``ok`` or the error's name."""
        self.insert_driver(driver)
        override = f"{PCI}/devices/{address}/driver_override"
        result = self.guest.ask("write", override, driver)
        if result != "ok":
            return str(result)
        result = self.guest.ask("write", f"{PCI}/drivers/{driver}/bind", address)
        self.guest.ask("write", override, "\n")
        return str(result)

    def unbind(self, address: str, driver: str) -> str:
        """Unbind a driver from a device; ``ok`` or the error's name.  One that is not loaded could not even refuse."""
        self.insert_driver(driver)
        return str(self.guest.ask("write", f"{PCI}/drivers/{driver}/unbind", address))

    def driver_of(self, name: str) -> str:
        """The driver that is bound to a device, or nothing."""
        found = self.look().get(self.placed(name).address)
        return found["driver"] if found else ""

    def _set_up(self) -> Iterable[SetUpRecord]:
        """Switch access control on where the machine file has it on, and give the devices the drivers that they have at boot.

        Where a device meets its IOMMU when a driver is bound, and drivers are loaded, each has been bound once.
        """
        for address in self.realisation.acs:
            if self.guest.ask("acs", address, ACS_ON) == "changed":
                yield SetUpRecord(op="acs", device=address, driver="")
        there = self.look()
        for device in self.machine.devices:
            placed = self.realisation.placed.get(device.name)
            found = there.get(placed.address) if placed is not None else None
            if placed is None or found is None:
                continue
            wanted = guest_driver(placed, device.driver) if device.driver else ""
            bound = found["driver"]
            if bound and bound != wanted:
                self.unbind(placed.address, bound)
                yield SetUpRecord(op="unbind", device=placed.address, driver=bound)
                bound = ""
            if wanted and bound != wanted:
                self._must_bind(placed, wanted)
                yield SetUpRecord(op="bind", device=placed.address, driver=wanted)
            elif not (bound or found["group"]) and self.drivers_loaded and self.units:
                self._must_bind(placed, STUB)
                yield SetUpRecord(op="bind", device=placed.address, driver=STUB)
                self.unbind(placed.address, STUB)
                yield SetUpRecord(op="unbind", device=placed.address, driver=STUB)

    def _must_bind(self, placed: Placed, driver: str) -> None:
        result = self.bind(placed.address, driver)
        if result != "ok":
            raise HardwareLost(f"the guest cannot bind {driver} to {placed.address} ({placed.name}): {result}")

    # ---- the way back ------------------------------------------------------------------------------------------------

    def restore(self) -> bool:
        """Bring the machine's devices back to where they were when the session began; whether that has worked.

        They are removed from the kernel, which forgets their groups, and found again.
        """
        there = self.look()
        devices = [
            self.realisation.placed[device.name] for device in self.machine.devices if device.name in self.realisation.placed
        ]
        for placed in devices:
            if placed.address in there and there[placed.address]["driver"]:
                self.unbind(placed.address, there[placed.address]["driver"])
        for placed in reversed(devices):
            self.guest.ask("write", f"{PCI}/devices/{placed.address}/remove", "1")
        self.withdraw_drivers()
        self.guest.ask("write", f"{PCI}/rescan", "1")
        list(self._set_up())
        self.new_lines()
        now = self.state()
        return now.types == self.start.types and partition(now) == partition(self.start)


def partition(state: StateRecord) -> set[frozenset[str]]:
    """Who shares a group."""
    return {frozenset(group.devices) for group in state.groups}


def guest_driver(placed: Placed, wanted: str) -> str | None:
    """The guest's driver that stands for one that a scenario names: drivers that leave DMA to others are themselves."""
    if wanted in MANAGE_THEMSELVES:
        return wanted
    return placed.driver


MANAGE_THEMSELVES = frozenset({"vfio-pci", "pci-stub", "pcieport"})
"""Drivers that any device can have, and that manage DMA themselves or do none."""


def boot_guest(realisation: Realisation, kernel: GuestKernel) -> Guest:
    """Boot what was realised.  Raises ``InputError`` where the QEMU or the firmware that it needs is not to be had."""
    if not (realisation.regions or realisation.opt_in):
        return _boot(realisation, kernel, {})
    signature = TABLE_OF[realisation.vendor]
    # QEMU's own table depends on its devices, so it is read in the same machine, once.
    made = (realisation.machine, realisation.memory, realisation.options, realisation.devices, realisation.qemu)
    if made not in _TABLES:
        with _boot(realisation, kernel, {}) as guest:
            _TABLES[made] = from_lines(guest.ask("read", f"/sys/firmware/acpi/tables/{signature}"))
    own = _TABLES[made]
    table = with_regions(signature, own, realisation.regions, opt_in=realisation.opt_in)
    name = f"{signature.lower()}{'-optin' if realisation.opt_in else ''}.aml"
    return _boot(realisation, kernel, {f"{TABLES}/{name}": table})


def _boot(realisation: Realisation, kernel: GuestKernel, tables: dict[str, bytes]) -> Guest:
    machine = MACHINES[realisation.machine]
    start, _ = start_archive(kernel, machine.debian)
    if tables:
        # The kernel looks for tables in the first archive only (CONFIG_ACPI_TABLE_UPGRADE).
        start = archive(tables) + start
    program = find(machine.arch)
    extra = realisation.extra
    if realisation.external:
        extra = (*extra, "-acpitable", f"file={external_ports(realisation.external)}")
    if realisation.qemu == UEFI:
        extra = (*extra, "-bios", str(uefi_firmware()))
    changes = [numbered(model, numbers) for model, numbers in realisation.numbers]
    if realisation.qemu == NO_NP_CACHE:
        changes.append(WITHOUT_NP_CACHE)
    return Guest(
        machine,
        kernel.image,
        start,
        realisation.cmdline,
        memory=realisation.memory,
        options=realisation.options,
        devices=realisation.devices,
        extra=extra,
        program=variant(program, changes),
    )


_TABLES: dict[tuple[object, ...], bytes] = {}
"""QEMU's own tables, by what they depend on."""
TABLES = "kernel/firmware/acpi"
"""Where the kernel looks for tables; it prints their names, from which the wish for protection is told (``qemu_machine``)."""
TABLE_OF = {"intel_vtd": "DMAR", "amd_vi": "IVRS"}


def _group_entry(group: dict[str, Any], functions: Sequence[dict[str, Any]]) -> GroupEntry:
    drivers = {each["address"]: each["driver"] for each in functions if each["driver"]}
    return GroupEntry(
        id=int(group["id"]),
        type=group["type"],
        devices=group["devices"],
        drivers=",".join(f"{address}={drivers[address]}" for address in group["devices"] if address in drivers),
        reserved=tuple("-".join(line.split()) for line in group["reserved"]),
    )


def _function(each: dict[str, Any]) -> dict[str, str]:
    """As recordings have it."""
    return {
        "bdf": each["address"],
        "id": each["id"],
        "class": f"0x{each['class']}",
        "driver": each["driver"],
        "group": each["group"],
        "removable": each.get("removable", ""),
    }
