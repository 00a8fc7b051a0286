"""Plugging, with a guest that is a table of what is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from iommukit.errors import HardwareLost
from iommukit_oracle.guest import plugging
from iommukit_oracle.guest.boot import MACHINES, Guest, GuestMachine
from iommukit_oracle.guest.plugging import plug, unplug
from iommukit_oracle.kernel.realisation import Placed, Plugging

PORT, CARD = "0000:00:06.0", "0000:01:00.0"
QMP = Placed("card", CARD, "c0", {"driver": "e1000e", "id": "c0", "bus": "rp"}, plugging=Plugging.QMP)
SYSFS = Placed("card", CARD, "c0", {})


@dataclass
class Toy:
    """A guest with a port and a card below it, and its own monitor.  ``done`` is all that was asked of it to change something."""

    machine: GuestMachine
    arguments: tuple[str, ...] = ()
    drivers: dict[str, str] = field(default_factory=lambda: {PORT: "pcieport", CARD: ""})
    hidden: list[str] = field(default_factory=list)
    obeys: bool = True
    done: list[str] = field(default_factory=list)

    @property
    def monitor(self) -> Toy:
        """Both in one."""
        return self

    def ask(self, command: str, *words: str, **arguments: Any) -> Any:
        """A command of the agent's or of the monitor's."""
        match command, words:
            case "list", ("/sys/bus/pci/devices",):
                return sorted(self.drivers)
            case "list", ("/sys/bus/pci/slots",):
                return ["1"] if self.drivers[PORT] else []
            case "read", _:
                return [CARD[:-2]]
            case "state", _:
                return {"functions": [{"address": address, "driver": driver} for address, driver in self.drivers.items()]}
            case "query-pci", _:
                inner = {"qdev_id": "rp", "bus": 0, "slot": 6, "function": 0, "pci_bridge": {"bus": {}, "devices": []}}
                return [{"devices": [{"qdev_id": "", "bus": 0, "slot": 0, "function": 0, "pci_bridge": {"devices": [inner]}}]}]
        self.done.append(" ".join([command, *words, *(f"{name}={value}" for name, value in arguments.items())]))
        match command, words:
            case "write", (path, ("0" | "1")) if path.endswith(("/remove", "/power")):
                self.drivers.pop(CARD if path.endswith("power") else path.split("/")[-2])
            case "write", (path, _) if path.endswith("/bind"):
                self.drivers[PORT] = "pcieport"
            case "write", (path, _) if path.endswith("/unbind"):
                self.drivers[PORT] = ""
            case "write", (path, _) if "pci_bus" in path and self.obeys:
                self.drivers.update({CARD: "", **dict.fromkeys(self.hidden, "")})
            case "device_add", _ if self.obeys and arguments["driver"] != "zpci":
                self.drivers[CARD] = ""
            case "device_del", _ if CARD not in self.drivers:
                raise ValueError("device_del: Device 'c0' not found")
        return "ok"

    def wait_for(self, event: str, **data: str) -> None:
        """QEMU has told that the guest let go."""
        self.done.append(f"{event} {data['device']}")
        self.drivers.pop(CARD)


def toy(machine: str, **more: Any) -> tuple[Toy, Guest]:
    """One guest, seen from both sides."""
    made = Toy(MACHINES[machine], **more)
    return made, cast(Guest, made)


def test_qemu_unplugs_and_plugs() -> None:
    made, guest = toy("intel")
    unplug(guest, QMP)
    assert made.done == ["device_del id=c0", "DEVICE_DELETED c0"]
    plug(guest, QMP)
    assert made.done[2:] == ["device_add driver=e1000e id=c0 bus=rp", f"write /sys/bus/pci/devices/{CARD}/rescan 1"]


def test_a_slot_of_pci_express_is_switched_off() -> None:
    made, guest = toy("arm")
    unplug(guest, QMP)
    assert made.done == ["write /sys/bus/pci/slots/1/power 0", "device_del id=c0"]


def test_a_port_without_driver_has_one_for_the_meantime() -> None:
    made, guest = toy("arm", drivers={PORT: "", CARD: ""})
    unplug(guest, QMP)
    assert made.done[0] == f"write /sys/bus/pci/drivers/pcieport/bind {PORT}"
    assert made.done[-1] == f"write /sys/bus/pci/drivers/pcieport/unbind {PORT}"
    assert made.drivers == {PORT: ""}


def test_a_port_with_another_driver_sees_nothing() -> None:
    made, guest = toy("arm", drivers={PORT: "pci-stub", CARD: ""})
    with pytest.raises(HardwareLost, match=f"the port {PORT} is driven by pci-stub, so that nobody sees what is plugged below it"):
        unplug(guest, QMP)
    assert made.done == []


@pytest.mark.parametrize("placed", [QMP, SYSFS])
def test_a_device_that_does_not_come(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugging, "PATIENCE", 0.03)
    made, guest = toy("arm", drivers={PORT: ""}, obeys=False)
    with pytest.raises(HardwareLost, match=f"{CARD} has not come for 0 s"):
        plug(guest, placed)
    assert made.drivers == {PORT: ""}


def test_a_scan_brings_back_one_device_only() -> None:
    made, guest = toy("intel", hidden=["0000:01:00.1", "0000:01:00.2"])
    unplug(guest, SYSFS)
    plug(guest, SYSFS)
    assert sorted(made.drivers) == [PORT, CARD]
    assert made.done[:2] == [f"write /sys/bus/pci/devices/{CARD}/remove 1", "write /sys/class/pci_bus/0000:01/rescan 1"]


@pytest.mark.parametrize(
    ("arguments", "numbers"), [(("zpci,uid=7,fid=0x9,target=c1", "zpci,uid=3,fid=5,target=c0"), "uid=3 fid=5"), ((), "uid=0 fid=0")]
)
def test_a_function_on_s390_comes_with_its_numbers(arguments: tuple[str, ...], numbers: str) -> None:
    made, guest = toy("s390", arguments=arguments, drivers={PORT: ""})
    plug(guest, QMP)
    assert made.done[:2] == [f"device_add driver=zpci {numbers} target=c0", "device_add driver=e1000e id=c0 bus=rp"]
