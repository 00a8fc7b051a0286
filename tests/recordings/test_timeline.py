"""The order of writes, events and snapshots: scripts played by the model, whose order is known, and what single entries say."""

from __future__ import annotations

import pytest

from iommukit.errors import InputError
from iommukit_oracle.events import ERRNO, SOME_ERROR, Bind, Driver, Grouped, Owned, Presence, errno_of, later_devices, parse_events
from iommukit_oracle.recording import Recording
from iommukit_oracle.replay import replay
from iommukit_oracle.timeline import Mark, Snapshot, Tried, Writes, snapshot_spans, timeline, write_blocks
from tests.recordings import guest
from tests.recordings.conftest import shipped

CMDLINES = ("", "iommu.passthrough=1", "iommu.strict=1", "iommu.strict=0", "iommu=pt")
TEMPLATES = {
    ("amd_vi", guest.sysfs_x86): "{}-amd_vi-pt0-np-7.2-nonpcache",
    ("amd_vi", guest.hotplug_x86): "{}-amd_vi-pt0-np-7.2-nonpcache",
    ("amd_vi", guest.unknown_script): "{}-amd_vi-strict0",
    ("amd_vi", guest.untrusted_x86): "{}-amd_vi-untrusted-lazy-7.2-nonpcache",
    ("amd_vi", guest.rmrr): "{}-amd_vi-ivmd-lazy-7.2-nonpcache",
    ("intel_vtd", guest.sysfs_x86): "{}-intel_vtd-none",
    ("intel_vtd", guest.hotplug_x86): "{}-intel_vtd-none-cm",
    ("intel_vtd", guest.unknown_script): "{}-intel_vtd-none-smhw",
    ("intel_vtd", guest.untrusted_x86): "{}-intel_vtd-untrusted-lazy",
    ("intel_vtd", guest.rmrr): "{}-intel_vtd-rmrr-lazy",
    ("arm_smmu", guest.sysfs_arm): "{}-arm_smmu-none",
    ("s390", guest.sysfs_s390): "{}-s390-none",
}
POSTED = {
    guest.h15_together: ("{}-intel_vtd-h15-pt1", "{}-amd_vi-h15-lazy-7.2-nonpcache"),
    guest.h15_apart: ("{}-intel_vtd-h15-strict1", "{}-amd_vi-h15-lazy-7.2-nonpcache"),
    guest.h15live: ("{}-intel_vtd-h15live-lazy", "{}-amd_vi-h15live-strict1-7.2-nonpcache"),
    guest.vfio: ("{}-intel_vtd-vfio-lazy", "{}-amd_vi-vfio-lazy-7.2-nonpcache"),
    guest.rmrr91: ("{}-intel_vtd-rmrr91-lazy",),
    guest.conflict: ("{}-intel_vtd-conflictnogfx-lazy", "{}-amd_vi-conflictnogfx-lazy-7.2-nonpcache"),
    guest.gfx: ("{}-intel_vtd-gfx-lazy",),
    guest.hpjoin: ("{}-intel_vtd-hpjoin-pt1", "{}-amd_vi-hpjoin-lazy-7.2-nonpcache"),
}
KERNELS = ("6.1", "6.12", "7.2", "rfc-as-posted", "rfc-unconverted")
PLAYED = [
    pytest.param(template.format(kernel), script, id=f"{kernel}-{vendor}-{script.__name__}")
    for kernel in KERNELS
    for (vendor, script), template in TEMPLATES.items()
    if template.format(kernel) in shipped()
]
PLAYED += [
    pytest.param(template.format(kernel), script, id=f"{template.format(kernel)}-{script.__name__}")
    for kernel in ("rfc-as-posted", "rfc-unconverted")
    for script, templates in POSTED.items()
    for template in templates
]


@pytest.mark.parametrize(("template", "script"), PLAYED)
def test_a_played_script_is_put_in_its_order(template, script, registry):
    """Under command lines that were not recorded with these scripts."""
    for options in CMDLINES:
        on = "" if "intel" not in template else "intel_iommu=on,igfx_off " if script is guest.gfx else "intel_iommu=on "
        played = guest.Guest(shipped()[template], f"console=tty quiet {on}{options}", registry)
        script(played)
        recording = played.recording()
        outcome = replay(recording, registry)
        assert [str(difference) for difference in outcome.differences] == [], options
        assert outcome.undecided == []
        writes = sum(seen.kind == "write" for seen in outcome.agreed)
        assert writes == len(recording.writes) > 2


def test_every_kernel_plays():
    assert len(PLAYED) >= 80


# ---- events ----------------------------------------------------------------------------------------------------------


def with_events(*events: str, **changes) -> Recording:
    fields = {"id": "a", "kernel": "6.1", "vendor": "intel_vtd", "arch": "amd64", "cmdline": "", "qemu_args": "", "groups": []}
    return Recording.model_validate({**fields, "events": events, **changes})


def test_events_are_read():
    recording = with_events(
        "@D|0000:00:05.0|",
        "@B|0000:00:05.0|nvme|1:Device or resource busy",
        "@D|0000:00:05.0|vfio-pci",
        "@D|0000:00:05.0|",
        "@HOST|device_del id=hp0",
        "@HP|0000:02:00.0|gone",
        "@HP|0000:02:00.0|timeout-add",
        "@R|vfio|group 6 flags=1 set_container=ok",
        "@R|vfio|set_iommu=ok",
        "@R|vfio|closing",
        "@N|[    3.106332] nvme 0000:00:05.0: Adding to iommu group 3",
    )
    assert parse_events(recording) == [
        Driver("0000:00:05.0", ""),
        Bind("0000:00:05.0", "nvme", "EBUSY", "vfio-pci"),
        Driver("0000:00:05.0", ""),
        Presence("0000:02:00.0", False),
        Owned(6),
        Owned(None),
        Grouped("0000:00:05.0", "nvme", 3, True),
    ]


@pytest.mark.parametrize("event", ["@D|0000:00:05.0", "@B|0000:00:05.0|nvme|x", "@F|boot|nvme", "@HP|"])
def test_an_event_that_cannot_be_read_is_named(event):
    with pytest.raises(InputError, match=r"^a: events\[1\]: .* is no event$"):
        parse_events(with_events("@D|0000:00:05.0|", event))


def test_error_texts():
    assert errno_of("ok") == "ok"
    assert errno_of("Operation not supported") == "EOPNOTSUPP"
    assert errno_of("error rc=1 (no text)") == SOME_ERROR
    assert all(name.startswith("E") for name in ERRNO.values())


def test_devices_that_come_later():
    recording = with_events(
        "@HP|0000:02:00.0|present",
        "@HP|0000:02:00.0|gone",
        "@HP|0000:02:00.0|present",
        "@D|0000:03:00.0|nvme",
        qmp=[{"cmd": "device_add", "args": {"driver": model}} for model in ("nvme", "e1000e")],
        snapshots={"end": [{"id": 0, "type": "DMA", "devices": ["0000:04:00.0"]}]},
    )
    assert sorted(later_devices(recording)) == [("0000:02:00.0", "nvme"), ("0000:03:00.0", ""), ("0000:04:00.0", "")]


# ---- the order -------------------------------------------------------------------------------------------------------


def kinds(name: str) -> list[str]:
    return [
        item.first.tag if isinstance(item, Writes) else f"[{item.name}]" if isinstance(item, Snapshot) else type(item).__name__
        for item in timeline(shipped()[name])
        if not isinstance(item, Mark)
    ]


def test_everything_is_in_the_order_once():
    for name in ("rfc-as-posted-intel_vtd-h15-pt1", "7.2-arm_smmu-sysfs-lazy", "rfc-as-posted-amd_vi-vfio-lazy-7.2-nonpcache"):
        recording = shipped()[name]
        order = timeline(recording)
        assert [item for item in order if isinstance(item, Writes)] == write_blocks(recording)
        assert [item.name for item in order if isinstance(item, Snapshot)] == list(recording.snapshots)
        tests = [item for item in order if isinstance(item, Tried)]
        assert len(tests) == sum(event.startswith("@F|") for event in recording.events)


def test_functional_tests_follow_their_writes():
    order = [item for item in timeline(shipped()["rfc-as-posted-intel_vtd-h15-strict1"]) if isinstance(item, Writes | Tried)]
    wrote: dict[str, str] = {}
    for item in order:
        if isinstance(item, Writes):
            wrote.update(dict.fromkeys(item.first.members, item.entries[-1].wrote))
        elif item.test.tag in ("after-DMA", "after-identity", "after-DMA-FQ", "after-auto"):
            assert item.test.tag == f"after-{wrote[item.device]}"
        elif item.test.tag == "boot":
            assert wrote == {}
    assert order[-1].rescanned == ("0000:00:04.0",)


def test_what_vfio_owned_is_between_its_claim_and_its_release():
    order = kinds("rfc-as-posted-intel_vtd-vfio-lazy")
    claim, release = (number for number, kind in enumerate(order) if kind == "Owned")
    assert order.index("vfio-bound-not-owned") < claim < order.index("vfio-owned") < order.index("[owned-removed]")
    assert order.index("[owned-removed]") < order.index("[owned-back]") < release < order.index("[end]")
    joined = kinds("rfc-as-posted-amd_vi-vfiojoini-lazy-7.2-nonpcache")
    assert joined.index("joined-owned") < len(joined) - 1 - joined[::-1].index("Owned") < joined.index("joined-released")


def test_drivers_that_were_loaded_come_before_binds_that_followed_them():
    order = [item for item in timeline(shipped()["6.1-arm_smmu-none"]) if isinstance(item, Driver | Bind)]
    assert [item.device[5:] for item in order[:5]] == ["00:05.0", "01:00.0", "00:04.0", "00:0a.0", "00:03.0"]


def test_snapshots_stand_where_the_script_has_them():
    order = kinds("6.12-intel_vtd-hotplug-lazy")
    assert order.index("[h4-other-device-added]") < order.index("edu-identity") < order.index("[h5-edu-removed]")
    assert order.index("[h7-one-member-left]") < order.index("half-group") < order.index("[h8-member-back]")


def test_a_script_that_nobody_knows_leaves_the_order_to_the_state():
    blocks = write_blocks(shipped()["6.12-intel_vtd-hotplug-lazy"])
    assert snapshot_spans(blocks, ["one", "end"]) == [(0, 3), (3, 3)]
    assert snapshot_spans(blocks, ["h1-added", "h2-identity"]) == [(0, 0), (1, 1)]
    assert snapshot_spans(blocks, ["h2-identity", "h1-added"]) == [(0, 3), (0, 3)]
