"""Intel VT-d, as Linux drives it: the vendor plugin ``intel_vtd``."""

from iommukit_intel_vtd.driver import (
    attach_dev,
    capable,
    declare,
    def_domain_type,
    discover,
    domain_alloc,
    early_quirks,
    example_device,
    firmware_formats,
    get_resv_regions,
    is_attach_deferred,
    kernel_options,
    prefer_dma_api_fq,
    probe_device,
    probe_finalize,
    release_device,
)

__all__ = [
    "attach_dev",
    "capable",
    "declare",
    "def_domain_type",
    "discover",
    "domain_alloc",
    "early_quirks",
    "example_device",
    "firmware_formats",
    "get_resv_regions",
    "is_attach_deferred",
    "kernel_options",
    "prefer_dma_api_fq",
    "probe_device",
    "probe_finalize",
    "release_device",
]
