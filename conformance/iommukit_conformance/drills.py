"""Drills: short runs that expect nothing of their own and are only watched, on machines that every rule needs.

A machine is what the vendor makes of it: where it cannot realise one (no ports, no example for a role), the drill is not
applicable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from iommukit.scenario.load import load_scenario
from iommukit.scenario.model import Scenario
from iommukit_conformance.lab import ISOLATED, NIC, SECOND, Spec

PORT: Spec = {"name": "port", "id": "1b36:000c", "class": "060400", "kind": "root_port"}
OUTSIDE: Spec = {**PORT, "external_facing": True}
GUEST: Spec = {"id": "8086:10d3", "class": "020000", "kind": "endpoint", "parent": "port"}
TWO_GUESTS: Sequence[Spec] = (
    {**GUEST, "name": "nic", "address": "0000:01:00.0", "multifunction": True},
    {**GUEST, "name": "second", "address": "0000:01:00.1", "multifunction": True},
)

MACHINES: Mapping[str, Sequence[Spec]] = {
    "alone": (NIC,),
    "two": (NIC, SECOND),
    "behind-port": ({**PORT, "acs": ISOLATED}, {**GUEST, "name": "nic"}),
    "sharing": (PORT, *TWO_GUESTS),
    "outside": ({**OUTSIDE, "acs": ISOLATED}, {**GUEST, "name": "nic"}),
    "outside-sharing": (OUTSIDE, *TWO_GUESTS),
    "needs-identity": ({"name": "nic", "role": "identity-required"}, SECOND),
    "needs-translation": ({"name": "nic", "role": "strict-required"}, SECOND),
    "wishes-queue": ({"name": "nic", "role": "lazy-preferred"}, SECOND),
    "no-queue": ({"name": "nic", "role": "no-lazy"}, SECOND),
    "direct": ({"name": "nic", "role": "direct-region"}, SECOND),
    "relaxable": ({"name": "nic", "role": "relaxable-region"}, SECOND),
}

BOOTS: Sequence[Spec] = (
    {"kconfig": "lazy"},
    {"kconfig": "strict"},
    {"kconfig": "passthrough"},
    {"kconfig": "lazy", "cmdline": "iommu.strict=1"},
    {"kconfig": "passthrough", "memory_encryption": True},
)


def _write(*types: str) -> list[Spec]:
    return [{"write": {"group_of": "nic", "type": type}} for type in types]


BIND: Spec = {"bind": {"device": "nic", "driver": "e1000e"}}
UNBIND: Spec = {"unbind": {"device": "nic"}}
CLAIM: Spec = {"claim": {"group_of": "nic"}}
RELEASE: Spec = {"release": {"group_of": "nic"}}
REMOVE: Spec = {"remove": {"device": "nic"}}
ADD: Spec = {"add": {"device": "nic"}}
DMA: Spec = {"dma": {"device": "nic", "map": "12KiB"}}
READ: Spec = {"read": {"group_of": "nic", "file": "reserved_regions"}}


def _fail(hook: str, error: str) -> Spec:
    return {"inject": {"hook": hook, "error": error}}


SCRIPTS: Mapping[str, Sequence[Spec]] = {
    "writes": _write("DMA", "DMA", "DMA-FQ", "identity", "auto", "DMA-FQ", "DMA-FQ", "DMA", "identity", "identity", "DMA", "auto"),
    "in-use": [BIND, *_write("DMA-FQ", "DMA", "identity", "auto"), UNBIND, *_write("DMA", "auto")],
    "owned": [*_write("DMA"), CLAIM, *_write("identity", "DMA-FQ"), RELEASE, *_write("auto"), CLAIM, RELEASE, READ],
    "comes-and-goes": [REMOVE, ADD, *_write("DMA", "auto"), REMOVE, ADD, READ],
    "moves-data": [BIND, DMA, *_write("DMA-FQ"), DMA, UNBIND, *_write("DMA", "identity"), BIND, DMA, CLAIM, DMA],
    "trouble": [
        *_write("DMA"),
        _fail("attach_dev", "ENOMEM"),
        *_write("identity", "auto"),
        _fail("domain_alloc", "ENOMEM"),
        *_write("DMA", "auto", "DMA"),
        _fail("flush_queue_options", "ENOMEM"),
        *_write("DMA-FQ", "auto"),
    ],
}


def _documents() -> Iterator[dict[str, Any]]:
    for place, (machine, devices) in enumerate(MACHINES.items()):
        for index, (script, steps) in enumerate(SCRIPTS.items()):
            # Each script meets each way of booting on some machine.
            boot = BOOTS[(place + index) % len(BOOTS)]
            yield {"scenario": f"drill.{machine}.{script}", "machine": {"devices": devices}, "boot": boot, "steps": steps}
        for number, boot in enumerate(BOOTS):
            yield {"scenario": f"drill.{machine}.boot-{number}", "machine": {"devices": devices}, "boot": boot}


@lru_cache(maxsize=1)
def drills() -> tuple[Scenario, ...]:
    """All drills."""
    return tuple(load_scenario(document, source=document["scenario"]) for document in _documents())
