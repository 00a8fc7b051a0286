"""Pages of styled text: what a report says to a person, before a terminal or a file has been chosen.

A ``Page`` is a list of lines and grids.  Styles are meanings (``good``, ``bad``), not colours; the command line maps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

STYLES = ("plain", "head", "name", "good", "bad", "warn", "dim", "repeat")
"""What a span may be: running text, a heading, a name, something fine, something wrong, something to look at, an aside, and a cell
that says the same as the one above (a terminal leaves it blank)."""

_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    r"""The text with control characters, direction overrides and broken bytes as ``\x1b``: fit for a terminal, one line."""
    return _INVISIBLE.sub(lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 0x100 else f"\\u{ord(found[0]):04x}", text)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line."""

    text: str
    style: str = "plain"


Piece = Span | str


@dataclass(frozen=True, slots=True)
class Line:
    """One line, not to be broken."""

    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """The line without its styles."""
        return visible("".join(span.text for span in self.spans)).rstrip()


@dataclass(slots=True)
class Grid:
    """A table.  A row that begins a ``section`` is set off from the one before."""

    columns: tuple[str, ...]
    rows: list[tuple[Span, ...]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def add(self, *cells: Piece, section: bool = False) -> None:
        """Append a row with as many cells as there are columns."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(self.columns)} cells were expected, not {len(cells)}")
        if section:
            self.sections.add(len(self.rows))
        self.rows.append(tuple(_span(cell) for cell in cells))

    def lines(self) -> list[str]:
        """The table as text: columns aligned, two blanks apart, nothing cut or wrapped."""
        table = [self.columns, *(tuple(visible(cell.text) for cell in row) for row in self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.columns))]
        return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]


@dataclass(slots=True)
class Page:
    """Lines and grids in order."""

    parts: list[Line | Grid] = field(default_factory=list)

    def line(self, *pieces: Piece, indent: int = 0) -> None:
        """Append a line, ``indent`` blanks in."""
        spans = tuple(_span(piece) for piece in pieces)
        self.parts.append(Line((Span(" " * indent), *spans) if indent else spans))

    def pairs(self, rows: Sequence[Sequence[Piece]], *, indent: int = 0) -> None:
        """Append lines whose pieces stand in columns, as wide as the widest, two blanks apart."""
        spans = [[_span(piece) for piece in row] for row in rows]
        widths: dict[int, int] = {}
        for row in spans:
            for column, span in enumerate(row):
                widths[column] = max(widths.get(column, 0), len(visible(span.text)))
        for row in spans:
            padded: list[Piece] = []
            for column, span in enumerate(row):
                last = column == len(row) - 1
                fill = 0 if last else widths[column] - len(visible(span.text)) + 2
                padded += [span, " " * fill] if fill else [span]
            self.line(*padded, indent=indent)

    def grid(self, *columns: str) -> Grid:
        """Append an empty table and return it."""
        grid = Grid(columns)
        self.parts.append(grid)
        return grid

    def blank(self) -> None:
        """Append an empty line, unless one is there or nothing else is."""
        if self.parts and not (isinstance(self.parts[-1], Line) and not self.parts[-1].text):
            self.parts.append(Line(()))

    def trimmed(self) -> Page:
        """The page without empty lines at its end."""
        while self.parts and isinstance(last := self.parts[-1], Line) and not last.text:
            self.parts.pop()
        return self

    def extend(self, other: Page) -> None:
        """Append another page."""
        self.parts.extend(other.parts)

    def lines(self) -> list[str]:
        """The page as plain text."""
        text: list[str] = []
        for part in self.parts:
            text.extend([part.text] if isinstance(part, Line) else part.lines())
        return text


def _span(piece: Piece) -> Span:
    return piece if isinstance(piece, Span) else Span(piece)


def listed(names: Iterable[str], *, most: int = 0) -> str:
    """Names with commas between them; beyond ``most`` (0: no limit) only how many more there are."""
    every = list(names)
    if most and len(every) > most + 1:
        return f"{', '.join(every[:most])} and {len(every) - most} more"
    return ", ".join(every)


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 scenario``, ``2 scenarios``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
