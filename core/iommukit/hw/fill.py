"""Filling tables: the entries of adjoining pages, written from a template."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from iommukit.hw.format import Format

if TYPE_CHECKING:
    from iommukit.hw.memory import Words

CHUNK = 1 << 16
"""So many entries are written at once: the template of them stays in the cache."""


class Pages:
    """The entries of adjoining pages, to be written in pieces."""

    _templates: dict[tuple[int, int], Words] = {}

    def __init__(self, format: Format, paddr: int, pgsize: int, pgcount: int, repeat: int, bits: int) -> None:
        self.slots = pgcount * repeat
        self._format = format
        self._paddr, self._pgsize, self._repeat, self._bits = paddr, pgsize, repeat, bits
        self._first = int(format.encode_address(paddr))
        span = pgsize * (pgcount - 1)
        self._linear = int(format.encode_address(paddr + span)) - self._first == span
        template = self._templates.get((pgsize, repeat))
        if template is None:
            template = np.arange(CHUNK, dtype=np.uint64) // np.uint64(repeat) * np.uint64(pgsize)
            self._templates[pgsize, repeat] = template
        self._template = template

    def write(self, view: Words, index: int, count: int, slot: int) -> None:
        """Write ``count`` entries to ``index``, beginning with the ``slot``-th of all: a multiple of the repetition."""
        for done in range(0, count, CHUNK):
            length = min(CHUNK, count - done)
            offset = (slot + done) // self._repeat * self._pgsize
            target = view[index + done : index + done + length]
            if self._linear:
                np.add(self._template[:length], np.uint64(self._first + offset | self._bits), out=target)
            else:
                target[:] = self._format.encode_address(self._template[:length] + np.uint64(self._paddr + offset)) | self._bits
