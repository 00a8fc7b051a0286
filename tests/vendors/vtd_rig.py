"""A VT-d unit with tables written by hand, word by word, from the specification's figures."""

from __future__ import annotations

import numpy as np

from iommukit.hw.memory import PhysicalMemory
from iommukit.hw.platform import UNMAPPED
from iommukit_intel_vtd.capabilities import Capabilities
from iommukit_intel_vtd.model.unit import VtdUnit

CAP, ECAP, GCMD, GSTS, RTADDR, CCMD, FSTS, FECTL, PMEN = 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34, 0x38, 0x64
IQH, IQT, IQA, IQERCD, IVA, IOTLB, FRCD = 0x80, 0x88, 0x90, 0xB0, 0xF0, 0xF8, 0x220
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26
ROOT, CONTEXT, QUEUE, STATUS, DIRECTORY, PASIDS, TOP = (0x10_0000 + 0x1_0000 * n for n in range(7))
POOL = 0x20_0000
SID = 3 << 3
DID = 7
READ, WRITE, LARGE = 1, 2, 1 << 7


def words(**options):
    """Capability words: those of QEMU, with bits set: ``sc=True`` and so on."""
    cap, ecap = Capabilities().cap, Capabilities().ecap
    if width := options.pop("width", None):
        levels = (width - 12) // 9
        cap = cap & ~(0x1F << 8 | 0x3F << 16 | 1 << 60) | ((1 << levels - 1) - 2) << 8 | width - 1 << 16 | (width == 57) << 60
    for name, value in options.items():
        word, low, size = BITS[name]
        mask = (1 << size) - 1 << low
        if word == "cap":
            cap = cap & ~mask | int(value) << low
        else:
            ecap = ecap & ~mask | int(value) << low
    return Capabilities(cap, ecap)


BITS = {
    "cm": ("cap", 7, 1),
    "sslps": ("cap", 34, 4),
    "psi": ("cap", 39, 1),
    "nfr": ("cap", 40, 8),
    "mamv": ("cap", 48, 6),
    "fs1gp": ("cap", 56, 1),
    "plmr": ("cap", 5, 1),
    "phmr": ("cap", 6, 1),
    "dt": ("ecap", 2, 1),
    "pt": ("ecap", 6, 1),
    "sc": ("ecap", 7, 1),
    "srs": ("ecap", 31, 1),
    "pasid": ("ecap", 40, 1),
    "pds": ("ecap", 42, 1),
    "smts": ("ecap", 43, 1),
    "ssts": ("ecap", 46, 1),
    "fsts": ("ecap", 47, 1),
    "smpwc": ("ecap", 48, 1),
    "rps": ("ecap", 49, 1),
}
SCALABLE = {"smts": True, "ssts": True, "fsts": True, "srs": True, "pasid": True, "smpwc": True, "width": 48, "fs1gp": True}


class Rig:
    """A unit with one requester, ``SID``, whose tables begin at ``TOP``."""

    def __init__(self, *, address_bits=39, scalable=False, start=True, **options):
        self.words = words(**options)
        self.memory = PhysicalMemory(64 << 20)
        self.unit = VtdUnit(self.memory, self.words, address_bits)
        self.scalable = scalable
        self.levels = (options.get("width", 39) - 12) // 9
        self.tail = self.sequence = 0
        self._next = POOL
        if scalable:
            self.put(ROOT, CONTEXT | 1)
            self.put(CONTEXT + SID * 32, DIRECTORY | 1)
            self.put(DIRECTORY, PASIDS | 1)
            self.pasid(TOP | 1 | self.levels - 2 << 2 | 2 << 6, DID)
        else:
            self.put(ROOT, CONTEXT | 1)
            self.context(TOP | 1, self.levels - 2 | DID << 8)
        if start:
            self.start()

    # ---- memory

    def put(self, address, *values):
        for number, value in enumerate(values):
            self.memory.set_word(address + 8 * number, value)

    def context(self, low, high=None, sid=SID):
        self.put(CONTEXT + sid * 16, low, self.levels - 2 | DID << 8 if high is None else high)

    def pasid(self, *values, pasid=0):
        self.put(PASIDS + pasid * 64, *(*values, 0, 0, 0, 0, 0, 0, 0)[:8])

    def page(self):
        self._next += 0x1000
        return self._next - 0x1000

    def map(self, iova, physical, flags=READ | WRITE, *, level=1, top=TOP, table_flags=READ | WRITE):
        """Write a leaf at a level; returns where it stands."""
        table = top
        for at in range(self.levels, level, -1):
            entry = table + 8 * (iova >> 3 + 9 * at & 511)
            if not self.memory.word(entry):
                self.put(entry, self.page() | table_flags)
            table = self.memory.word(entry) & 0x3FF_F000
        entry = table + 8 * (iova >> 3 + 9 * level & 511)
        self.put(entry, physical | flags | (LARGE if level > 1 else 0) if flags else 0)
        return entry

    # ---- registers

    def read(self, offset, size=4):
        return self.unit.read(offset, size)

    def write(self, offset, value, size=4):
        self.unit.write(offset, size, value)

    def command(self, bit, on=True):
        status = self.read(GSTS) & ~SRTP
        self.write(GCMD, status | bit if on else status & ~bit)

    def start(self):
        self.write(RTADDR, ROOT | self.scalable << 10, 8)
        self.command(SRTP)
        self.write(IQT, 0, 8)
        self.write(IQA, QUEUE | self.scalable << 11, 8)
        self.command(QIE)
        self.command(TE)

    def submit(self, *descriptors):
        """Queue descriptors with a wait behind them; whether that was reached."""
        self.sequence += 1
        step = 32 if self.scalable else 16
        for low, high in (*descriptors, (self.sequence << 32 | 1 << 5 | 5, STATUS)):
            self.put(QUEUE + self.tail, low, high)
            self.tail = (self.tail + step) % 0x1000
        self.write(IQT, self.tail, 8)
        return self.memory.word(STATUS) == self.sequence

    def fault(self):
        """The recorded fault: reason, page, requester, direction; ``None`` without.  It is cleared."""
        low, high = self.read(FRCD, 8), self.read(FRCD + 8, 8)
        if not high >> 63:
            return None
        self.write(FRCD + 12, 1 << 31)
        self.write(FSTS, 1)
        return high >> 32 & 0xFF, low, high & 0xFFFF, "read" if high >> 62 & 1 else "write"

    # ---- requests

    def reach(self, iova, write=False, pasid=None, sid=SID):
        """Where a request goes, asked for alone."""
        return self.unit.translate(sid, iova, write=write, pasid=pasid)

    def reach_many(self, iova, write=False, pasid=None, sid=SID, count=64):
        """The same, in a batch of equal requests."""
        found = self.unit.translate_many(sid, np.full(count, iova, dtype=np.uint64), write=write, pasid=pasid)
        assert (found == found[0]).all()
        return None if found[0] == UNMAPPED else int(found[0])

    def why(self, iova, write=False, pasid=None, many=False):
        """The reason for which a request is stopped; ``None`` where it is not."""
        reached = (self.reach_many if many else self.reach)(iova, write, pasid)
        fault = self.fault()
        assert (reached is None) == (fault is not None)
        if fault is None:
            return None
        assert fault[1:] == (iova & -0x1000, SID, "write" if write else "read")
        return fault[0]
