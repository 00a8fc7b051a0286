"""Make the compact form of recordings: ``python -m iommukit_oracle.compact SOURCE DEST``.

SOURCE is a folder of ``.jsonl`` files, DEST a folder that gets one ``.jsonl.xz`` for each.  Every line is checked before anything
is written; the same lines give the same bytes.
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from iommukit.errors import InputError
from iommukit_oracle.recording import parse_recording, read_lines

DROPPED = ("boot_seconds",)
"""Keys left out: how long the recording host took says nothing about the kernel."""


def compact_line(line: str, source: str) -> str:
    """One recording without the dropped keys, as short JSON.  Raises ``InputError`` for what is no recording."""
    parse_recording(line, source)
    data = {key: value for key, value in json.loads(line).items() if key not in DROPPED}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def compact_file(path: Path) -> bytes:
    """The compressed form of a file.  Raises ``InputError``."""
    numbered = enumerate(read_lines(path), start=1)
    return compress(compact_line(line, f"{path}:{number}") for number, line in numbered if line.strip())


def compress(lines: Iterable[str]) -> bytes:
    """Lines as an xz file; the same lines give the same bytes."""
    text = "".join(line + "\n" for line in lines)
    return lzma.compress(text.encode(), check=lzma.CHECK_CRC32, preset=9 | lzma.PRESET_EXTREME)


def compact_folder(source: Path, dest: Path) -> dict[Path, int]:
    """Compact every ``.jsonl`` of a folder; the files written, with their sizes in bytes.  Raises ``InputError``."""
    files = sorted(source.glob("*.jsonl"))
    if not files:
        raise InputError("no recordings (*.jsonl) in this folder", source=str(source))
    made = {dest / f"{path.name}.xz": compact_file(path) for path in files}
    write_files(made, dest)
    return {path: len(data) for path, data in made.items()}


def write_files(made: Mapping[Path, bytes], dest: Path) -> None:
    """Write files of one folder, which is made where it is missing.  Raises ``InputError``."""
    try:
        dest.mkdir(parents=True, exist_ok=True)
        for path, data in made.items():
            path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", source=str(error.filename or dest)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Compact a folder and say what was written; 2 for bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2:
        print("usage: python -m iommukit_oracle.compact SOURCE DEST", file=sys.stderr)
        return 2
    try:
        written = compact_folder(Path(given[0]), Path(given[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for path, size in written.items():
        print(f"{size:>8}  {path}")
    print(f"{sum(written.values()):>8}  bytes in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
