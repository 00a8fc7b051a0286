"""A hook wrapper that tells when a hook that touches hardware has returned."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from iommukit.hookspecs import hookimpl

Wrapper = Generator[None, Any, Any]


class HookEnds:
    """``after`` is called with the hook's name; ``within`` is the hook that is being carried out."""

    def __init__(self) -> None:
        self.after: Callable[[str], None] | None = None
        self.within = ""

    def _around(self, hook: str) -> Wrapper:
        outer, self.within = self.within, hook
        try:
            answer = yield
        finally:
            self.within = outer
        if self.after is not None:
            self.after(hook)
        return answer

    @hookimpl(wrapper=True)
    def domain_alloc(self) -> Wrapper:
        """A new domain."""
        return (yield from self._around("domain_alloc"))

    @hookimpl(wrapper=True)
    def domain_free(self) -> Wrapper:
        """A domain less."""
        return (yield from self._around("domain_free"))

    @hookimpl(wrapper=True)
    def attach_dev(self) -> Wrapper:
        """The move."""
        return (yield from self._around("attach_dev"))

    @hookimpl(wrapper=True)
    def set_dev_blocked(self) -> Wrapper:
        """The end."""
        return (yield from self._around("set_dev_blocked"))

    @hookimpl(wrapper=True)
    def map_pages(self) -> Wrapper:
        """New entries."""
        return (yield from self._around("map_pages"))

    @hookimpl(wrapper=True)
    def unmap_pages(self) -> Wrapper:
        """Entries less."""
        return (yield from self._around("unmap_pages"))

    @hookimpl(wrapper=True)
    def iotlb_sync_map(self) -> Wrapper:
        """New entries seen."""
        return (yield from self._around("iotlb_sync_map"))

    @hookimpl(wrapper=True)
    def iotlb_sync(self) -> Wrapper:
        """Entries forgotten."""
        return (yield from self._around("iotlb_sync"))

    @hookimpl(wrapper=True)
    def flush_iotlb_all(self) -> Wrapper:
        """Everything forgotten."""
        return (yield from self._around("flush_iotlb_all"))

    @hookimpl(wrapper=True)
    def probe_finalize(self) -> Wrapper:
        """The DMA API set up."""
        return (yield from self._around("probe_finalize"))
