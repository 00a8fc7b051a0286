"""What a guest maps, as its trace tells and as it is decoded, without booting it."""

from __future__ import annotations

from collections import Counter

import pytest

from iommukit.errors import InputError
from iommukit_oracle.guest.mappings import decoded_pages, live_pages
from iommukit_oracle.guest.tracing import parse_trace

TRACE = """# tracer: nop
# entries-in-buffer/entries-written: 3/3   #P:1
     insmod-1  [000] d..1.  1.500000: map: IOMMU: iova=0x0000000000001000 - 0x0000000000002000 paddr=0x0000000000009000 size=4096
     insmod-1  [000] d..1.  1.500001: map: IOMMU: iova=0x0000000000004000 - 0x0000000000006000 paddr=0x0000000000020000 size=8192
     insmod-1  [000] d..1. 12.000002: unmap: IOMMU: iova=0x0000000000001000 - 0x0000000000002000 size=4096 unmapped_size=4096
""".splitlines()


def test_what_is_mapped_is_what_was_not_unmapped() -> None:
    trace = parse_trace(TRACE)
    assert [(event.time, event.name) for event in trace] == [
        (1_500_000_000, "map"),
        (1_500_001_000, "map"),
        (12_000_002_000, "unmap"),
    ]
    assert live_pages(trace) == Counter([(0x4000, 0x20000), (0x5000, 0x21000)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("written: 3/3", "written: 3/10", "the trace is not complete"),
        ("written: 3/3", "written: 4/4", "3 events were printed"),
        ("# entries", "# events", "this is no trace"),
        (" map: IOMMU", " map: FPGA", "this is no event of the IOMMU layer: insmod-1"),
        (" unmap: IOMMU: iova=0x0000000000001000", " unmap: IOMMU: iova=0x0000000000007000", "an unmap of 0x7000, .* 0 times"),
    ],
)
def test_a_trace_that_cannot_be_relied_on(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        live_pages(parse_trace([line.replace(old, new) for line in TRACE]))


def test_a_fault_has_the_driver_s_and_the_device_s_name() -> None:
    head = "# entries-in-buffer/entries-written: 1/1   #P:1"
    line = "  irq/24-1  [000] d.h1.  2.000001: io_page_fault: IOMMU:e1000e 0000:00:04.0 iova=0x0000000000001000 flags=0x0001"
    (event,) = parse_trace([head, line])
    assert event.fields == {"driver": "e1000e", "device": "0000:00:04.0", "iova": "0x0000000000001000", "flags": "0x0001"}


def test_a_domain_of_several_devices_counts_once() -> None:
    device = {"mode": "translated", "domain": 1, "device": "x", "ranges": [{"iova": "0x1000", "physical": "0x2000", "size": 8192}]}
    other = device | {"domain": 2}
    found = decoded_pages({"devices": [device, device, other, {"mode": "pass-through", "domain": 3, "ranges": []}]})
    assert found == Counter({(0x1000, 0x2000): 2, (0x2000, 0x3000): 2})
    with pytest.raises(InputError, match="x has a bad entry for 0x1000: gone"):
        decoded_pages({"devices": [device | {"ranges": [{"iova": "0x1000", "physical": None, "size": 1, "reason": "gone"}]}]})
