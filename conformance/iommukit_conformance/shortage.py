"""A hook wrapper that lets a driver run out of memory for its tables."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from iommukit.hookspecs import hookimpl
from iommukit.hw.pages import PageAllocator

Wrapper = Generator[None, Any, Any]


class Shortage:
    """Hooks that may allocate find at most ``room`` bytes, each call anew, while there is a shortage."""

    def __init__(self) -> None:
        self._pages: PageAllocator | None = None
        self._room = 0

    @contextmanager
    def of(self, pages: PageAllocator, room: int) -> Iterator[None]:
        """For a while, calls find only so many bytes (``room``) among an operating system's pages."""
        self._pages, self._room = pages, room
        try:
            yield
        finally:
            self._pages = None

    def _around(self) -> Wrapper:
        pages = self._pages
        if pages is None or pages.limit is not None:  # within another hook the limit stands already
            return (yield)
        pages.limit = pages.outstanding + self._room
        try:
            return (yield)
        finally:
            pages.limit = None

    @hookimpl(wrapper=True)
    def probe_device(self) -> Wrapper:
        """Tables for a device."""
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def domain_alloc(self) -> Wrapper:
        """The root of a domain's tables."""
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def attach_dev(self) -> Wrapper:
        """Tables that lead to the domain's."""
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def map_pages(self) -> Wrapper:
        """The domain's tables."""
        return (yield from self._around())
