"""The command as a process: what it imports, terminals, pipes, broken plugins."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from iommukit.cli.main import COMMANDS, cli

SCENARIO = """\
scenario: short
machine: {devices: [{name: nic}]}
expect: {"*": {nic: DMA-FQ}}
"""


def iommukit(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iommukit", *args], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


def on_terminal(*args: str, **environment: str) -> str:
    """What the command writes on a terminal."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "iommukit", *args], stdout=other, stderr=other, env={**os.environ, "TERM": "xterm", **environment}
    )
    os.close(other)
    written = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        written += piece
    process.wait(timeout=60)
    os.close(main)
    return written.decode()


@pytest.mark.parametrize("name", [*(name for name in COMMANDS if name != "oracle"), "oracle hardware"])
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert result.exit_code == 0
    examples = result.stdout.partition("Examples:\n")[2].splitlines()
    assert examples
    assert all(example.startswith(f"  iommukit {name}") for example in examples)
    assert "--json" in result.stdout


def test_help_lists_all_commands_in_order() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0
    listed = re.findall(r"^  ([a-z-]+)  ", result.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from iommukit.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'pydantic', 'rich', 'jinja2', 'yaml', 'pluggy', 'iommukit.kernel.kernel'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr == "[]\n"


def test_a_plain_run_needs_no_terminal_library(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    program = (
        "import sys\n"
        "from iommukit.cli.main import cli\n"
        f"cli.main(['run', {str(tmp_path / 's.yaml')!r}, '--kernel', '6.1'], standalone_mode=False)\n"
        "print(sorted({'rich', 'jinja2'} & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr == "[]\n"


def test_version() -> None:
    assert re.fullmatch(r"iommukit \d+\.\d+\.\d+\n", iommukit("--version").stdout)


def test_colour_on_a_terminal_only() -> None:
    coloured = on_terminal("boot", "nic-alone", "--cmdline", "iommu=pt", "--vendor", "intel_vtd")
    assert "\x1b[33m" in coloured
    assert "\x1b[1;31mWARNING" in coloured
    plain = iommukit("boot", "nic-alone", "--cmdline", "iommu=pt", "--vendor", "intel_vtd").stdout
    assert "\x1b" not in plain
    without = re.sub(r"\x1b\[[0-9;]*m", "", coloured).replace("\r\n", "\n")
    assert without == plain


def test_no_color() -> None:
    text = on_terminal("boot", "nic-alone", "--cmdline", "iommu=pt", "--vendor", "intel_vtd", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", text)
    dumb = on_terminal("boot", "nic-alone", "--vendor", "intel_vtd", TERM="dumb")
    assert "\x1b" not in dumb


def test_a_table_on_a_terminal_names_a_scenario_once(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    text = on_terminal("matrix", "--scenario", str(tmp_path / "s.yaml"), "--vendor", "intel_vtd", COLUMNS="150")
    assert text.count("short") == 1
    assert "rfc-unconverted" in text


def test_a_narrow_terminal_takes_nothing_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    args = ("matrix", "--scenario", str(tmp_path / "s.yaml"), "--vendor", "intel_vtd")
    wide, narrow = (on_terminal(*args, COLUMNS=columns) for columns in ("80", "24"))
    assert "scenario" in wide
    assert narrow == wide


def test_hostile_text_does_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO.replace("nic", '"n\\e[31m[bold]ic"'))
    text = on_terminal("run", str(tmp_path / "s.yaml"), "--vendor", "intel_vtd")
    assert "\x1b[31m[bold]" not in text
    assert r"n\x1b[31m[bold]ic" in text


@pytest.mark.parametrize("args", [("matrix",), ("plugins",), ("schema", "scenario"), ("--help",)])
def test_a_reader_that_goes_away_is_no_finding(args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "iommukit", *args], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writer)
    assert process.stderr == ""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "iommukit", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (process.returncode, process.stderr) == (2, "iommukit: No space left on device\n")


def test_a_narrow_encoding_gets_escapes() -> None:
    result = iommukit("diff", "--from", "rfc", "--to", "rfc", "--vendor", "s390", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert result.stdout.startswith("rfc \\u2192 rfc: ")


# ---- plugins that cannot be used -------------------------------------------------------------------------------------

BROKEN = {
    "acme": ("import no_such_module\n", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
    "empty": ("", "hook 'declare' is missing or answers None"),
    "leaving": ("raise SystemExit(0)\n", "cannot be loaded: SystemExit: 0"),
    "unmarked": (
        "from iommukit.hookspecs import hookimpl\n\n@hookimpl\ndef declare(): ...\n\ndef attach_dev(domain, device): ...\n",
        "attach_dev has the name of a hook but is not marked @hookimpl",
    ),
    "hidden": (
        "import json as map_pages\nfrom iommukit.hookspecs import hookimpl\n\n@hookimpl\ndef declare(): ...\n",
        "a module of it has the name of the hook map_pages, and stands in its place",
    ),
    "stopped": (
        "from iommukit.hookspecs import hookimpl\n\n@hookimpl\ndef declare(): return {}['x']\n",
        "declare is stopped by KeyError: 'x'",
    ),
    "typo": (
        "from iommukit.hookspecs import hookimpl\n\n@hookimpl\ndef domain_aloc(device): ...\n",
        "unknown hook 'domain_aloc'",
    ),
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, str]:
    """A distribution with a broken plugin on ``PYTHONPATH``: its name, what is said of it, and the path."""
    name = request.param
    source, message = BROKEN[name]
    (tmp_path / f"iommukit_{name}.py").write_text(source)
    information = tmp_path / f"iommukit_{name}-1.5.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: iommukit-{name}\nVersion: 1.5\n")
    (information / "entry_points.txt").write_text(f"[iommukit.vendors]\n{name} = iommukit_{name}\n")
    return name, message, str(tmp_path)


def test_a_broken_plugin_is_named(broken: tuple[str, str, str]) -> None:
    name, message, path = broken
    result = iommukit("plugins", PYTHONPATH=path)
    assert result.returncode == 1
    assert f"{name}  iommukit_{name}, iommukit-{name} 1.5" in result.stdout
    assert f"broken: vendor plugin {name}" in result.stdout
    assert message in result.stdout
    assert "Intel VT-d" in result.stdout


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    information = tmp_path / "second-2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 2\n")
    (information / "entry_points.txt").write_text("[iommukit.vendors]\ns390 = second\nzz = iommukit_amd_vi\n")
    (tmp_path / "second.py").write_text("from iommukit_arm_smmu import *\nfrom iommukit_arm_smmu import declare\n")
    result = iommukit("plugins", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stdout.count("is registered already, under this name or another") == 2
    for title in ("AMD-Vi", "Arm SMMU", "Intel VT-d"):
        assert title in result.stdout


def test_a_broken_plugin_is_bad_input_unless_others_are_asked_for(broken: tuple[str, str, str]) -> None:
    name, message, path = broken
    whole = iommukit("boot", "nic-alone", PYTHONPATH=path)
    assert (whole.returncode, whole.stdout) == (2, "")
    assert message in whole.stderr
    assert iommukit("boot", "nic-alone", "--vendor", name, PYTHONPATH=path).returncode == 2
    other = iommukit("boot", "nic-alone", "--vendor", "intel_vtd", PYTHONPATH=path)
    assert other.returncode == 0
    assert other.stderr.startswith(f"iommukit: left out: vendor plugin {name}")
    assert len(other.stderr.splitlines()) == 1
    assert "DMA remapping is on" in other.stdout
