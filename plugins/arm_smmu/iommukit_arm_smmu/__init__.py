"""Arm SMMUv3 and SMMUv2: the vendor ``arm_smmu``."""

from iommukit_arm_smmu.driver import (
    attach_dev,
    capable,
    declare,
    def_domain_type,
    device_group,
    discover,
    domain_alloc,
    early_quirks,
    example_device,
    firmware_formats,
    get_resv_regions,
    kernel_options,
    prefer_dma_api_fq,
    probe_device,
    release_device,
)

__all__ = [
    "attach_dev",
    "capable",
    "declare",
    "def_domain_type",
    "device_group",
    "discover",
    "domain_alloc",
    "early_quirks",
    "example_device",
    "firmware_formats",
    "get_resv_regions",
    "kernel_options",
    "prefer_dma_api_fq",
    "probe_device",
    "release_device",
]
