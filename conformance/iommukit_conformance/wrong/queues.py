"""Mistakes about flush queues and strict mode."""

from __future__ import annotations

from collections.abc import Iterable

from iommukit.device import Device
from iommukit.domain import Domain, DomainType
from iommukit.errors import IommuError
from iommukit.hookspecs import FlushQueueOptions, hookimpl
from iommukit.kernel.boot import BootState
from iommukit.kernel.cmdline import KernelOption, OptionReport, Stage, Verdict
from iommukit_conformance.reference import OPTION
from iommukit_conformance.wrong.base import Wrong


class OffersAQueueItLacks(Wrong):
    """Always True."""

    mistake = "It offers a flush queue for a device whose unmaps must be flushed at once."
    rule = "DRV-23"

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        """No exception for the device that caches translations."""
        return True


class QueueThatNeverStarts(Wrong):
    """No flush of everything, but a queue."""

    mistake = "It offers a flush queue that never starts, because it cannot flush a whole domain."
    rule = "DRV-41"

    @hookimpl
    def flush_queue_options(self, device: Device) -> FlushQueueOptions:
        """Too late to say no."""
        raise IommuError("ENOMEM")


class LazyWithoutAQueue(Wrong):
    """Two lists that differ."""

    mistake = "In 6.1 it says that it has no queue, and allocates lazy domains all the same."
    rule = "DRV-41"
    kernel = "6.1"

    @hookimpl
    def domain_alloc(self, device: Device, type: DomainType) -> Domain | None:
        """Lazy or strict, all the same."""
        domain = super().domain_alloc(device, DomainType.DMA if type is DomainType.DMA_FQ else type)
        if domain is not None and type is DomainType.DMA_FQ:
            domain.type = type
        return domain

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        """Never."""
        return False


class OddQueue(Wrong):
    """A round number for people."""

    mistake = "Its flush queue has 1000 entries, and the ring's index is masked."
    rule = "DRV-40"

    @hookimpl
    def flush_queue_options(self, device: Device) -> FlushQueueOptions:
        """Not a power of two."""
        return FlushQueueOptions(entries=1000)


class TwoAnswersAboutQueues(Wrong):
    """Forgot the new hook."""

    mistake = "Since 6.12 it denies deferred_flush and prefers a queue: kernels that ask the one and the other disagree."
    rule = "DRV-42"
    kernel = "6.12"

    @hookimpl
    def capable(self, device: Device, capability: str) -> bool:
        """The capability was not added."""
        return capability != "deferred_flush" and super().capable(device, capability)


class StrictCanBeUndone(Wrong):
    """Writes the flag of the core's own option."""

    mistake = "Its option for strict mode is undone by iommu.strict=0 where that comes later."
    rule = "DRV-71"

    @hookimpl
    def kernel_options(self, boot: BootState) -> tuple[KernelOption, ...]:
        """Read early, among the core's options."""
        return (KernelOption(OPTION, Stage.EARLY, self.apply_option, "off; strict"),)

    def apply_option(self, value: str | None, boot: BootState) -> Iterable[OptionReport]:
        """As ``iommu.strict=1`` would."""
        if value == "strict":
            boot.default.set_strict_cmdline(True)
            return (OptionReport(f"{OPTION}=strict", Verdict.EFFECTIVE, "translated domains are strict"),)
        return super().apply_option(value, boot)


class SwallowsOptions(Wrong):
    """Returns without a word."""

    mistake = "It ignores a misspelt option silently, so that people believe in it."
    rule = "DRV-70"

    def apply_option(self, value: str | None, boot: BootState) -> Iterable[OptionReport]:
        """Only what it understands."""
        return [report for report in super().apply_option(value, boot) if report.verdict is Verdict.EFFECTIVE]


class QueryChangesThePolicy(Wrong):
    """A question with a consequence."""

    mistake = "It makes the whole system strict when it is asked about one device without a queue."
    rule = "DRV-15"

    @hookimpl
    def prefer_dma_api_fq(self, device: Device) -> bool:
        """Other groups lose their queues."""
        works: bool = super().prefer_dma_api_fq(device)
        if not works:
            device.system.boot.set_dma_strict()
        return works
