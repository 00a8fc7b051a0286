"""The guest of the recordings, played by the model: the same scripts, the same lists.

A recording made here has its order known, so that ``timeline`` can be held against scripts that interleave in every way.
"""

from __future__ import annotations

from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.executor import Run
from iommukit.scenario.model import Scenario, Step
from iommukit.scenario.result import StepResult
from iommukit_oracle.events import ERRNO
from iommukit_oracle.logs import NOT_MODELLED
from iommukit_oracle.qemu_machine import binds_at_boot, boot_of, machine_of, profile_of
from iommukit_oracle.recording import Recording
from iommukit_oracle.replay import written_text

TEXT = {"ok": "ok", **{name: text for text, name in reversed(ERRNO.items())}}
MODELS = {"nvme": "1b36:0010", "e1000e": "8086:10d3", "virtio-pci": "1af4:"}


class Guest:
    """A guest on the machine of a recorded boot, under a command line of one's own."""

    def __init__(self, template: Recording, cmdline: str, registry) -> None:
        # What may be plugged in later must be in the machine, so it is said beforehand.
        plug = {"cmd": "device_add", "args": {"driver": "nvme"}}
        later = ["@HP|0000:02:00.0|present", "@HP|0000:01:00.0|present"]
        plugged = {"qmp": [plug, plug], "events": later}
        made_on = Recording.model_validate({**template.model_dump(by_alias=True), "cmdline": cmdline, **plugged})
        machine = machine_of(made_on)
        scenario = Scenario(scenario="played", machine=machine, vendor=template.vendor, boot=boot_of(made_on))
        self.run = Run(scenario, get_kernel(profile_of(template)), registry.get(template.vendor), registry)
        self.system = self.run.system
        self.loaded = {driver for entry in template.functions if (driver := entry.driver)}
        self.noted: list[str] = []
        self.data = {
            **template.model_dump(by_alias=True),
            "id": f"played-{template.id}",
            "cmdline": cmdline,
            "policy_log": [],
            "iommu_log": self._boot(template),
            "pci": [entry.model_dump(by_alias=True) for entry in template.functions],
            "groups": self.groups(),
            "writes": [],
            "events": [],
            "snapshots": {},
            "qmp": [],
        }

    def _boot(self, template: Recording) -> list[str]:
        """The log: what the model does not print as recorded, then what it does."""
        others = [line for line in template.iommu_log if any(pattern.search(line) for pattern, _ in NOT_MODELLED)]
        log = [line for line in others if "Adding" not in line and line not in self.system.boot.log] + self.system.boot.log
        for driver, device in binds_at_boot(template):
            log += self.step("bind", device=device, driver=driver).log
        for entry in template.functions:
            device = self.device(entry.bdf)
            if device.driver and device.driver != entry.driver:
                self.step("unbind", device=entry.bdf)
                self.step("bind", device=entry.bdf, driver=entry.driver)
        return log + self.system.take_lines()

    # ---- looking -----------------------------------------------------------------------------------------------------

    def step(self, op: str, **arguments) -> StepResult:
        return self.run.step(Step.model_validate({op: arguments}))

    def device(self, name):
        return self.system.devices[name]

    def bound(self, group) -> str:
        return ",".join(f"{d.label}={d.driver}" for d in sorted(group.devices, key=lambda d: d.label) if d.driver)

    def groups(self):
        return [
            {
                "id": number,
                "type": group.sysfs_type,
                "devices": sorted(device.label for device in group.devices),
                "drivers": self.bound(group),
                "reserved": [region.sysfs.replace(" ", "-") for region in self.system.group_regions(group)],
            }
            for number, group in sorted(self.system.groups.items())
        ]

    def snap(self, name: str) -> None:
        self.data["snapshots"][name] = self.groups()

    def drv(self, name: str) -> None:
        self.data["events"].append(f"@D|{name}|{self.device(name).driver or ''}")

    # ---- doing -------------------------------------------------------------------------------------------------------

    def load(self, driver: str) -> None:
        self.loaded.add(driver)
        if driver in MODELS:
            for device in self.system.present_devices():
                ids = "{:04x}:{:04x}".format(*device.facts.ids)
                if ids.startswith(MODELS[driver]) and device.driver is None:
                    self.joined(self.step("bind", device=device.name, driver=driver).log)

    def joined(self, lines) -> None:
        self.noted += [line for line in lines if "Adding to iommu group" in line]

    def note(self) -> None:
        """Print what the kernel said of groups since the last time."""
        self.data["events"] += [f"@N|[    1.000000] {line}" for line in self.noted]
        self.noted = []

    def bind(self, name: str, driver: str) -> None:
        done = self.step("bind", device=name, driver=driver)
        self.joined(done.log)
        outcome = "0:" if done.result == "ok" else f"1:{TEXT[done.result]}"
        self.data["events"].append(f"@B|{name}|{driver}|{outcome}")
        self.drv(name)

    def unbind(self, name: str) -> None:
        if self.device(name).driver:
            self.step("unbind", device=name)
        self.drv(name)

    def remove(self, name: str) -> None:
        self.step("remove", device=name)

    def rescan(self, *names: str) -> None:
        for name in names:
            self.step("add", device=name)
            for device in (self.device(name), *self.system.below(self.device(name))):
                self._autobind(device)

    def _autobind(self, device) -> None:
        for driver in self.loaded:
            ids = "{:04x}:{:04x}".format(*device.facts.ids)
            port = driver == "pcieport" and device.facts.kind.value == "root_port"
            if device.driver is None and (port or (driver in MODELS and ids.startswith(MODELS[driver]))):
                self.step("bind", device=device.name, driver=driver)

    def plug(self, name: str, model: str) -> None:
        self.data["qmp"].append({"cmd": "device_add", "args": {"driver": model, "bus": "rp2"}, "reply": {"return": {}}})
        self.data["events"].append(f"@HOST|device_add driver={model} bus=rp2")
        self.step("add", device=name)
        if model in self.loaded:
            self.step("bind", device=name, driver=model)
        self.data["events"].append(f"@HP|{name}|present")

    def unplug(self, name: str) -> None:
        self.data["qmp"].append({"cmd": "device_del", "args": {}, "reply": {"return": {}}})
        self.data["events"].append("@HOST|device_del id=hp0")
        self.remove(name)
        self.data["events"].append(f"@HP|{name}|gone")

    def test(self, tag: str, name: str) -> None:
        """A functional test: a driver whose device is dead lets go of it (nvme) or stays without traffic (e1000e)."""
        device = self.device(name)
        dead = self.step("dma", device=name).result == "EIO"
        driver, kind = device.driver, device.sysfs_type
        outcome = "works" if not dead else "no block device (driver none)" if driver == "nvme" else "no answer rc=1"
        if dead and driver == "nvme":
            self.step("unbind", device=name)
        self.data["events"].append(f"@F|{tag}|{driver}|type={kind}|{outcome}")

    def own(self, member: str) -> None:
        number = self.device(member).group.id
        assert self.step("claim", group_of=member).result == "ok"
        self.data["events"].append(f"@R|vfio|group {number} flags=1 set_container=ok")

    def disown(self, member: str) -> None:
        self.step("release", group_of=member)
        self.data["events"].append("@R|vfio|closing")

    # ---- writing -----------------------------------------------------------------------------------------------------

    def wr(self, member: str, wrote: str, tag: str) -> tuple[str, str]:
        group = self.device(member).group
        if group is None:
            return "", ""
        write = {
            "tag": tag,
            "group": group.id,
            "devices": ",".join(sorted(device.label for device in group.devices)),
            "drivers_bound": self.bound(group),
            "wrote": wrote,
            "type_before": group.sysfs_type,
        }
        done = self.step("write", group_of=member, type=written_text(wrote))
        lines = [line for line in done.log if "iommu group" not in line]
        self.data["writes"].append({**write, "result": TEXT[done.result], "type_after": group.sysfs_type, "dmesg": lines})
        return write["type_before"], group.sysfs_type

    def quiet(self, member: str, wrote: str) -> None:
        self.step("write", group_of=member, type=wrote + "\n")

    def matrix(self, member: str, tag: str) -> None:
        if self.device(member).group is None:
            return
        changed = False
        for wrote in ("identity", "DMA", "DMA-FQ", "auto", "garbage", ""):
            before, after = self.wr(member, wrote, f"{tag}/seq")
            changed |= before != after
        if changed and (tag.startswith("single") or "nodrv" in tag or tag == "untrusted"):
            for start in ("identity", "DMA", "DMA-FQ"):
                for wrote in ("identity", "DMA", "DMA-FQ", "auto"):
                    for step in (start, "DMA", start):
                        if self.device(member).sysfs_type != start:
                            self.quiet(member, step)
                    if self.device(member).sysfs_type == start:
                        self.wr(member, wrote, f"{tag}/from-{start}")
        self.quiet(member, "auto")

    def recording(self) -> Recording:
        return Recording.model_validate(self.data)


# ---- the scripts -----------------------------------------------------------------------------------------------------

D = "0000:00:{}"
TYPES = ("identity", "DMA", "DMA-FQ", "auto")


def sysfs_x86(g: Guest) -> None:
    g.matrix(D.format("03.0"), "single-nodrv")
    for raw in ("identity", "DMA", r"DMA-FQ\n", "dma", "Identity", "DMA ", " DMA", r"DMA\n\n", "auto", r"identity\0x", "DMA-FQ-x"):
        g.wr(D.format("03.0"), f"raw:{raw}", "syntax")
    g.matrix("0000:03:01.0", "bridge-multi-nodrv")
    g.matrix(D.format("09.0"), "multifn-multi-nodrv")
    g.matrix(D.format("06.0"), "rootport-pcieport")
    g.snap("after-nodrv")
    g.load("nvme")
    g.load("e1000e")
    for slot in ("00:04.0", "00:05.0", "01:00.0"):
        g.drv(f"0000:{slot}")
    g.snap("drivers-loaded")
    g.matrix(D.format("04.0"), "bound-e1000e")
    g.matrix(D.format("05.0"), "bound-nvme")
    nvme, edu = D.format("05.0"), D.format("03.0")
    g.unbind(nvme)
    g.matrix(nvme, "nvme-unbound-again")
    g.wr(nvme, "identity", "rebind/1")
    g.bind(nvme, "nvme")
    g.snap("nvme-rebound-identity")
    g.wr(nvme, "DMA", "rebind/bound")
    g.unbind(nvme)
    g.wr(nvme, "DMA", "rebind/unbound")
    g.bind(nvme, "nvme")
    g.snap("nvme-rebound-DMA")
    g.wr(nvme, "DMA-FQ", "rebind/bound-DMA-to-FQ")
    g.wr(nvme, "DMA", "rebind/bound-FQ-to-DMA")
    g.wr(nvme, "auto", "rebind/bound-auto")
    g.bind(edu, "pci-stub")
    for wrote in ("identity", "DMA-FQ"):
        g.wr(edu, wrote, "bound-pci-stub")
    g.unbind(edu)
    g.bind(edu, "vfio-pci")
    for wrote in ("identity", "DMA-FQ"):
        g.wr(edu, wrote, "bound-vfio-pci")
    g.bind(D.format("09.0"), "vfio-pci")
    for wrote in TYPES:
        g.wr(D.format("09.0"), wrote, "multifn-one-of-two-vfio")
    g.snap("end")


def hotplug_x86(g: Guest) -> None:
    slot, edu, two = "0000:02:00.0", D.format("03.0"), D.format("09.1")
    g.load("nvme")
    g.snap("h0")
    g.plug(slot, "nvme")
    g.snap("h1-added")
    g.drv(slot)
    g.unbind(slot)
    g.wr(slot, "identity", "hp-identity")
    g.snap("h2-identity")
    g.unplug(slot)
    g.snap("h3-removed")
    g.plug(slot, "e1000e")
    g.snap("h4-other-device-added")
    g.wr(edu, "identity", "edu-identity")
    g.remove(edu)
    g.snap("h5-edu-removed")
    g.rescan(edu)
    g.snap("h6-rescan")
    g.remove(two)
    g.snap("h7-one-member-left")
    g.wr(D.format("09.0"), "identity", "half-group")
    g.rescan(two)
    g.snap("h8-member-back")
    g.remove(edu)
    g.remove(D.format("0a.0"))
    g.snap("h9-two-removed")
    g.rescan(edu, D.format("0a.0"))
    g.snap("h10-rescan")


def untrusted_x86(g: Guest) -> None:
    below, port = "0000:01:00.0", D.format("06.0")
    g.matrix(below, "untrusted")
    g.matrix(D.format("05.0"), "trusted-sibling")
    g.bind(below, "pci-stub")
    for wrote in TYPES:
        g.wr(below, wrote, "untrusted-bound")
    g.unbind(below)
    g.remove(port)
    g.snap("port-removed")
    g.rescan(port, below)
    g.snap("port-back")


def rmrr(g: Guest) -> None:
    g.matrix(D.format("03.0"), "single-nodrv-rmrr")
    g.load("nvme")
    nvme = D.format("05.0")
    g.drv(nvme)
    for wrote in TYPES:
        g.wr(nvme, wrote, "bound-rmrr")
    g.unbind(nvme)
    for wrote in TYPES:
        g.wr(nvme, wrote, "unbound-rmrr")
    g.snap("end")
    g.bind(D.format("03.0"), "vfio-pci")


def drivers_arm(g: Guest) -> None:
    for driver in ("nvme", "e1000e", "virtio-pci"):
        g.load(driver)
    for name in ("0000:00:03.0", "0000:03:01.0", "0000:03:02.0", "0000:00:09.0", "0000:00:09.1"):
        g.bind(name, "pci-stub")
    g.note()
    g.snap("drivers")


def sysfs_arm(g: Guest) -> None:
    drivers_arm(g)
    edu, nvme, one, two = D.format("03.0"), D.format("05.0"), D.format("09.0"), D.format("09.1")
    g.matrix(edu, "bound-pci-stub")
    g.matrix(D.format("04.0"), "bound-e1000e")
    g.matrix(nvme, "bound-nvme")
    g.matrix("0000:03:01.0", "bridge-multi-bound")
    g.unbind(edu)
    g.matrix(edu, "single-nodrv")
    g.unbind(nvme)
    g.matrix(nvme, "nvme-unbound")
    for name in ("0000:03:01.0", "0000:03:02.0", "0000:00:08.0"):
        g.unbind(name)
    g.matrix("0000:03:01.0", "bridge-multi-unbound")
    g.unbind(one)
    g.matrix(one, "multifn-one-bound")
    g.unbind(two)
    g.matrix(one, "multifn-multi-nodrv")
    g.wr(nvme, "DMA", "rebind/0")
    g.bind(nvme, "nvme")
    g.wr(nvme, "DMA-FQ", "rebind/bound-DMA-to-FQ")
    g.wr(nvme, "DMA", "rebind/bound-FQ-to-DMA")
    g.snap("end")


def sysfs_s390(g: Guest) -> None:
    one, two = "0001:00:00.0", "0002:00:00.0"
    g.load("virtio-pci")
    g.snap("drivers")
    g.matrix(one, "bound-virtio")
    g.unbind(one)
    g.matrix(one, "single-nodrv")
    g.wr(one, "DMA", "rebind/0")
    g.bind(one, "virtio-pci")
    g.wr(one, "DMA-FQ", "rebind/bound-DMA-to-FQ")
    g.wr(one, "DMA", "rebind/bound-FQ-to-DMA")
    g.unbind(two)
    g.wr(two, "identity", "s2")
    g.remove(two)
    g.snap("slot2-off")
    g.rescan(two)
    g.snap("slot2-on")
    g.snap("end")


def unknown_script(g: Guest) -> None:
    """Names that no known script has: only the state tells the order."""
    edu, nvme = D.format("03.0"), D.format("05.0")
    g.load("nvme")
    g.drv(nvme)
    g.snap("one")
    g.wr(edu, "identity", "first")
    g.snap("two")
    g.unbind(nvme)
    g.wr(nvme, "identity", "second")
    g.bind(nvme, "nvme")
    g.snap("three")
    g.wr(nvme, "DMA", "third")
    g.unbind(nvme)
    g.wr(nvme, "DMA", "fourth")
    g.remove(edu)
    g.snap("four")
    g.rescan(edu)
    g.snap("five")
    g.wr(edu, "DMA", "fifth")


# ---- scripts of the posted patch's recordings --------------------------------------------------------------------------


def h15(g: Guest, *, writes_first: bool) -> None:
    nvme, nic = D.format("05.0"), D.format("04.0")
    drivers = {nic: "e1000e", nvme: "nvme"}
    for name, driver in reversed(drivers.items()):
        g.load(driver)
        g.test("boot", name)
    for name in (nvme, nic):
        g.unbind(name)
    for wrote in ("DMA", "identity", "DMA", "DMA-FQ", "identity", "DMA-FQ", "auto"):
        for name in drivers if writes_first else ():
            g.wr(name, wrote, f"h15-{wrote}")
        for name, driver in drivers.items():
            if not writes_first:
                g.wr(name, wrote, f"h15-{wrote}")
            g.bind(name, driver)
            g.test(f"after-{wrote}", name)
            g.unbind(name)
    g.wr(nic, "DMA", "h15-last")
    g.remove(nic)
    g.rescan(nic)
    g.test("after-remove-rescan", nic)
    group = g.device(nic).group.id
    g.data["events"] += [
        f"@X|after-remove-rescan|[   81.0] pci {nic}: Removing from iommu group {group}",
        f"@X|after-remove-rescan|[   81.5] pci {nic}: Adding to iommu group {group}",
    ]
    g.snap("end")


def h15_together(g: Guest) -> None:
    h15(g, writes_first=True)


def h15_apart(g: Guest) -> None:
    h15(g, writes_first=False)


def h15live(g: Guest) -> None:
    nvme, nic = D.format("05.0"), D.format("04.0")
    for driver, name in (("nvme", nvme), ("e1000e", nic)):
        g.load(driver)
        g.test("boot", name)
    for wrote in ("DMA-FQ", "DMA", "auto", "identity"):
        for name in (nic, nvme):
            g.wr(name, wrote, f"bound-{wrote}")
    for tag, wrote, test in (
        ("unbound-DMA-FQ", "DMA-FQ", "fq"),
        ("unbound-DMA-FQ-again", "DMA-FQ", "fq2"),
        ("unbound-auto", "auto", "auto"),
    ):
        for name in (nic, nvme):
            g.unbind(name)
        for name in (nic, nvme):
            g.wr(name, wrote, tag)
        for name, driver in ((nic, "e1000e"), (nvme, "nvme")):
            g.bind(name, driver)
            g.test(test, name)
    g.snap("end")


def vfio(g: Guest) -> None:
    one, two = D.format("09.0"), D.format("09.1")
    g.load("nvme")
    g.test("boot", two)
    g.unbind(two)
    g.bind(one, "vfio-pci")
    g.snap("vfio-bound")
    for wrote in TYPES:
        g.wr(one, wrote, "vfio-bound-not-owned")
    g.own(one)
    g.snap("owned")
    for wrote in ("DMA-FQ", "DMA", "identity", "auto"):
        g.wr(one, wrote, "vfio-owned")
    group = g.device(one).group.id
    g.remove(two)
    g.snap("owned-removed")
    g.data["events"].append(f"@X|owned-removed|[    9.4] pci {two}: Removing from iommu group {group}")
    g.step("add", device=two)
    g.snap("owned-back")
    g.data["events"].append(f"@X|owned-back|[   10.4] pci {two}: Adding to iommu group {group}")
    g.bind(two, "nvme")
    g.disown(one)
    g.bind(two, "nvme")
    g.test("released", two)
    g.drv(two)
    g.snap("end")


def rmrr91(g: Guest) -> None:
    nvme = D.format("09.0")
    g.load("nvme")
    g.test("boot", nvme)
    g.unbind(nvme)
    for wrote in ("identity", "DMA", "DMA-FQ", "auto"):
        g.wr(nvme, wrote, "partial")
    g.bind(nvme, "nvme")
    g.test("after-failed-claim", nvme)
    g.snap("end")


def conflict(g: Guest) -> None:
    for wrote in TYPES:
        g.wr(D.format("06.0"), wrote, "conflict")
    g.snap("end")


def gfx(g: Guest) -> None:
    for slot in ("0b.0", "09.0"):
        name = D.format(slot)
        g.matrix(name, f"gfx-{name}")
        for wrote in ("auto", "identity", "DMA", "DMA-FQ", "auto"):
            g.wr(name, wrote, "gfx-again")
    g.matrix(D.format("03.0"), "single-nodrv")
    g.snap("end")


def hpjoin(g: Guest) -> None:
    port, below = D.format("06.0"), "0000:01:00.0"
    g.load("e1000e")
    g.snap("before")
    g.wr(port, "identity", "before-join")
    g.snap("before2")
    g.plug(below, "e1000e")
    g.drv(below)
    g.snap("joined")
    for wrote in ("identity", "DMA", "DMA-FQ", "auto"):
        g.wr(port, wrote, "after-join-bound")
    g.unbind(below)
    for wrote in ("identity", "DMA", "DMA-FQ", "auto"):
        g.wr(port, wrote, "after-join")
    g.snap("end")
