"""Real kernels with the agent: one for each architecture, each command at least once, and devices that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from iommukit.errors import HardwareLost
from iommukit_oracle.guest.boot import MACHINES, Guest
from iommukit_oracle.guest.initramfs import Modules
from iommukit_oracle.guest.kernels import debian_kernel
from iommukit_oracle.guest.plugging import plug, unplug
from iommukit_oracle.guest.uefi import WORD, uefi_firmware
from iommukit_oracle.guest.userland import initrd
from iommukit_oracle.guest.variants import WITHOUT_NP_CACHE, variant
from iommukit_oracle.hardware.qemu import Program, find
from iommukit_oracle.kernel.realisation import Placed, Plugging

from .conftest import needed

PCI = "/sys/bus/pci"
GROUPS = "/sys/kernel/iommu_groups"
DISK = ("-drive", "if=none,id=disk,file=null-co://,format=raw")
NETWORK = ("-netdev", "user,id=net,restrict=on")
PORT = "pcie-root-port,id=rp,slot=1,chassis=1,addr=6"
MODERN = {"iommu_platform": "on", "disable-legacy": "on"}


def device(properties: dict[str, str]) -> str:
    """A value of ``-device``."""
    return ",".join([properties["driver"], *(f"{name}={value}" for name, value in properties.items() if name != "driver")])


def boot(
    machine: str,
    kernel: str,
    modules: Sequence[str],
    devices: Sequence[str],
    *,
    cmdline: str = "",
    extra: Sequence[str] = (),
    program: Program | None = None,
) -> Guest:
    """A guest whose modules are loaded."""
    found = debian_kernel(kernel, MACHINES[machine].debian)
    known = Modules(*found.modules)
    start = initrd(found, MACHINES[machine].debian, [name for name in modules if name in known])
    guest = Guest(MACHINES[machine], found.image, start, cmdline, devices=devices, extra=extra, program=program)
    order = guest.ask("read", "/mods/order")
    assert guest.ask("insert", *order) == dict.fromkeys(order, "ok")
    return guest


def functions(guest: Guest) -> dict[str, Any]:
    """The functions by address."""
    return {each["address"]: each for each in guest.ask("state")["functions"]}


def comes_and_goes(guest: Guest, placed: Placed) -> None:
    """Unplug and plug a device: its group goes with it, and comes again."""
    before = functions(guest)[placed.address]
    unplug(guest, placed)
    assert placed.address not in functions(guest)
    assert not any(placed.address in group["devices"] for group in guest.ask("state")["groups"])
    plug(guest, placed)
    after = functions(guest)[placed.address]
    assert (after["id"], after["group"] != "") == (before["id"], before["group"] != "")


def test_x86_without_np_cache() -> None:
    card = {"driver": "e1000e", "id": "card", "bus": "rp"}
    with needed():
        guest = boot(
            "amd",
            "6.12",
            ("nvme", "vfio_pci", "vfio_iommu_type1", "e1000e"),
            (PORT, device(card), "nvme,drive=disk,serial=a,addr=3", "edu,addr=4"),
            extra=DISK,
            program=variant(find("x86_64"), [WITHOUT_NP_CACHE]),
        )
    with guest:
        hello = guest.ask("hello")
        assert " 6.12." in hello["release"]
        assert hello["units"][0]["name"] == "ivhd0"
        assert "0000:00:03.0" in hello["units"][0]["devices"]
        assert any("Default domain type: Translated" in line for line in guest.ask("log"))
        assert guest.ask("log") == []
        there = functions(guest)
        assert (there["0000:00:03.0"]["driver"], there["0000:00:03.0"]["class"]) == ("nvme", "010802")
        edu = there["0000:00:04.0"]
        assert (edu["id"], edu["driver"]) == ("1234:11e8", "")
        (group,) = (group for group in guest.ask("state")["groups"] if group["id"] == edu["group"])
        assert (group["type"], group["devices"]) == ("DMA-FQ", ["0000:00:04.0"])
        assert group["reserved"][0] == "0x00000000fee00000 0x00000000feefffff msi"
        kind = f"{GROUPS}/{edu['group']}/type"
        assert guest.ask("write", kind, "identity\n", "unprivileged") == "EACCES"
        assert guest.ask("write", kind, "identity\n") == "ok"
        assert guest.ask("write", kind, "nonsense" * 1000) == "EINVAL"
        assert guest.ask("read", kind) == ["identity"]
        assert guest.ask("read", f"{kind}s") == "ENOENT"
        assert edu["group"] in guest.ask("list", GROUPS)
        assert guest.ask("disk", "0000:00:03.0", "65536") == "ok"
        assert guest.ask("claim", edu["group"], "one").startswith("open group: ENOENT")
        assert guest.ask("write", f"{PCI}/drivers/vfio-pci/new_id", "1234 11e8") == "ok"
        assert guest.ask("claim", edu["group"], "one") == "ok"
        assert guest.ask("write", kind, "DMA\n") == "EPERM"
        assert guest.ask("release", edu["group"], "one") == "ok"
        assert guest.ask("release", edu["group"], "one") == "EINVAL"
        comes_and_goes(guest, Placed("card", "0000:01:00.0", "card", card, plugging=Plugging.QMP))
        comes_and_goes(guest, Placed("edu", "0000:00:04.0", "", {}))
        assert guest.ask("withdraw", "vfio_pci", "nothing") == {"vfio_pci": "ok", "nothing": "ENOENT"}
        with pytest.raises(HardwareLost, match="Kernel panic - not syncing: sysrq triggered crash"):
            guest.ask("write", "/proc/sysrq-trigger", "c")


def test_arm64_with_acpi() -> None:
    card = {"driver": "virtio-net-pci", "id": "card", "bus": "rp", "netdev": "net", **MODERN}
    with needed():
        firmware = uefi_firmware()
        guest = boot(
            "arm",
            "7.2",
            ("virtio_net", "virtio_pci"),
            (PORT, device(card)),
            cmdline=WORD,
            extra=("-bios", str(firmware), *NETWORK),
        )
    with guest:
        assert guest.ask("list", "/sys/firmware/acpi/tables/IORT") == []
        assert "IORT" in guest.ask("list", "/sys/firmware/acpi/tables")
        assert guest.ask("network", "0000:01:00.0", "4") == "ok"
        assert guest.ask("write", f"{PCI}/drivers/pcieport/unbind", "0000:00:06.0") == "ok"
        comes_and_goes(guest, Placed("card", "0000:01:00.0", "card", card, plugging=Plugging.QMP))
        assert functions(guest)["0000:00:06.0"]["driver"] == ""


def test_s390() -> None:
    card = {"driver": "virtio-net-pci", "id": "card", "netdev": "net", **MODERN}
    with needed():
        guest = boot("s390", "6.12", ("virtio_net", "virtio_pci"), ("zpci,uid=7,fid=9,target=card", device(card)), extra=NETWORK)
    with guest:
        assert guest.ask("network", "0007:00:00.0", "4") == "ok"
        comes_and_goes(guest, Placed("card", "0007:00:00.0", "card", card, plugging=Plugging.QMP))
        assert guest.ask("read", f"{PCI}/devices/0007:00:00.0/function_id") == ["0x00000009"]
