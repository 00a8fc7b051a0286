"""Setting up the DMA API over a device's domain (``drivers/iommu/dma-iommu.c``)."""

from __future__ import annotations

from iommukit.device import Device, DmaOps
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.policy import Era

QUEUE_FAILED = "iova flush queue initialization failed"


def start_flush_queue(domain: Domain, device: Device) -> bool:
    """Start a domain's flush queue; True if it runs now (``iommu_dma_init_fq``).

    A queue that runs already is success.  The driver's capability is not asked: callers differ in whether they do.
    """
    if domain.flush_queue is not None:
        return True
    try:
        domain.flush_queue = device.system.vendor.ops.flush_queue_options(device=device)
    except IommuError:
        device.system.log(QUEUE_FAILED)
        return False
    return True


def init_domain(domain: Domain, device: Device, *, ask_driver: bool) -> None:
    """Prepare a domain for the DMA API, once (``iommu_dma_init_domain``).

    A lazy domain whose queue does not start becomes strict; with ``ask_driver`` also one whose driver supports no queue.
    """
    if domain.iova_initialised:
        return
    domain.iova_initialised = True
    if domain.type is not DomainType.DMA_FQ:
        return
    supported = not ask_driver or domain.generic_pt or device.system.vendor.ops.prefer_dma_api_fq(device=device)
    if not supported or not start_flush_queue(domain, device):
        domain.type = DomainType.DMA


def iommu_setup_dma_ops(device: Device, domain: Domain | None = None) -> None:
    """Point a device's mapping calls at its domain, or at nothing for an identity domain.

    Looks at what the *group* is attached to at this moment unless a domain is given: while a group is in its blocking domain, the
    device is left without the DMA API.
    """
    group = device.group
    if domain is None:
        domain = group.domain if group else None
    if domain is not None and domain.type.uses_dma_api:
        init_domain(domain, device, ask_driver=device.system.boot.era >= Era.V6_12)
        device.dma_ops = DmaOps.IOMMU
    else:
        device.dma_ops = DmaOps.DIRECT
