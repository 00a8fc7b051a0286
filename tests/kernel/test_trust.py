"""Both generations of the rule of trust, over a discrete and an integrated controller."""

from __future__ import annotations

from typing import Any

import pytest

from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import start_system
from iommukit.machine.model import BootSpec, Machine
from tests.kernel.toy import toy_registry


def _untrusted(kernel: str, devices: list[dict[str, Any]], arch: str = "x86_64") -> set[str]:
    registry, toy = toy_registry()
    machine = Machine.model_validate({"machine": "trust", "arch": arch, "devices": devices})
    system = start_system(get_kernel(kernel), toy, registry, machine, BootSpec())
    return {device.name for device in system.devices.values() if device.untrusted}


DISCRETE = [
    {"name": "rp", "address": "0000:00:1c.0", "kind": "root_port", "external_facing": True},
    {"name": "up", "address": "0000:01:00.0", "kind": "upstream_port", "parent": "rp"},
    {"name": "down0", "address": "0000:02:00.0", "kind": "downstream_port", "parent": "up"},
    {"name": "nhi", "address": "0000:03:00.0", "parent": "down0"},
    {"name": "down1", "address": "0000:02:01.0", "kind": "downstream_port", "parent": "up"},
    {"name": "far-up", "address": "0000:04:00.0", "kind": "upstream_port", "parent": "down1"},
    {"name": "far-down", "address": "0000:05:00.0", "kind": "downstream_port", "parent": "far-up"},
    {"name": "dock", "address": "0000:06:00.0", "parent": "far-down"},
]
INTEGRATED = [
    {"name": "rp", "address": "0000:00:07.0", "id": "8086:9a23", "kind": "root_port", "external_facing": True},
    {"name": "up", "address": "0000:01:00.0", "kind": "upstream_port", "parent": "rp"},
    {"name": "inside", "address": "0000:00:02.0", "kind": "integrated_endpoint"},
]
OLD, NEW = ("6.1", "rfc"), ("6.1.192", "6.12", "7.2", "rfc-as-posted", "rfc-unconverted")


@pytest.mark.parametrize("kernel", OLD)
def test_old_rule_distrusts_everything_below(kernel: str) -> None:
    assert _untrusted(kernel, DISCRETE) == {"up", "down0", "nhi", "down1", "far-up", "far-down", "dock"}


@pytest.mark.parametrize("kernel", NEW)
def test_new_rule_trusts_the_discrete_controller_itself(kernel: str) -> None:
    assert _untrusted(kernel, DISCRETE) == {"far-up", "far-down", "dock"}


@pytest.mark.parametrize("kernel", NEW)
@pytest.mark.parametrize("how", ["known root port", "firmware property"])
def test_new_rule_knows_integrated_controllers(kernel: str, how: str) -> None:
    devices = [dict(device) for device in INTEGRATED]
    if how == "firmware property":
        devices[0].update({"id": "8086:7eb2", "usb4_host_interface": True})
    assert _untrusted(kernel, devices) == {"up"}
    plain = [dict(device) for device in INTEGRATED]
    plain[0]["id"] = "1b36:000c"
    assert _untrusted(kernel, plain) == set(), "a switch directly below is a discrete controller's own"


@pytest.mark.parametrize("kernel", [*OLD, *NEW])
def test_elsewhere_only_the_old_rule_marks(kernel: str) -> None:
    below = {"up", "down0", "nhi", "down1", "far-up", "far-down", "dock"}
    assert _untrusted(kernel, DISCRETE, arch="aarch64") == (below if kernel in OLD else set())


@pytest.mark.parametrize("kernel", [*OLD, *NEW])
def test_endpoint_directly_below_an_external_port(kernel: str) -> None:
    devices = [DISCRETE[0], {"name": "nic", "address": "0000:01:00.0", "parent": "rp"}]
    assert _untrusted(kernel, devices) == {"nic"}
