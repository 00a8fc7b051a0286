from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iommukit.report.page import Page, Span, counted, listed, visible


def test_columns_stand_below_each_other_and_nothing_is_cut() -> None:
    page = Page()
    page.line("head", indent=2)
    page.pairs([("a", Span("long word", "good"), "x"), ("abc", "b", "y" * 300)], indent=1)
    grid = page.grid("name", "value")
    grid.add("a", "1")
    grid.add("longer", "2")
    assert page.lines() == [
        "  head",
        " a    long word  x",
        " abc  b          " + "y" * 300,
        "name    value",
        "a       1",
        "longer  2",
    ]


def test_a_row_has_as_many_cells_as_columns() -> None:
    with pytest.raises(ValueError, match="2 cells were expected, not 1"):
        Page().grid("a", "b").add("only")


def test_blank_lines_do_not_pile_up() -> None:
    page = Page()
    page.blank()
    page.line("a")
    page.blank()
    page.blank()
    page.line("b")
    assert page.lines() == ["a", "", "b"]


def test_names_beyond_the_limit_are_counted() -> None:
    assert listed("abcde", most=3) == "a, b, c and 2 more"
    assert listed("abcd", most=3) == "a, b, c, d"  # "and 1 more" would take as much room as the name
    assert listed("") == ""
    assert counted(1, "case") == "1 case"
    assert counted(0, "entry", "entries") == "0 entries"


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [("\x1b[2J", r"\x1b[2J"), ("a\nb", r"a\x0ab"), ("\u202eevil", r"\u202eevil"), ("\udcff", r"\udcff"), ("→ ü", "→ ü")],
)
def test_what_a_terminal_would_obey_is_shown_instead(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


@given(st.text())
def test_a_line_is_one_line(text: str) -> None:
    page = Page()
    page.line(text)
    assert len("\n".join(page.lines()).splitlines()) <= 1
    page.lines()[0].encode()
