"""What was realised, looked at in guests: every device is where it was placed, in the groups of its machine file."""

from __future__ import annotations

import os

import pytest

from iommukit.errors import InputError
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.realise import realise as as_vendor
from iommukit.kernel.start import new_boot_state
from iommukit.machine.model import BootSpec
from iommukit.scenario.load import load_machine
from iommukit.vendors import VendorRegistry
from iommukit_oracle.guest.boot import MACHINES
from iommukit_oracle.guest.kernels import debian_kernel
from iommukit_oracle.kernel.realise import realise
from iommukit_oracle.kernel.session import Session, partition

MODELS = {"pcie-root-port": "1b36:000c", "e1000e": "8086:10d3", "nvme": "1b36:0010", "virtio-net-pci": "1af4:1041"}
SWITCH = {"x3130-upstream": "104c:8232", "xio3130-downstream": "104c:8233"}


def _session(name: str, vendor: str, kernel: str) -> Session:
    boot = BootSpec()
    maker = VendorRegistry.installed().get(vendor)
    machine = load_machine(name)
    arch = machine.arch or maker.declaration.arch[0]
    machine = as_vendor(machine, maker, new_boot_state(get_kernel(kernel), arch, boot))
    made = realise(machine, boot, vendor, kernel)
    try:
        return Session(made, machine, boot, debian_kernel(kernel, MACHINES[made.machine].debian))
    except InputError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no guest can be booted here: {error}")


def _seen(session: Session) -> dict[str, dict[str, str]]:
    """The functions by the machine file's names; all of them are there, and are QEMU's."""
    there = session.look()
    seen = {name: there[placed.address] for name, placed in session.realisation.placed.items()}
    numbers = {**MODELS, **SWITCH}
    for name, placed in session.realisation.placed.items():
        assert seen[name]["id"] == numbers[placed.properties["driver"]]
    return seen


def test_a_port_that_faces_outside() -> None:
    with _session("external-port", "intel_vtd", "6.12") as session:
        seen = _seen(session)
        assert {name: each["removable"] for name, each in seen.items()} == {"disk": "", "rp1": "", "nic": "removable"}
        assert session.start.types == {"disk": "DMA-FQ", "rp1": "DMA-FQ", "nic": "DMA"}
        assert partition(session.start) == {frozenset({name}) for name in seen}


@pytest.mark.parametrize("vendor", ["intel_vtd", "amd_vi"])
def test_memory_that_firmware_reserves(vendor: str) -> None:
    with _session("direct-region", vendor, "6.12") as session:
        _seen(session)
        assert "0x000000001ffdd000 0x000000001ffddfff direct" in session.regions["dev"]
        assert not [line for line in session.log if "Firmware Bug" in line]


@pytest.mark.parametrize(("vendor", "numbers"), [("intel_vtd", "8086:3a3e"), ("arm_smmu", "19e5:a12e")])
def test_a_device_that_the_kernel_knows_by_its_numbers(vendor: str, numbers: str) -> None:
    with _session("identity-required", vendor, "7.2") as session:
        assert session.look()[session.placed("gpu").address]["id"] == numbers
        assert session.start.types["gpu"] == "identity"


def test_functions_of_a_slot() -> None:
    with _session("two-functions", "arm_smmu", "6.12") as session:
        _seen(session)
        assert partition(session.start) == {frozenset({"f0", "f1"})}


def test_a_switch() -> None:
    """Its buses are numbered by the kernel itself: this machine has no firmware that would."""
    with _session("open-switch", "arm_smmu", "7.2") as session:
        _seen(session)
        wanted = {frozenset({"rp1"}), frozenset({"up"}), frozenset({"down0", "nic"}), frozenset({"down1", "disk"})}
        assert partition(session.start) == wanted
