"""QEMU's machines with a VT-d unit, as data; the conformance suite runs the driver on them."""

from __future__ import annotations

import pytest

from iommukit.hw.platform import ModelPlatform
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from iommukit_intel_vtd.emulated import emulated_machine
from iommukit_intel_vtd.layout import Reg
from tests.vendors.intel_vtd import INTEL, REGISTRY

BASE = 0xFED9_0000
WORDS = {
    "": (0x00D2_008C_2226_0206, 0x0000_0000_00F0_0F4A),
    "four-levels": (0x00D2_008C_222F_0606, 0x0000_0000_00F0_0F4A),
    "caching-mode": (0x00D2_008C_2226_0286, 0x0000_0000_00F0_0F4A),
    "snoop-control": (0x00D2_008C_2226_0206, 0x0000_0000_00F0_0FCA),
    "scalable": (0x00D2_008C_222F_0606, 0x0000_4800_80F0_0F4A),
    "first-stage": (0x01D2_008C_222F_0606, 0x0000_8800_00F0_0F4A),
}
"""CAP and ECAP as QEMU 10.0 has them; the driver compares them when it starts the unit."""


def test_there_is_no_machine_in_old_qemu():
    assert emulated_machine((6, 2)) is None


def test_the_first_stage_needs_qemu_10():
    assert set(emulated_machine((10, 0)).variants) - set(emulated_machine((7, 2)).variants) == {"first-stage"}


def test_what_goes_wrong_in_every_mode_goes_wrong_in_each():
    plain = emulated_machine((10, 0))
    for variant in plain.variants.values():
        assert variant.deviations.items() >= plain.deviations.items()


@pytest.mark.parametrize("variant", WORDS)
def test_the_model_has_the_same_modes(variant):
    emulation = emulated_machine((10, 0)).machine_of(variant)
    with ModelPlatform() as platform:
        document = Machine.model_validate(emulation.machine)
        start_system(get_kernel("7.2"), INTEL, REGISTRY, document, BootSpec(), platform=platform)
        assert tuple(platform.bus.read(BASE + register, 8) for register in (Reg.CAP, Reg.ECAP)) == WORDS[variant]
