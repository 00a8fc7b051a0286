"""The steps of a scenario, carried out in a guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from iommukit.scenario.model import Step
from iommukit.scenario.result import UNDECIDED
from iommukit_oracle.guest.plugging import plug, unplug
from iommukit_oracle.kernel.record import StepRecord
from iommukit_oracle.kernel.session import GROUPS, STUB, Session, guest_driver

VFIO = "vfio-pci"
VFIO_ATTACHES = frozenset({"claim", "release"})
"""Steps in which VFIO attaches a domain of its own besides: what the core does cannot be counted."""
PATIENCE = "4"
"""Seconds in which a network card has to hear an answer."""


class Done(NamedTuple):
    """What came of an operation; ``value`` are the lines that were read.

    ``stops`` says that the scenario cannot go on: the step was not carried out, so that what follows would tell nothing.
    """

    result: str
    reason: str = ""
    value: tuple[str, ...] | None = None
    stops: bool = False


def undecided(reason: str, *, stops: bool = False) -> Done:
    """What cannot be carried out or seen."""
    return Done(UNDECIDED, reason, stops=stops)


class Player:
    """Plays one scenario's steps in a session; what it did beside them is undone with the step that asked for it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.guest = session.guest
        self.last_group: dict[str, int] = dict(session.start.members)
        """Which group each device was in, so that a step can address it after the device has gone."""
        self.owners: dict[tuple[int, str], list[str]] = {}
        """By group and owner: the addresses that were bound to VFIO's driver for it."""
        self.before = session.start
        self._attachments = session.attachments()

    def play(self, step: Step) -> tuple[StepRecord, bool]:
        """Carry out one step; whether the scenario can go on.  Raises ``HardwareLost`` where the guest does not survive it."""
        done = OPERATIONS[step.op](self, step.arguments)
        state = self.session.state()
        self.last_group.update(state.members)
        counted = self.session.attachments()
        before, self.before = self.before, state
        attached, self._attachments = counted - self._attachments, counted
        record = StepRecord(
            op=step.op,
            result=done.result,
            reason=done.reason,
            log=self.session.new_lines(),
            value=done.value,
            attaches=None if step.op in VFIO_ATTACHES else attached,
            state=None if state == before else state,
        )
        return record, not done.stops

    def group(self, name: str) -> int | Done:
        """The number of a device's group, also of one that has left."""
        number = self.before.members.get(name, self.last_group.get(name))
        if number is None:
            return Done("ENOENT", f"{name} is in no group")
        if number not in {group.id for group in self.before.groups}:
            return Done("ENODEV", f"{name}'s group has gone with its last device")
        return number

    @property
    def owned(self) -> set[int]:
        """The groups that somebody owns."""
        return {group for group, _ in self.owners}

    def close(self) -> None:
        """Give back what owners still hold."""
        for group, owner in list(self.owners):
            self.give_back(group, owner)

    def give_back(self, group: int, owner: str) -> str:
        """Let go of a group, and of what was bound for its owner; ``ok`` or the error's name."""
        result = str(self.guest.ask("release", str(group), owner))
        for address in self.owners.pop((group, owner), []):
            self.session.unbind(address, VFIO)
        return result


def _bind(player: Player, arguments: Any) -> Done:
    placed = player.session.placed(arguments.device)
    wanted = STUB if arguments.driver_managed_dma else arguments.driver
    driver = guest_driver(placed, wanted)
    if driver is None:
        return undecided(f"no driver of Linux takes QEMU's {placed.properties.get('driver', 'device')}", stops=True)
    if placed.address not in player.session.look():
        return Done("ENODEV", f"{arguments.device} is not there")
    for bound in player.owners.values():
        if driver == VFIO and placed.address in bound:
            bound.remove(placed.address)
            return Done("ok", "it was bound when the group was claimed")
    note = "" if driver == arguments.driver else f"{driver} for {arguments.driver}"
    return Done(player.session.bind(placed.address, driver), note)


def _unbind(player: Player, arguments: Any) -> Done:
    """Unbind what is bound, else the driver that could be: that is refused."""
    placed = player.session.placed(arguments.device)
    return Done(player.session.unbind(placed.address, player.session.driver_of(arguments.device) or placed.driver or STUB))


def _write(player: Player, arguments: Any) -> Done:
    group = player.group(arguments.group_of)
    if isinstance(group, Done):
        return group
    text = arguments.type if arguments.type.endswith("\n") else arguments.type + "\n"
    rights = () if arguments.privileged else ("unprivileged",)
    result = str(player.guest.ask("write", f"{GROUPS}/{group}/type", text, *rights))
    # A strict queue becomes a lazy one under a driver: there the driver is not looked at.
    live = arguments.type.strip() == "DMA-FQ" and player.before.types.get(arguments.group_of) == "DMA"
    if player.session.kernel == "6.1" and group in player.owned and not live and result == "EBUSY":
        return undecided("6.1 looks at the driver, which VFIO needs, before it looks at the owner", stops=True)
    return Done(result)


def _claim(player: Player, arguments: Any) -> Done:
    """VFIO opens a group that has a device bound to one of its drivers: where none is, one is bound for as long as it is owned."""
    group = player.group(arguments.group_of)
    if isinstance(group, Done):
        return group
    members = [each for each in player.session.look().values() if each["group"] == str(group)]
    mine: list[str] = []
    if group not in player.owned and not any(each["driver"] == VFIO for each in members):
        for each in members:
            if not each["driver"] and not each["class"].startswith("0604") and player.session.bind(each["address"], VFIO) == "ok":
                mine.append(each["address"])
                break
        if not mine:
            return undecided(
                "VFIO opens a group only by a device that is bound to its driver, and none of this one can be", stops=True
            )
    result = str(player.guest.ask("claim", str(group), arguments.owner))
    where, colon, error = result.rpartition(": ")
    if result != "ok":
        for address in mine:
            player.session.unbind(address, VFIO)
        if group in player.owned:
            return undecided("VFIO opens a group once, so the core is not asked for a second owner")
        if colon:
            return undecided(f"VFIO could not {where}: {error}", stops=True)
        return Done(error)
    player.owners[group, arguments.owner] = mine
    return Done("ok", f"{VFIO} was bound for it" if mine else "")


def _release(player: Player, arguments: Any) -> Done:
    group = player.group(arguments.group_of)
    if isinstance(group, Done):
        return group
    if (group, arguments.owner) not in player.owners:
        return Done("EINVAL", f"{arguments.owner} does not own the group")
    return Done(player.give_back(group, arguments.owner))


def _remove(player: Player, arguments: Any) -> Done:
    placed = player.session.placed(arguments.device)
    if placed.address not in player.session.look():
        return Done("ENODEV", f"{arguments.device} is not there")
    unplug(player.guest, placed)
    return Done("ok")


def _add(player: Player, arguments: Any) -> Done:
    """A driver that the kernel has bound by itself is unbound: scenarios say when one is bound."""
    placed = player.session.placed(arguments.device)
    if placed.address in player.session.look():
        return Done("EEXIST", f"{arguments.device} is there")
    player.session.withdraw_drivers()
    if plug(player.guest, placed):
        return undecided("a scan of the bus finds all devices that the kernel was told to forget, not one alone", stops=True)
    driver = player.session.driver_of(arguments.device)
    if driver:
        player.session.unbind(placed.address, driver)
    if player.session.meets_at_bind and player.session.look()[placed.address]["group"]:
        return undecided("a driver that is built in tries to bind at once, and a device meets its IOMMU then", stops=True)
    return Done("ok")


def _dma(player: Player, arguments: Any) -> Done:
    """Let the device's driver do some work; one is bound for it where none is."""
    placed = player.session.placed(arguments.device)
    found = player.session.look().get(placed.address)
    if found is None:
        return Done("ENODEV", f"{arguments.device} is not there")
    if not placed.work:
        return undecided(f"no work is known for QEMU's {placed.properties.get('driver', 'device')}")
    if player.session.realisation.machine == "amd" and not placed.address.startswith("0000:00:"):
        return undecided("QEMU's AMD IOMMU does not translate for devices behind a port")
    assert placed.driver is not None
    bound = found["driver"]
    if bound != placed.driver and (bound or player.session.bind(placed.address, placed.driver) != "ok"):
        return undecided(f"its driver {placed.driver} cannot be bound")
    words = (PATIENCE,) if placed.work == "network" else ("65536",)
    result = str(player.guest.ask(placed.work, placed.address, *words))
    if not bound:
        player.session.unbind(placed.address, placed.driver)
    note = f"{placed.driver} at work: {result}"
    return Done("ok" if result == "ok" else "EIO", note)


def _read(player: Player, arguments: Any) -> Done:
    group = player.group(arguments.group_of)
    if isinstance(group, Done):
        return group
    answer = player.guest.ask("read", f"{GROUPS}/{group}/{arguments.file}")
    return Done("ok", value=tuple(answer)) if isinstance(answer, list) else Done(answer)


def _inject(player: Player, arguments: Any) -> Done:
    return undecided("a kernel as it is built cannot be made to fail", stops=True)


OPERATIONS: dict[str, Callable[[Player, Any], Done]] = {
    "bind": _bind,
    "unbind": _unbind,
    "write": _write,
    "claim": _claim,
    "release": _release,
    "remove": _remove,
    "add": _add,
    "dma": _dma,
    "read": _read,
    "inject": _inject,
}
