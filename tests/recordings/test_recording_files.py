"""Files of recordings: plain, compressed, malformed; the compact form against the raw one."""

from __future__ import annotations

import json
import lzma

import pytest

from iommukit.errors import InputError
from iommukit_oracle.compact import DROPPED, compact_file, compact_folder, main
from iommukit_oracle.recording import (
    Recording,
    load_recordings,
    parse_recording,
    read_lines,
    recording_files,
    shipped_recordings,
)

LEAST = {
    "id": "a",
    "kernel": "6.12",
    "vendor": "s390",
    "arch": "s390x",
    "cmdline": "",
    "qemu_args": "qemu-system-s390x",
    "groups": [],
}


def line(**changes) -> str:
    return json.dumps({key: value for key, value in {**LEAST, **changes}.items() if value is not ...})


def test_the_least_recording():
    recording = parse_recording(line(), "f.jsonl:1")
    assert recording.writes == ()
    assert recording.snapshots == {}
    assert recording.functions == ()


def test_unknown_keys_are_passed_over():
    assert parse_recording(line(new_key=1, groups=[{"id": 1, "type": "DMA", "more": 2}]), "f:1").groups[0].type == "DMA"


def test_a_function_listed_twice_is_taken_as_it_was_at_boot():
    pci = [{"bdf": "0001:00:00.0", "id": "0x1af4:0x1044", "driver": driver} for driver in ("", "virtio-pci")]
    recording = parse_recording(line(pci=pci), "f:1")
    assert [entry.driver for entry in recording.functions] == [""]
    assert recording.functions[0].ids == "1af4:1044"


def test_parts_read_as_the_guest_wrote_them():
    group = {"id": 4, "type": "DMA", "devices": ["0000:00:06.0"], "drivers": "0000:00:06.0=pcieport"}
    reserved = ["0x0000000000000000-0x0000000000ffffff-direct-relaxable"]
    iommu = {"name": "dmar0", "attrs": "cap=d2 version=1:0"}
    recording = parse_recording(line(groups=[{**group, "reserved": reserved}], iommus=[iommu]), "f:1")
    assert recording.groups[0].bound == {"0000:00:06.0": "pcieport"}
    assert recording.groups[0].regions == ("0x0000000000000000 0x0000000000ffffff direct-relaxable",)
    assert recording.iommus[0].attribute("cap") == "d2"
    assert recording.iommus[0].attribute("ecap") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "f.jsonl:3: is no JSON: Expecting property name enclosed in double quotes"),
        ("[1]", "f.jsonl:3: a recording (a JSON object) was expected, not list"),
        ("[" * 100_000, "f.jsonl:3: is no"),
        (line(kernel=...), "f.jsonl:3: kernel: this key is missing"),
        (line(groups=3), "f.jsonl:3: groups: input should be a valid tuple"),
        (line(groups=[{"id": "x", "type": "DMA"}]), "f.jsonl:3: groups.0.id: "),
        (line(groups=[{"id": 1, "type": "DMA", "reserved": ["msi"]}]), "f.jsonl:3: groups.0.reserved.0: string should match"),
        (line(pci=[{"bdf": "00:1f.0", "id": "8086:2918"}]), "f.jsonl:3: pci.0.bdf: string should match"),
        (line(pci=[{"bdf": "0000:00:1f.0", "id": "?"}]), "f.jsonl:3: pci.0.id: string should match"),
        (line(writes=[{"wrote": "DMA"}]), "f.jsonl:3: writes.0.result: this key is missing"),
        (line(snapshots=[]), "f.jsonl:3: snapshots: "),
        (line(events=[1]), "f.jsonl:3: events.0: input should be a valid string"),
    ],
)
def test_a_malformed_line_is_named(text, message):
    with pytest.raises(InputError) as caught:
        parse_recording(text, "f.jsonl:3")
    assert str(caught.value).startswith(message) or (text.startswith("[[") and "f.jsonl:3" in str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_line_of_a_file_is_named(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(line() + "\n\n" + line(vendor=...) + "\n")
    with pytest.raises(InputError) as caught:
        load_recordings(path)
    assert str(caught.value) == f"{path}:3: vendor: this key is missing"


def test_files_that_cannot_be_read(tmp_path):
    broken, binary = tmp_path / "a.jsonl.xz", tmp_path / "b.jsonl"
    broken.write_bytes(lzma.compress(b"{}" * 100)[:-20])
    binary.write_bytes(b"\xff\xfe")
    for path, message in (
        (broken, "is no xz file, or a damaged one"),
        (binary, "is not UTF-8 text (byte 0)"),
        (tmp_path / "c.jsonl", "cannot be read: No such file or directory"),
        (tmp_path / "d.json", "is no recording: a name ending in .jsonl or .jsonl.xz was expected"),
    ):
        with pytest.raises(InputError) as caught:
            load_recordings(path)
        assert str(caught.value) == f"{path}: {message}"


def test_folders_are_opened(tmp_path):
    with pytest.raises(InputError, match="no recordings"):
        recording_files([tmp_path])
    (tmp_path / "b.jsonl").write_text(line())
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(line().encode()))
    (tmp_path / "README.md").write_text("no recording")
    assert [path.name for path in recording_files([tmp_path])] == ["a.jsonl.xz", "b.jsonl"]
    assert [load_recordings(path)[0].id for path in recording_files([tmp_path])] == ["a", "a"]


# ---- the compact form ------------------------------------------------------------------------------------------------


def test_the_shipped_recordings_are_small():
    sizes = [path.stat().st_size for path in recording_files([shipped_recordings()])]
    assert len(sizes) == 16
    assert sum(sizes) < 200_000


def test_compact_is_raw_where_kept(shared_folder):
    raw_files = sorted((shared_folder / "recordings").glob("*.jsonl"))
    assert [f"{path.name}.xz" for path in raw_files] == [path.name for path in recording_files([shipped_recordings()])]
    for raw_file in raw_files:
        raw = [json.loads(text) for text in raw_file.read_text().splitlines()]
        kept = [json.loads(text) for text in read_lines(shipped_recordings() / f"{raw_file.name}.xz") if text]
        wanted = [{key: value for key, value in entry.items() if key not in DROPPED} for entry in raw]
        assert kept == wanted
        assert [list(entry) for entry in kept] == [list(entry) for entry in wanted]


def test_the_shipped_files_are_what_the_script_makes(shared_folder):
    name = "7.2-s390.jsonl"
    assert Recording.model_validate(json.loads(read_lines(shared_folder / "recordings" / name)[0])).kernel == "7.2"
    again = lzma.decompress(compact_file(shared_folder / "recordings" / name))
    assert again == lzma.decompress((shipped_recordings() / f"{name}.xz").read_bytes())


def test_compacting_checks_before_it_writes(tmp_path, capsys):
    source, dest = tmp_path / "raw", tmp_path / "compact"
    source.mkdir()
    (source / "a.jsonl").write_text(line(boot_seconds=9.5) + "\n")
    (source / "b.jsonl").write_text(line(groups=...) + "\n")
    assert main([str(source), str(dest)]) == 2
    assert capsys.readouterr().err == f"{source / 'b.jsonl'}:1: groups: this key is missing\n"
    assert not dest.exists()
    (source / "b.jsonl").write_text(line(id="b") + "\n")
    assert main([str(source), str(dest)]) == 0
    assert "bytes in all" in capsys.readouterr().out
    assert "boot_seconds" not in read_lines(dest / "a.jsonl.xz")[0]
    first = (dest / "a.jsonl.xz").read_bytes()
    compact_folder(source, dest)
    assert (dest / "a.jsonl.xz").read_bytes() == first


def test_compacting_needs_two_folders(tmp_path, capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: ")
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "no recordings (*.jsonl) in this folder" in capsys.readouterr().err
    (tmp_path / "a.jsonl").write_text(line())
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path), str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
