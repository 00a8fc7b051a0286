"""``iommukit oracle hardware``."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iommukit.cli.main import cli
from iommukit.hw.platform import ModelPlatform
from iommukit.hw.platforms import platform_factory, platform_names
from iommukit.report.hardware import Examined, HardwareCase, hardware_page
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import Verdict
from iommukit_oracle.hardware.qemu import find
from tests.report.toy_vendor import toy_registry

from .conftest import need

VENDORS = {vendor.name: vendor.declaration.arch[0] for vendor in VendorRegistry.installed()}


def call(*args: str, registry: VendorRegistry | None = None) -> Result:
    return CliRunner().invoke(cli, ["oracle", "hardware", *args], obj=registry)


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_probe(vendor: str) -> None:
    need(VENDORS[vendor])
    result = call("--probe", "--vendor", vendor)
    release = re.escape(find(VENDORS[vendor]).release)
    assert re.fullmatch(rf"{vendor} on QEMU {release}( \(also [\w, -]+\))?: 1 case, 1 PASS\n", result.output)
    assert result.exit_code == 0


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    need("x86_64")
    result = call("--vendor", "intel_vtd", "--kernel", "6.1", "--case", "PT-12", "--case", "a_page_is_gone", "--json")
    (vendor,) = json.loads(result.output)["vendors"]
    assert vendor["hardware"] == f"QEMU {find('x86_64').release}"
    assert {"four-levels", "caching-mode", "scalable"} <= set(vendor["variants"])
    assert [(case["rule"], case["kernel"], case["outcome"]) for case in vendor["cases"]] == [
        ("PT-12", "6.1", "PASS"),
        ("TLB-01", "6.1", "PASS"),
    ]


def test_the_model_by_the_same_command() -> None:
    result = call("--vendor", "amd_vi", "--on", "model", "--kernel", "7.2", "--case", "PT-12", "--full")
    assert result.output.splitlines()[0] == "amd_vi on model (also no NpCache): 1 case, 1 PASS"
    assert result.output.splitlines()[1].split() == ["PASS", "PT-12", "read", "and", "write", "7.2"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--on", "silicon"), "no hardware 'silicon'; installed: model, qemu"),
        (("--case", "frobnicate"), "no hardware case has 'frobnicate' in its rule or name"),
        (("--vendor", "acme"), "no vendor 'acme'; installed: "),
        (("--kernel", "5.4"), "no kernel '5.4'"),
    ],
)
def test_bad_input(args: tuple[str, ...], message: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_interrupt_that_python_drops_is_heard_after_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a callback of the garbage collector raises is ignored, and hypothesis has one."""
    seen = []

    def interrupted(case: object, lab: object) -> Verdict:
        seen.append(case)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return Verdict(Outcome.PASS)

    monkeypatch.setattr("iommukit_conformance.case.decide", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = call("--vendor", "s390", "--on", "model")
    assert result.exit_code == 130
    assert result.stderr.split() == ["iommukit:", "interrupted"]
    assert len(seen) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_qemu_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call("--vendor", "s390")
    assert result.exit_code == 2
    assert result.stderr.startswith("iommukit: qemu-system-s390x is not on the path; Debian has it in the package qemu-system-")
    assert len(result.stderr.splitlines()) == 1


def test_a_vendor_without_a_machine() -> None:
    toys = toy_registry()
    result = call(registry=toys)
    assert result.exit_code == 0
    assert all(line.endswith(" names no machine of QEMU") for line in result.output.splitlines() if line)
    result = call("--vendor", toys.names()[0], registry=toys)
    assert result.exit_code == 2
    assert result.stderr == f"iommukit: {toys.names()[0]} names no machine of QEMU\n"


def test_the_page() -> None:
    cases = [
        HardwareCase("PT-01", "first_things", kernel, Outcome.FAIL, findings=("one", "two", "three", "four"))
        for kernel in ("6.1", "7.2")
    ]
    cases.append(HardwareCase("FAULT-01", "second", "7.2", Outcome.XFAIL, "never written", ("nothing told",)))
    cases.append(HardwareCase("PT-02", "third", "7.2", Outcome.PASS))
    examined = Examined("acme", "QEMU 7.2", variants=("wide", "deep"), cases=cases)
    assert examined.bad
    assert hardware_page([examined, Examined("none", "qemu", "has no machine")]).lines() == [
        "acme on QEMU 7.2 (also wide, deep): 4 cases, 1 PASS, 2 FAIL, 1 XFAIL",
        "  FAIL      PT-01     first things  6.1, 7.2",
        "                      one",
        "                      two",
        "                      three",
        "                      and 1 more",
        "  XFAIL     FAULT-01  second  7.2",
        "                      never written",
        "                      nothing told",
        "",
        "none on qemu: N/A  has no machine",
    ]
    assert not Examined("acme", "QEMU 7.2", cases=cases[2:]).bad
    assert Examined("acme", "QEMU 7.2", cases=[HardwareCase("PT-01", "x", "7.2", Outcome.UNDECIDED, fault=True)]).bad


def test_platforms_by_name() -> None:
    assert platform_names() == ["model", "qemu"]
    with platform_factory("model")(None, "") as platform:
        assert isinstance(platform, ModelPlatform)
