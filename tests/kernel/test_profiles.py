"""Profiles by name, and decisions that no scenario can reach."""

from __future__ import annotations

from typing import Any

import pytest

from iommukit.device import DmaOps
from iommukit.domain import DomainType
from iommukit.errors import InputError, IommuError
from iommukit.kernel.profiles import PROFILES, get_kernel
from iommukit.kernel.start import start_system
from iommukit.kernel.system import System
from iommukit.machine.model import BootSpec, Machine
from tests.kernel.toy import Toy, toy_registry


def _boot(kernel: str, devices: list[dict[str, Any]], toy: Toy | None = None, **boot: Any) -> System:
    registry, vendor = toy_registry(toy)
    machine = Machine.model_validate({"machine": "m", "arch": "x86_64", "devices": devices})
    return start_system(get_kernel(kernel), vendor, registry, machine, BootSpec.model_validate(boot))


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *((name, name) for name in PROFILES),
        ("6.12.107+deb13-amd64", "6.12"),
        ("7.2.13", "7.2"),
        ("6.1.0-56-amd64", "6.1"),
        ("6.1.12-1-MANJARO", "6.1"),
        ("6.1.192", "6.1.192"),
        ("6.1.177-rt", "6.1.176"),
        ("6.1.191", "6.1.176"),
        ("6.1.200", "6.1.192"),
        ("5.10.22-100.fc32.x86_64", "5.10"),
        ("6.2.10-arch1-1", "6.2"),
    ],
)
def test_names(name: str, profile: str) -> None:
    assert get_kernel(name).name == profile


@pytest.mark.parametrize("name", ["", "rfc2", "6", "6.", "6.8", "5.9", "5.20", "4.19", "6.1x", "\uff17.2", "6.12\n", "../6.1"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(InputError, match=r"no kernel .*there are rfc, rfc-as-posted"):
        get_kernel(name)


@pytest.mark.parametrize(("kernel", "error"), [("6.1", "EINVAL"), ("rfc", "EPERM"), ("rfc-as-posted", "EPERM"), ("6.12", "EPERM")])
def test_an_empty_group_is_refused(kernel: str, error: str) -> None:
    """Facts 5.4, last row; sysfs never reaches it, because the file goes with the last device."""
    system = _boot(kernel, [{"name": "nic"}], cmdline="iommu.passthrough=1")
    group = system.devices["nic"].group
    assert group is not None
    group.devices.clear()
    with pytest.raises(IommuError) as caught:
        system.kernel.write_type(system, group, "DMA")
    assert caught.value.name == error


TWO_UNITS = [
    {"name": "one", "address": "0000:00:01.0", "multifunction": True, "attributes": {"unit": 0}},
    {"name": "two", "address": "0000:00:01.1", "multifunction": True, "attributes": {"unit": 1}},
]


@pytest.mark.parametrize(("kernel", "same"), [("6.1", False), ("6.1.192", True), ("rfc", True), ("6.12", True)])
def test_a_group_across_two_units(kernel: str, same: bool) -> None:
    """Mainline 6.1 allocates a second default domain when the second unit registers; later kernels keep the first."""
    system = _boot(kernel, TWO_UNITS, Toy(units=2))
    group = system.devices["one"].group
    assert group is system.devices["two"].group
    assert group is not None
    assert (group.domain is group.default_domain) is same


def test_identity_for_identity_counts_as_default_in_6_1_only() -> None:
    for kernel, allowed in (("6.1", True), ("6.12", False)):
        system = _boot(kernel, [{"name": "nic"}, {"name": "gpu"}], cmdline="iommu=pt")
        group, other = system.devices["nic"].group, system.devices["gpu"].group
        assert group is not None
        assert other is not None
        group.domain = other.default_domain
        group.owner_count = 1
        device = system.devices["nic"]
        if allowed:
            system.kernel.bind(system, device, "amdgpu", managed=False)
            assert device.driver == "amdgpu"
        else:
            with pytest.raises(IommuError, match="EBUSY"):
                system.kernel.bind(system, device, "amdgpu", managed=False)
            assert device.driver is None


def test_lazy_is_marked_by_the_core_not_the_driver() -> None:
    """From 6.12 on, and in rfc, a driver is never asked for DMA_FQ."""
    asked: list[DomainType] = []

    class Curious(Toy):
        def domain_alloc(self, device: Any, type: DomainType) -> Any:
            asked.append(type)
            return Toy.domain_alloc(self, device, type)

    Curious.domain_alloc.iommukit_impl = Toy.domain_alloc.iommukit_impl  # type: ignore[attr-defined]
    for kernel in PROFILES:
        asked.clear()
        system = _boot(kernel, [{"name": "nic"}], Curious(), kconfig="lazy")
        assert (DomainType.DMA_FQ in asked) is (kernel == "6.1"), kernel
        lazy = kernel in ("rfc", "6.1", "6.12", "7.2")
        domain = system.devices["nic"].attached
        assert domain is not None
        assert (domain.flush_queue is not None) is lazy
    assert system.devices["nic"].dma_ops is DmaOps.IOMMU


def test_unsupported_identity_by_default() -> None:
    """Facts 2.3 H6: 6.1 and 6.12 fall back to strict, rfc to the system's translated policy, the posted patch to nothing."""
    types = {}
    for kernel in PROFILES:
        system = _boot(kernel, [{"name": "nic"}], Toy(identity=False), cmdline="iommu=pt", kconfig="lazy")
        types[kernel] = system.devices["nic"].sysfs_type
    assert types == {
        "rfc": "DMA-FQ",
        "rfc-as-posted": "unknown",
        "rfc-unconverted": "unknown",
        "6.1": "DMA",
        "6.12": "DMA",
        "7.2": "DMA",
    }
