"""Devices that come and go while a guest runs.

QEMU is told to plug and to unplug, and the guest does its part: x86 by ACPI, s390 by its own events, arm64 by PCI Express.  There a
removal gives people five seconds to change their minds; so the slot is switched off in the guest first, by the file that is there
for whoever is about to pull a card, and QEMU takes the card out.  Seconds for leaving and coming, Linux 6.1 to 7.2: x86 0.05 and
0.03, s390 0.1 and 0.1, arm64 1.05 (a second until power counts as gone) and 0.15, below a switch 1.15.  By removal and rescan: 0.02
and 0.04, s390 0.1 and 0.2.

A driver that must not bind to what is plugged must not be loaded: ``/sys/bus/pci/drivers_autoprobe`` keeps drivers away in 7.2, but
6.1 and 6.12 bind each function as it is announced, whatever that file says.  A port that has to see to its slot itself (arm64) does
so while its own driver is bound: it is given that driver for the meantime.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from iommukit.errors import HardwareLost
from iommukit_oracle.guest.boot import Guest
from iommukit_oracle.kernel.realisation import Placed, Plugging

PCI = "/sys/bus/pci"
EXPRESS = ("arm_smmu",)
"""Machines whose ports see to their slots themselves."""
PORT_DRIVER = "pcieport"
PATIENCE = 20.0
"""Seconds of real time for a function to come or go."""
PAUSE = 0.01
"""Seconds between two looks."""


def unplug(guest: Guest, placed: Placed) -> None:
    """Take a device away.  Raises ``HardwareLost`` where it does not leave."""
    if placed.plugging is Plugging.SYSFS:
        _must(guest, f"{PCI}/devices/{placed.address}/remove", "1")
    else:
        with _watched(guest, placed):
            slot = _slot(guest, placed.address) if guest.machine.vendor in EXPRESS else None
            if slot:
                _must(guest, f"{PCI}/slots/{slot}/power", "0")
            _delete(guest, placed.id)
    _wait(guest, placed.address, there=False)


def plug(guest: Guest, placed: Placed) -> list[str]:
    """Put a device where it belongs.  Raises ``HardwareLost`` where it does not come up.

    Where the kernel is told to scan the bus again, others that it was told to forget are found too: those are forgotten again, and
    their addresses are the answer, as they may have left their mark on numbers of groups.
    """
    if placed.plugging is Plugging.SYSFS:
        before = set(_functions(guest))
        _must(guest, f"/sys/class/pci_bus/{placed.address.rpartition(':')[0]}/rescan", "1")
        _wait(guest, placed.address, there=True)
        found_too = sorted(set(_functions(guest)) - before - {placed.address})
        for other in found_too:
            _must(guest, f"{PCI}/devices/{other}/remove", "1")
        return found_too
    with _watched(guest, placed):
        if guest.machine.vendor == "s390":
            _add(guest, _zpci(guest, placed))
        _add(guest, placed.properties)
        _wait(guest, placed.address, there=True)
        # It is in the list before all about it is settled.  A scan of its bus waits for who put it there, and finds nothing new.
        _must(guest, f"{PCI}/devices/{placed.address}/rescan", "1")
    return []


def _functions(guest: Guest) -> list[str]:
    found: list[str] = guest.ask("list", f"{PCI}/devices")
    return found


def _wait(guest: Guest, address: str, *, there: bool) -> None:
    end = time.monotonic() + PATIENCE
    while (address in _functions(guest)) is not there:
        if time.monotonic() > end:
            raise HardwareLost(f"{address} has not {'come' if there else 'gone'} for {PATIENCE:.0f} s")
        time.sleep(PAUSE)


def _must(guest: Guest, path: str, text: str) -> None:
    result = guest.ask("write", path, text)
    if result != "ok":
        raise HardwareLost(f"the guest cannot write {text} to {path}: {result}")


def _slot(guest: Guest, address: str) -> str | None:
    """The name of the slot that a function is in, where one is known."""
    for name in guest.ask("list", f"{PCI}/slots"):
        if guest.ask("read", f"{PCI}/slots/{name}/address") == [address.partition(".")[0]]:
            return str(name)
    return None


def _add(guest: Guest, properties: Mapping[str, str]) -> None:
    try:
        guest.monitor.ask("device_add", **properties)
    except ValueError as error:
        raise HardwareLost(f"QEMU does not plug {properties.get('id', 'a device')}: {error}") from error


def _delete(guest: Guest, name: str) -> None:
    """Empty QEMU's slot, which has happened already where switching it off was enough."""
    try:
        guest.monitor.ask("device_del", id=name)
    except ValueError as error:
        if "not found" not in str(error):
            raise HardwareLost(f"QEMU does not unplug {name}: {error}") from error
    else:
        guest.monitor.wait_for("DEVICE_DELETED", device=name)


def _zpci(guest: Guest, placed: Placed) -> dict[str, str]:
    """The part of a function on s390 that leaves with it.

    As it was at boot; for a function that was not there the numbers are that of its domain.
    """
    for argument in guest.arguments:
        model, *words = argument.split(",")
        properties = dict(word.split("=", 1) for word in words if "=" in word)
        if model == "zpci" and properties.get("target") == placed.id:
            return {"driver": model, **properties}
    number = str(int(placed.address.partition(":")[0], 16))
    return {"driver": "zpci", "uid": number, "fid": number, "target": placed.id}


@contextmanager
def _watched(guest: Guest, placed: Placed) -> Iterator[None]:
    """See to it that somebody in the guest sees a card come or go."""
    port = _port(guest, placed.properties.get("bus", "")) if guest.machine.vendor in EXPRESS else None
    functions = guest.ask("state")["functions"] if port else []
    driver = next((each["driver"] for each in functions if each["address"] == port), PORT_DRIVER)
    if driver == PORT_DRIVER:
        yield
        return
    if driver:
        raise HardwareLost(f"the port {port} is driven by {driver}, so that nobody sees what is plugged below it")
    _must(guest, f"{PCI}/drivers/{PORT_DRIVER}/bind", str(port))
    try:
        yield
    finally:
        _must(guest, f"{PCI}/drivers/{PORT_DRIVER}/unbind", str(port))


def _port(guest: Guest, name: str) -> str | None:
    """The address of a port by QEMU's name for it."""
    waiting = [device for bus in guest.monitor.ask("query-pci") for device in bus["devices"]]
    while waiting:
        device = waiting.pop()
        if device["qdev_id"] == name:
            return f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']:x}"
        waiting += device.get("pci_bridge", {}).get("devices", [])
    return None
