"""What Linux decides for devices behind Arm SMMUs (``drivers/iommu/arm``): both drivers, SMMUv3 and SMMUv2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iommukit.device import Device, Unit
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.group import Group
from iommukit.hookspecs import ExampleDevice, VendorDeclaration, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption
from iommukit.kernel.grouping import generic_device_group, pci_device_group
from iommukit.machine.model import Machine
from iommukit.policy import DmaApiPolicy, Era
from iommukit.regions import ReservedRegion
from iommukit_arm_smmu import options
