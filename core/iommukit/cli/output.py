"""Showing pages and writing files: rich on a terminal, plain text elsewhere, never half a file."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iommukit.errors import InputError
from iommukit.report.page import Grid, Line, Page, Span, visible

COLOURS = {
    "plain": "",
    "head": "bold",
    "name": "cyan",
    "good": "green",
    "bad": "bold red",
    "warn": "yellow",
    "dim": "dim",
    "repeat": "",
}
"""The styles of a page on a terminal."""

SHORT = 10
"""Columns no wider than this are not broken."""
NARROWEST = 80
"""Tables are at least this wide: what a terminal has no room for it wraps, but rich would leave digits out."""
LONG_WORK = 300
"""Runs from which a progress bar is worth its while."""


def on_terminal(stream: Any) -> bool:
    """Whether a person reads the stream."""
    return stream is not None and bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def show(page: Page) -> None:
    """Print a page on standard output."""
    if not on_terminal(sys.stdout):
        for text in page.lines():
            print(text)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, NARROWEST)
    for part in page.parts:
        if isinstance(part, Line):
            console.print(_text(part.spans), soft_wrap=True)
        else:
            console.print(_table(part))


def _text(spans: tuple[Span, ...]) -> Any:
    from rich.text import Text

    return Text.assemble(*((visible(span.text), COLOURS[span.style]) for span in spans))


def _table(grid: Grid) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(grid.columns):
        longest = max((len(visible(row[number].text)) for row in grid.rows), default=0)
        table.add_column(column, overflow="fold", no_wrap=longest <= SHORT)
    for number, row in enumerate(grid.rows):
        if number in grid.sections and number:
            table.add_section()
        table.add_row(*(_text(() if cell.style == "repeat" else (cell,)) for cell in row))
    return table


def show_json(data: Any, *, one_line: bool = False) -> None:
    """Print JSON on standard output: indented, or as one line that is out at once."""
    print(json.dumps(data) if one_line else json_text(data), flush=one_line)


def json_text(data: Any) -> str:
    """JSON for a file: indented, ASCII, keys in the order given."""
    return json.dumps(data, indent=1)


def write(target: str, text: str) -> None:
    """Write a file in one move, or standard output for ``-``.

    A regular file is written beside its place and renamed; anything else (a pipe, ``/dev/stdout``) is written as it is.  Raises
    ``InputError``; the old file is then as it was.
    """
    if not text.endswith("\n"):
        text += "\n"
    if target == "-":
        print(text, end="")
        return
    try:
        path = Path(os.path.realpath(target))
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path, text)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"cannot be written: {error.strerror}", source=target) from error


def _replace(path: Path, text: str) -> None:
    """Write beside the place and rename, with the rights that a plain ``open`` would have given."""
    if path.exists():
        mode = path.stat().st_mode & 0o7777
    else:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def progress(total: int, what: str, *, least: int = LONG_WORK, every: int = 32) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, on a terminal and from ``least`` runs on; yields what to call after each run.

    It is drawn after ``every`` so many runs.
    """
    if total < least or not on_terminal(sys.stderr):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if done % every == 0:
                bar.update(task, completed=done)

        yield tick
