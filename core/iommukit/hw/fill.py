"""Filling tables: the entries of adjoining pages, written from a template."""

from __future__ import annotations

from collections.abc import Iterator
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

    def entries(self) -> Iterator[int]:
        """All entries, one by one."""
        for page in range(self._paddr, self._paddr + self.slots // self._repeat * self._pgsize, self._pgsize):
            entry = self._format.encode_address(page) | self._bits
            for _ in range(self._repeat):
                yield entry

    def write(self, view: Words, index: int, count: int, slot: int) -> None:
        """Write ``count`` entries to ``index``, beginning with the ``slot``-th of all: a multiple of the repetition."""
        encode, template = self._format.encode_address, self._template()
        for done in range(0, count, CHUNK):
            length = min(CHUNK, count - done)
            paddr = self._paddr + (slot + done) // self._repeat * self._pgsize
            target = view[index + done : index + done + length]
            first = int(encode(paddr))
            span = int(template[length - 1])
            if int(encode(paddr + span)) - first == span:
                np.add(template[:length], np.uint64(first | self._bits), out=target)
            else:  # the format splits addresses, and these lie in several parts
                target[:] = encode(template[:length] + np.uint64(paddr)) | self._bits

    def _template(self) -> Words:
        """What the addresses of ``CHUNK`` entries are beyond the first."""
        template = self._templates.get((self._pgsize, self._repeat))
        if template is None:
            template = np.arange(CHUNK, dtype=np.uint64) // np.uint64(self._repeat) * np.uint64(self._pgsize)
            self._templates[self._pgsize, self._repeat] = template
        return template
