"""Which SMMUv3 a machine has: its features from the machine file, and its place on the bus."""

from __future__ import annotations

from iommukit.errors import IommuError
from iommukit.hw.bus import ModelBus
from iommukit_arm_smmu import layout as bits
from iommukit_arm_smmu.model.configuration import Features
from iommukit_arm_smmu.model.unit import GRANULES, SmmuUnit
from iommukit_arm_smmu.smmu import Smmu


def build_unit(bus: ModelBus, smmu: Smmu) -> SmmuUnit:
    """The model of one unit, on the bus.  Raises ``ENODEV`` for a width that no SMMUv3 has."""
    hardware = smmu.hardware
    if hardware.oas not in bits.ADDRESS_SIZES:
        raise IommuError("ENODEV", f"no SMMUv3 has output addresses of {hardware.oas} bits")
    if 1 not in hardware.stages and hardware.ias > hardware.oas:
        raise IommuError("ENODEV", f"stage 2 translates no more than the {hardware.oas} bits of output addresses")
    features = Features(
        frozenset(hardware.stages),
        frozenset(GRANULES[name] for name in hardware.granules),
        hardware.oas,
        smmu.description.sid_bits,
        hardware.va_bits > 48,
        smmu.facts.coherent_walk,
    )
    model = SmmuUnit(bus.memory, features)
    bus.attach(smmu.facts.base, bits.REGISTERS_SIZE, model)
    return model
