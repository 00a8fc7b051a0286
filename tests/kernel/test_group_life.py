"""The life of groups under every profile: any order of bind, write, claim, plug and fault keeps the books straight."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from iommukit.domain import DomainType
from iommukit.errors import IommuError
from iommukit.kernel.kernel import Kernel
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.kernel.start import start_system
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec, Machine
from iommukit.scenario.faults import faulty_registry
from tests.kernel.toy import Toy, toy_registry

ACS = ["SV", "RR", "CR", "UF"]
MACHINE = {
    "machine": "life",
    "arch": "x86_64",
    "devices": [
        {"name": "rp1", "address": "0000:00:01.0", "kind": "root_port", "acs": ACS, "external_facing": True},
        {"name": "nic", "address": "0000:01:00.0", "parent": "rp1"},
        {"name": "rp2", "address": "0000:00:02.0", "kind": "root_port"},
        {"name": "disk", "address": "0000:02:00.0", "parent": "rp2", "multifunction": True},
        {"name": "disk1", "address": "0000:02:00.1", "parent": "rp2", "multifunction": True},
        {"name": "gpu", "address": "0000:00:03.0", "attributes": {"requires": "identity"}},
        {"name": "usb", "address": "0000:00:04.0", "reserved": [{"start": 0x9000, "end": 0x9FFF, "type": "direct"}]},
        {"name": "slow", "address": "0000:00:05.0", "attributes": {"queue": False}},
        {"name": "late", "address": "0000:00:06.0", "present": False},
    ],
}
NAMES = [device["name"] for device in MACHINE["devices"]]  # type: ignore[index]
DEVICES = st.sampled_from(NAMES)
KEYWORDS = st.sampled_from(["identity", "DMA", "DMA-FQ", "auto"])
MODEL = Machine.model_validate(MACHINE)


def _quiet(call: Any, *arguments: Any, **named: Any) -> str:
    try:
        call(*arguments, **named)
    except IommuError as error:
        return error.name
    return "ok"


class GroupLife(RuleBasedStateMachine):
    kernel: Kernel

    @initialize(
        cmdline=st.sampled_from(["", "iommu.passthrough=1", "iommu.strict=1", "iommu.strict=0"]),
        kconfig=st.sampled_from(["lazy", "strict", "passthrough"]),
    )
    def start(self, cmdline: str, kconfig: str) -> None:
        registry, _ = toy_registry(Toy())
        wrapped, self.faults = faulty_registry(registry)
        boot = BootSpec.model_validate({"cmdline": cmdline, "kconfig": kconfig})
        self.system: System = start_system(self.kernel, wrapped.get("toy"), wrapped, MODEL, boot)
        self.owners: dict[str, object] = {}

    @rule(name=DEVICES, driver=st.sampled_from(["e1000e", "vfio-pci"]))
    def bind(self, name: str, driver: str) -> None:
        _quiet(self.kernel.bind, self.system, self.system.devices[name], driver, managed=None)

    @rule(name=DEVICES)
    def unbind(self, name: str) -> None:
        _quiet(self.kernel.unbind, self.system, self.system.devices[name])

    @rule(name=DEVICES, keyword=KEYWORDS)
    def write(self, name: str, keyword: str) -> None:
        group = self.system.devices[name].group
        if group is None:
            return
        before = group.default_domain, group.sysfs_type, group.domain, [d.attached for d in group.devices]
        owned = group.owner_count > 0
        result = _quiet(self.kernel.write_type, self.system, group, keyword)
        if result != "ok" and self.kernel.name in ("rfc", "6.12", "7.2"):
            # A refused write changes neither type, attachment nor domain (I3).
            assert (group.default_domain, group.sysfs_type, group.domain, [d.attached for d in group.devices]) == before
        if result == "ok" and keyword == before[1] and self.kernel.name == "rfc":
            assert group.default_domain is before[0]  # I4
        if owned and result == "ok" and self.kernel.name == "rfc":
            assert group.default_domain is before[0]  # a driver's domain is never replaced under it

    @rule(name=DEVICES)
    def claim(self, name: str) -> None:
        group = self.system.devices[name].group
        if group is not None and _quiet(self.kernel.claim, self.system, group, self) == "ok":
            assert group.domain is group.blocking_domain
            assert all(device.attached is group.domain for device in group.devices)

    @rule(name=DEVICES)
    def release(self, name: str) -> None:
        group = self.system.devices[name].group
        if group is not None and group.owner is self:
            _quiet(self.kernel.release, self.system, group)

    @rule(name=DEVICES)
    def remove(self, name: str) -> None:
        _quiet(self.kernel.remove, self.system, self.system.devices[name])

    @rule(name=DEVICES)
    def add(self, name: str) -> None:
        _quiet(self.kernel.add, self.system, self.system.devices[name])

    @rule(hook=st.sampled_from(["attach_dev", "domain_alloc", "flush_queue_options", "device_group"]))
    def fault(self, hook: str) -> None:
        self.faults.add(hook, IommuError("ENOMEM"))

    @invariant()
    def books_are_straight(self) -> None:
        if not hasattr(self, "system"):
            return
        for number, group in self.system.groups.items():
            assert group.id == number
            assert group.devices, "a group without devices is forgotten"
            for device in group.devices:
                assert device.present
                assert device.group is group
            users = sum(d.driver is not None and not d.driver_managed_dma for d in group.devices)
            if group.owner is None:
                assert group.owner_count == users
            for domain in (group.default_domain, group.domain):
                assert domain is None or not domain.freed
        for device in self.system.devices.values():
            if device.group is not None:
                assert device in device.group.devices
            if not device.present:
                assert device.group is None
                assert device.attached is None
            if device.attached is not None:
                assert not device.attached.freed, f"{device.name} is attached to a freed domain"

    @invariant()
    def rfc_protects(self) -> None:
        if not hasattr(self, "system") or self.kernel.name != "rfc":
            return
        for device in self.system.devices.values():
            if device.group is None or device.group.default_domain is None:
                continue
            domain = device.group.default_domain
            if device.untrusted:
                assert domain.type is DomainType.DMA  # I1
            if not self.system.vendor.ops.prefer_dma_api_fq(device=device):
                assert domain.type is not DomainType.DMA_FQ  # I10
            attached = device.attached
            if attached is not None and attached.type.uses_dma_api:
                for region in self.system.regions(device):
                    assert not region.type.is_direct or (region.start, region.end) in attached.direct  # I6


@pytest.mark.parametrize("name", [*PROFILES, "6.1.192"])
def test_group_life(name: str) -> None:
    machine = type(f"GroupLife_{name}", (GroupLife,), {"kernel": get_kernel(name)})
    case = machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
    case().runTest()
