"""The command line: splitting, booleans, order, and what is reported."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iommukit.kernel.cmdline import Verdict, kstrtobool, split_cmdline
from iommukit.kernel.profiles import get_kernel
from iommukit.kernel.start import new_boot_state, parse_cmdline
from iommukit.machine.model import BootSpec
from tests.kernel.toy import toy_registry


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("yYtT1"[n], True) for n in range(5)),
        *(("nNfF0"[n], False) for n in range(5)),
        ("on", True),
        ("oN", True),
        ("off", False),
        ("of", False),
        ("OFF", False),
        ("1garbage", True),
        ("0x1", False),
        ("o", None),
        ("2", None),
        ("", None),
        (None, None),
    ],
)
def test_kstrtobool(text: str | None, value: bool | None) -> None:
    assert kstrtobool(text) is value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quiet iommu=pt", [("quiet", None), ("iommu", "pt")]),
        ('a="b c" "d=e f"', [("a", "b c"), ("d", "e f")]),
        ("iommu.strict=1 -- iommu.strict=0", [("iommu.strict", "1")]),
        ("  a=  b", [("a", ""), ("b", None)]),
        ("a=b=c", [("a", "b=c")]),
    ],
)
def test_split(text: str, words: list[tuple[str, str | None]]) -> None:
    assert list(split_cmdline(text)) == words


@given(st.text(max_size=80))
def test_any_text_is_a_command_line(text: str) -> None:
    registry, _ = toy_registry()
    state = new_boot_state(get_kernel("6.1"), "x86_64", BootSpec(cmdline=text))
    parse_cmdline(state, registry)
    assert state.default.settle("lazy", memory_encryption=False)


@pytest.mark.parametrize(
    ("cmdline", "policy"),
    [
        ("iommu=pt", "IDENTITY"),
        ("iommu=pt iommu.passthrough=0", "LAZY"),
        ("iommu.passthrough=0 iommu=pt", "IDENTITY"),
        ("iommu.passthrough=1 iommu=nopt", "LAZY"),
        ("iommu.passthrough=maybe", "LAZY"),
        ("iommu=usedac,pt", "LAZY"),
        ("iommu=force,pt", "IDENTITY"),
        ("iommu.strict=1 iommu.strict=0", "LAZY"),
        ("iommu.strict", "LAZY"),
        ("iommu.strict=yes", "STRICT"),
        ("iommu=strict", "LAZY"),
    ],
)
def test_last_one_wins_and_bad_values_change_nothing(cmdline: str, policy: str) -> None:
    registry, _ = toy_registry()
    for name in ("6.1", "6.12", "rfc"):
        state = new_boot_state(get_kernel(name), "x86_64", BootSpec(cmdline=cmdline))
        parse_cmdline(state, registry)
        state.default.settle("lazy", memory_encryption=False)
        assert state.default.policy().name == policy, name


def test_reports() -> None:
    registry, _ = toy_registry()
    cmdline = "root=/dev/sda iommu=pt,strict iommu.strict=perhaps iommu.forcedac=1 smmu_magic=1"
    state = new_boot_state(get_kernel("6.12"), "x86_64", BootSpec(cmdline=cmdline))
    parse_cmdline(state, registry)
    assert [(report.option, report.verdict) for report in state.reports] == [
        ("iommu=pt", Verdict.EFFECTIVE),
        ("iommu=strict", Verdict.UNKNOWN),
        ("iommu.strict=perhaps", Verdict.INVALID),
        ("iommu.forcedac=1", Verdict.INEFFECTIVE),
        ("smmu_magic=1", Verdict.UNKNOWN),
    ]
    arm = new_boot_state(get_kernel("6.12"), "aarch64", BootSpec(cmdline="iommu=pt"))
    parse_cmdline(arm, registry)
    assert [(report.option, report.verdict) for report in arm.reports] == [("iommu=pt", Verdict.UNKNOWN)]
