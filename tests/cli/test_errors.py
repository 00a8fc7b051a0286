"""Bad input: one line on standard error, exit code 2, nothing on standard output, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from iommukit.vendors import VendorRegistry
from tests.cli.conftest import Run
from tests.report.toy_vendor import MACHINE, SCENARIOS, toy_document

BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no-such-command": (("matirx",), "no command 'matirx'; did you mean matrix? (see iommukit --help)"),
    "empty-command": (("",), "no command ''; there are matrix, run, boot, diff, walk, oracle, plugins, schema"),
    "no-such-option": (("matrix", "--frob"), "(see iommukit matrix --help)"),
    "missing-option": (("diff", "--from", "6.1"), "Missing option '--to'"),
    "missing-argument": (("run",), "Missing argument"),
    "extra-argument": (("plugins", "x"), "unexpected extra argument"),
    "unknown-kernel": (("run", "scenarios", "--kernel", "9.9"), "no kernel '9.9'; there are rfc, rfc-as-posted"),
    "hostile-kernel": (("matrix", "--kernel", "\x1b[2J\n"), r"no kernel '\x1b[2J\n'"),
    "unknown-vendor": (("run", "scenarios", "--vendor", "acme"), "no vendor 'acme'; installed: plain, toy"),
    "unknown-to": (("diff", "--from", "6.1", "--to", "tomorrow"), "no kernel 'tomorrow'"),
    "unknown-schema": (("schema", "poem"), "no schema 'poem'; there are scenario, machine"),
    "unknown-machine": (("boot", "car"), "no machine 'car': no such file"),
    "near-machine": (("boot", "nic-behind-root-pot"), "the project has nic-behind-root-port"),
    "empty-machine": (("boot", ""), "no machine ''"),
    "dot-machine": (("boot", "."), "no machine '.'"),
    "endless-machine": (("boot", "x" * 5000), "no machine 'xxx"),
    "nul-machine": (("boot", "a\0b"), "no machine"),
    "missing-file": (("run", "nowhere.yaml"), "nowhere.yaml: cannot be read: No such file or directory"),
    "empty-path": (("run", ""), "an empty text is no path of a scenario"),
    "empty-folder": (("run", "hollow"), "hollow: no scenario files (*.yaml) in this folder"),
    "folder-like-a-file": (("run", "folder.yaml"), "folder.yaml: no scenario files"),
    "empty-file": (("run", "/dev/null"), "/dev/null: is empty; a scenario was expected"),
    "cut-yaml": (("run", "cut.yaml"), "cut.yaml: line 3"),
    "not-text": (("run", "binary.yaml"), "binary.yaml: is not UTF-8 text (byte 0)"),
    "not-a-mapping": (("run", "list.yaml"), "list.yaml: a mapping was expected, not list"),
    "unknown-key": (("run", "key.yaml"), "key.yaml: line 3, frob: no such key"),
    "twice": (("run", "scenarios", "scenarios/default.yaml"), "scenario id 'default' appears in"),
    "inline-machine": (("run", "inline.yaml"), "kind: input should be 'root_port'"),
    "hostile-file": (("run", "a\x1b[31m\nb.yaml"), r"a\x1b[31m b.yaml: line 1"),
    "wrong-expectation": (("run", "expect.yaml"), "expect.rfc: no 'frob' to expect something of"),
    "cut-table": (("run", "table.yaml"), "firmware TOYT: one byte was expected, not 3"),
    "unreadable-table": (("boot", "tabled.yaml"), "tabled.yaml: line 2, firmware: "),
    "html-folder": (("matrix", "--html", "hollow"), "hollow is a folder"),
    "html-nowhere": (("matrix", "--html", "nowhere/m.html"), "there is no folder nowhere"),
    "two-stdouts": (("matrix", "--json", "-", "--html", "-"), "cannot share standard output"),
    "not-realisable": (
        ("boot", "zpci.yaml"),
        "zpci.yaml: no vendor can realise it (plain: plain does not exist on s390x; ",
    ),
    "no-kconfig": (("boot", "card", "--kconfig", "soft"), "'soft' is not one of"),
    "endless-cmdline": (("boot", "card", "--cmdline", "x" * 5000), "boot: cmdline: string should have at most 4096 characters"),
}


@pytest.fixture
def bad_files(folder: Path) -> None:
    (folder / "hollow").mkdir()
    (folder / "folder.yaml").mkdir()
    files = {
        "cut.yaml": "scenario: a\nmachine: [1\n",
        "list.yaml": "- 1\n",
        "key.yaml": "scenario: a\nmachine: card\nfrob: 1\n",
        "a\x1b[31m\nb.yaml": "]",
        "inline.yaml": "scenario: a\nmachine: {devices: [{name: a, kind: toaster}]}\n",
        "expect.yaml": yaml.safe_dump({**toy_document("default"), "scenario": "expect", "expect": {"rfc": {"frob": 1}}}),
        "table.yaml": yaml.safe_dump({"scenario": "a", "machine": {"firmware": {"TOYT": "base64:AAAA"}}}),
        "tabled.yaml": "machine: m\nfirmware: 5\n",
        "zpci.yaml": "machine: zpci\narch: s390x\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, run: Run) -> None:
    args, message = BAD[name]
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("iommukit: ")
    assert message in result.stderr
    assert len(result.stderr) < 1100
    assert "\x1b" not in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_good_file_does_not_hide_a_bad_one(run: Run, folder: Path) -> None:
    (folder / "scenarios" / "z.yaml").write_text("scenario: z\nmachine: card\nsteps: [{frob: {}}]\n")
    result = run("run", "scenarios", "--json")
    assert result.exit_code == 2
    assert not result.stdout
    assert "z.yaml: line 3, steps[0].frob: no such key" in result.stderr


def test_no_vendor_at_all(run: Run) -> None:
    class Nobody(VendorRegistry):
        def __bool__(self) -> bool:
            return True

    result = run("run", "scenarios", registry=Nobody())
    assert result.exit_code == 2
    assert "no vendor plugin is installed" in result.stderr


def test_scenarios_below_a_folder_called_machines(run: Run, folder: Path) -> None:
    """Only ``machines`` inside the folder given holds no scenarios; what lies above does not matter."""
    inner = folder / "machines" / "mine"
    (inner / "machines").mkdir(parents=True)
    (folder / "scenarios" / "default.yaml").rename(inner / "default.yaml")
    (inner / "machines" / "card.yaml").write_text(yaml.safe_dump(MACHINE))
    result = run("run", "machines/mine")
    assert result.exit_code == 0
    assert "2 runs" in result.stdout


def test_an_endless_document_is_refused(run: Run, folder: Path) -> None:
    lines = ["scenario: a", "machine: card", "expect:", "  7.2:", "    x0: &a0 {k: v}"]
    lines += [f"    x{n}: &a{n} {{a: *a{n - 1}, b: *a{n - 1}, c: *a{n - 1}}}" for n in range(1, 40)]
    (folder / "bomb.yaml").write_text("\n".join(lines))
    result = run("run", "bomb.yaml")
    assert result.exit_code == 2
    assert "its aliases make it too large" in result.stderr


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_are_written_whole_or_not_at_all(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = folder / "m.html"
    page.write_text("old")
    page.chmod(0o640)
    args = ("matrix", "--scenario", "scenarios", "--kernel", "rfc", "--html", "m.html", "--json", "m.json")
    assert run(*args).exit_code == 1
    assert page.read_text().startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o640
    page.write_text("old")

    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr == "iommukit: m.json: cannot be written: No space left on device\n"
    assert page.read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["card.yaml", "m.html", "m.json", "scenarios"]


def test_a_link_is_written_through(run: Run, folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "link.json").symlink_to("real/m.json")
    assert run("matrix", "--scenario", "scenarios/live-switch.yaml", "--json", "link.json").exit_code == 0
    assert (folder / "link.json").is_symlink()
    assert (folder / "real" / "m.json").is_file()


def test_a_pipe_is_not_replaced(run: Run, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        scenario = "scenarios/live-switch.yaml"
        assert run("matrix", "--scenario", scenario, "--kernel", "rfc", "--vendor", "toy", "--json", "pipe").exit_code == 0
        assert os.read(reader, 100).startswith(b'{\n "kernels"')
    finally:
        os.close(reader)
    assert (folder / "pipe").is_fifo()


def test_the_toys_cover_all_files(folder: Path) -> None:
    assert len(list((folder / "scenarios").iterdir())) == len(SCENARIOS)
