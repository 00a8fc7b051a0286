"""Reserved regions: order, merging and sysfs lines."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from iommukit.regions import RegionType, ReservedRegion, merge_regions

REGIONS = st.builds(
    lambda start, size, kind: ReservedRegion(start, start + size, kind),
    st.integers(0, 60),
    st.integers(0, 20),
    st.sampled_from(list(RegionType)),
)


def _covered(regions: list[ReservedRegion]) -> dict[RegionType, set[int]]:
    covered: dict[RegionType, set[int]] = {}
    for region in regions:
        covered.setdefault(region.type, set()).update(range(region.start, region.end + 1))
    return covered


@given(st.lists(REGIONS, max_size=12))
def test_merging_keeps_the_bytes_and_leaves_no_overlap_within_a_type(regions: list[ReservedRegion]) -> None:
    merged = merge_regions(regions)
    assert _covered(merged) == _covered(regions)
    assert [region.start for region in merged] == sorted(region.start for region in merged)
    for kind in RegionType:
        mine = [region for region in merged if region.type is kind]
        assert all(one.end < other.start for one, other in pairwise(mine))


def test_touching_regions_stay_apart_and_types_are_not_mixed() -> None:
    merged = merge_regions(
        [
            ReservedRegion(0x2000, 0x2FFF, RegionType.DIRECT),
            ReservedRegion(0x1000, 0x1FFF, RegionType.DIRECT),
            ReservedRegion(0x1800, 0x27FF, RegionType.DIRECT_RELAXABLE),
            ReservedRegion(0x2800, 0x3FFF, RegionType.DIRECT),
            ReservedRegion(0xFEE00000, 0xFEEFFFFF, RegionType.SW_MSI),
        ]
    )
    assert [region.sysfs for region in merged] == [
        "0x0000000000001000 0x0000000000001fff direct",
        "0x0000000000001800 0x00000000000027ff direct-relaxable",
        "0x0000000000002000 0x0000000000003fff direct",
        "0x00000000fee00000 0x00000000feefffff msi",
    ]
