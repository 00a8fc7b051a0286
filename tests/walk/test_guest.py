"""Tables that a real Linux wrote: what is decoded from a guest's memory is what its kernel says it mapped, both ways."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from iommukit.cli.main import cli
from iommukit.errors import InputError
from iommukit_oracle.guest.boot import MACHINES
from iommukit_oracle.guest.mappings import CASES, NIC, PAGE, decoded_pages, mapped_guest

BOOTED = ("intel", "arm", "amd")
"""Others are in ``data``: a boot takes up to 10 seconds."""


@pytest.mark.parametrize("name", BOOTED)
def test_what_is_decoded_is_what_the_kernel_mapped(name: str, tmp_path: Path) -> None:
    try:
        guest = mapped_guest(tmp_path, CASES[name])
    except InputError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no guest can be booted here: {error}")
    assert len(guest.mapped) > 200
    words = ["walk", str(guest.dump), "--vendor", guest.vendor]
    words += [word for register, value in guest.roots.items() for word in ("--root", f"{register}={value:#x}")]
    result = CliRunner().invoke(cli, [*words, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["arch"] == MACHINES[CASES[name].machine].arch
    decoded = decoded_pages(answer)
    assert decoded - guest.mapped == {}
    assert guest.mapped - decoded == {}
    # One of them by its address, with all entries on the way.
    (device,) = (device for device in answer["devices"] if device["device"] == NIC)
    last = device["ranges"][-1]
    address = int(last["iova"], 0) + last["size"] - 1
    (one,) = json.loads(CliRunner().invoke(cli, [*words, "--device", NIC, "--iova", hex(address), "--json"]).stdout)["devices"]
    (page,) = one["ranges"]
    assert (int(page["iova"], 0), int(page["physical"], 0)) in guest.mapped
    assert int(page["iova"], 0) == address & -PAGE
    assert len(page["entries"]) >= 3
