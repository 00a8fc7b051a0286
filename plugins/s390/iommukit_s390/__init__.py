"""IBM Z PCI functions: the vendor ``s390``."""

from iommukit_s390.driver import (
    attach_dev,
    capable,
    declare,
    def_domain_type,
    device_group,
    discover,
    domain_alloc,
    example_device,
    firmware_formats,
    flush_queue_options,
    get_resv_regions,
    kernel_options,
    prefer_dma_api_fq,
    probe_device,
    probe_finalize,
    set_dev_blocked,
)

__all__ = [
    "attach_dev",
    "capable",
    "declare",
    "def_domain_type",
    "device_group",
    "discover",
    "domain_alloc",
    "example_device",
    "firmware_formats",
    "flush_queue_options",
    "get_resv_regions",
    "kernel_options",
    "prefer_dma_api_fq",
    "probe_device",
    "probe_finalize",
    "set_dev_blocked",
]
