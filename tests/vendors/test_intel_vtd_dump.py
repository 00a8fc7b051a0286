"""Decoding a VT-d unit's tables out of memory."""

from __future__ import annotations

import pytest

from iommukit.dma.mapping import iommu_map
from iommukit.domain import DomainType, Prot
from iommukit.errors import InputError
from iommukit.hw.walk import Mode
from tests.vendors.intel_vtd import OPS
from tests.vendors.test_intel_vtd_hardware import BASE, FIRST, SCALABLE, Setup
from tests.vendors.vtd_rig import CONTEXT, DID, ROOT, SID, TOP, Rig

RW = Prot.READ | Prot.WRITE


def walks(setup, requester=None, iova=None, **roots):
    roots = {"rtaddr": setup.recorder.read(BASE + 0x20, 8), **roots}
    return list(OPS.walk_tables(memory=setup.memory, roots=roots, requester=requester, iova=iova))


def test_the_first_root_is_the_one_that_is_needed():
    assert next(iter(OPS.table_roots())) == "rtaddr"


@pytest.mark.parametrize("hardware", [None, {"address_width": 57}, SCALABLE, FIRST])
def test_what_was_mapped_is_found(hardware):
    setup = Setup("7.2", hardware)
    domain = setup.attached()
    maps = [(0x1000, 0x40_0000, 0x3000, RW), (0x4000, 0x50_0000, 0x1000, Prot.READ), (0x4000_0000, 0, 0x60_0000, RW)]
    for iova, physical, size, prot in maps:
        iommu_map(domain, iova, physical, size, prot)
    other = setup.attached("second", DomainType.IDENTITY)
    assert other.type is DomainType.IDENTITY
    nic, second = walks(setup)
    assert (nic.requester, nic.mode, second.requester, second.mode) == (4 << 3, Mode.TRANSLATED, 5 << 3, Mode.PASS_THROUGH)
    found = [(leaf.iova, leaf.physical, leaf.size, leaf.read, leaf.write) for leaf in nic.pages]
    assert found == [(iova, physical, size, True, bool(prot & Prot.WRITE)) for iova, physical, size, prot in maps]
    assert nic.domain == domain.space.uses[setup.unit.state.running].number


def test_the_way_to_one_address():
    setup = Setup("7.2", FIRST)
    domain = setup.attached()
    iommu_map(domain, 0x20_0000, 0x60_0000, 0x20_0000, RW)
    (walk,) = walks(setup, requester=4 << 3, iova=0x23_4567)
    assert [step.name for step in walk.steps] == ["root entry", "context entry", "PASID directory entry", "PASID table entry"]
    assert walk.steps[1].meaning.startswith("P PDTS=0x2 PASIDDIRPTR=0x")
    assert f"PGTT=0x1 DID={walk.domain:#x} " in walk.steps[3].meaning
    (leaf,) = walk.pages
    assert [step.name for step in leaf.path] == ["FS-PML4E", "FS-PDPE", "FS-PDE"]
    assert (leaf.iova, leaf.physical, leaf.size) == (0x20_0000, 0x60_0000, 0x20_0000)
    assert leaf.path[-1].meaning == "P, R/W, U/S, A, D, PS, address 0x600000"
    (walk,) = walks(setup, requester=4 << 3, iova=0x40_0000)
    (leaf,) = walk.pages
    assert (leaf.read, leaf.write, leaf.reason) == (False, False, "not present")


def test_what_is_wrong_is_said():
    rig = Rig()
    rig.map(0x1000, 0x40_0000, 3 | 1 << 11)
    rig.context(TOP | 1 | 3 << 2, sid=SID + 1)
    rig.context(1 | 2 << 2, sid=SID + 2)
    bare = {"cap": rig.words.cap, "ecap": rig.words.ecap}

    def look(requester, **known):
        return list(OPS.walk_tables(memory=rig.memory, roots={"rtaddr": ROOT, **known}, requester=requester, iova=None))

    assert [walk.requester for walk in look(None)] == [SID, SID + 1, SID + 2]
    ((leaf,),) = [list(walk.pages) for walk in look(SID)]
    assert (leaf.iova, leaf.physical, leaf.reason, leaf.path[-1].meaning) == (0x1000, 0x40_0000, "", "R, W, SNP, address 0x400000")
    ((leaf,),) = [list(walk.pages) for walk in look(SID, **bare)]
    assert leaf.reason == "reserved bits are set (reason 0xc)"
    (bad,) = look(SID + 1)
    assert (bad.mode, bad.reason) == (Mode.BAD, "context invalid (reason 0x3)")
    (absent,) = look(9)
    assert (absent.mode, absent.reason) == (Mode.BLOCKED, "context absent (reason 0x2)")
    (blocked,) = look(1 << 8)
    assert (blocked.mode, blocked.reason) == (Mode.BLOCKED, "root absent (reason 0x1)")
    rig.put(CONTEXT + SID * 16, TOP | 1, 5 | DID << 8)
    (deep,) = look(SID)
    assert deep.mode is Mode.BAD


def test_a_supervisor_page_of_the_first_stage():
    rig = Rig(scalable=True, smts=True, width=48)
    rig.pasid(1 | 1 << 6, DID, TOP)
    rig.map(0x1000, 0x40_0000, 1 | 2, table_flags=7)
    (walk,) = OPS.walk_tables(memory=rig.memory, roots={"rtaddr": ROOT | 1 << 10}, requester=SID, iova=None)
    (leaf,) = walk.pages
    assert leaf.reason == "U/S is clear, and requests without a PASID have user privilege"


def test_roots_that_cannot_be():
    rig = Rig()
    for rtaddr, words in ((ROOT | 2 << 10, "table mode 2"), (1 << 40, "no memory at 0x10000000000")):
        with pytest.raises(InputError, match=words):
            list(OPS.walk_tables(memory=rig.memory, roots={"rtaddr": rtaddr}, requester=None, iova=None))
