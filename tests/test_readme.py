"""What the README shows is what happens."""

from __future__ import annotations

import lzma
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from iommukit.cli.main import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```console\n\$ iommukit (.*?)\n(.*?)```", README, re.DOTALL)
GUEST = Path(__file__).parent / "walk" / "data" / "intel.elf.xz"
SCENARIO = re.search(r"```yaml\n(scenario: .*?)```", README, re.DOTALL)


def test_there_is_something_to_see() -> None:
    assert len(SHOWN) >= 3
    assert SCENARIO is not None


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command.split()[0] for command, _ in SHOWN])
def test_the_commands_print_what_is_shown(command: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line shown is printed, in that order; ``…`` stands for what is left out."""
    assert SCENARIO is not None
    monkeypatch.chdir(tmp_path)
    Path("live-switch-to-lazy.yaml").write_text(SCENARIO[1])
    Path("guest.elf").write_bytes(lzma.decompress(GUEST.read_bytes()))
    lines = iter(CliRunner().invoke(cli, shlex.split(command)).output.splitlines())
    for wanted in shown.splitlines():
        if wanted.strip() not in ("…", ""):
            assert any(line.rstrip() == wanted for line in lines), wanted
