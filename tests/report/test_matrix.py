from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from iommukit.kernel.profiles import get_kernel
from iommukit.report.answer import Answer
from iommukit.report.html import matrix_html
from iommukit.report.matrix import Cell, Matrix, build_matrix, bundle
from iommukit.report.schemas import schema
from iommukit.scenario.result import Outcome
from tests.report.toy_vendor import MACHINE, SCENARIOS, Crashing, Plain, Toy, toy_registry, toy_scenario, toy_scenarios

KERNELS = ("rfc", "rfc-as-posted", "6.1")


def make(*plugins: Toy, scenarios: Any = None) -> Matrix:
    registry = toy_registry(*plugins)
    return build_matrix(scenarios or toy_scenarios(), [get_kernel(name) for name in KERNELS], list(registry), registry)


def texts(matrix: Matrix, scenario: str) -> dict[tuple[str, str], str]:
    row = next(row for row in matrix.rows if row.scenario.scenario == scenario)
    return {(cell.vendor, cell.kernel): cell.answer.text for cell in row.cells}


def test_every_combination_is_there_once_with_its_answer() -> None:
    matrix = make()
    assert [len(row.cells) for row in matrix.rows] == [6] * len(SCENARIOS)
    lazy = "write ok → nic: DMA-FQ; rp1: DMA"
    assert texts(matrix, "live-switch") == {
        ("plain", "rfc"): "lacks lazy",
        ("plain", "rfc-as-posted"): "lacks lazy",
        ("plain", "6.1"): "lacks lazy",
        ("toy", "rfc"): lazy,
        ("toy", "rfc-as-posted"): "write EPERM → DMA",
        ("toy", "6.1"): lazy,
    }
    assert texts(matrix, "default")["plain", "6.1"] == "DMA, default IDENTITY"


def test_differences_are_seen_among_cases_that_happened() -> None:
    rows = {row.scenario.scenario: row for row in make().rows}
    assert (rows["live-switch"].kernels_differ, rows["live-switch"].vendors_differ) == (True, False)
    assert (rows["mistaken"].kernels_differ, rows["mistaken"].vendors_differ) == (False, False)
    assert (rows["default"].kernels_differ, rows["default"].vendors_differ) == (True, True)


def test_devices_that_share_a_group_are_shown_together() -> None:
    shared = {**MACHINE, "devices": [{**device, "acs": None} for device in MACHINE["devices"]]}
    matrix = make(Toy(), scenarios=[toy_scenario("mistaken", machine=shared)])
    assert set(texts(matrix, "mistaken").values()) == {"DMA (rp1+nic)"}


def test_many_groups_are_counted() -> None:
    cards = [{"name": f"nic{number}", "attributes": {"requires": "identity"} if number % 2 else {}} for number in range(12)]
    matrix = make(Toy(), scenarios=[toy_scenario("mistaken", machine={"machine": "many", "devices": cards}, expect={})])
    assert texts(matrix, "mistaken")["toy", "rfc"] == "12 groups: 6 DMA, 6 identity"


def test_families_and_counts() -> None:
    matrix = make()
    assert {name: [row.scenario.scenario for row in rows] for name, rows in matrix.families().items()} == {
        "TOY": ["live-switch", "strict-then-bound", "mistaken"],
        "other": ["default"],
    }
    assert matrix.counts()[Outcome.NOT_APPLICABLE] == 6
    assert matrix.counts(kernel="rfc") == {
        Outcome.PASS: 4,
        Outcome.FAIL: 2,
        Outcome.XFAIL: 0,
        Outcome.NOT_APPLICABLE: 2,
        Outcome.UNDECIDED: 0,
    }
    assert matrix.failed
    assert not make(scenarios=[toy_scenario("live-switch")]).failed


def test_json_is_as_the_schema_says() -> None:
    jsonschema.validate(make(Plain(), Toy(), Crashing()).to_json(), schema("matrix"))


NAMES = st.sampled_from(["a", "b", "c", "d"])


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["v1", "v2", "v3"]), st.sampled_from(["k1", "k2", "k3"])),
        st.tuples(st.sampled_from(list(Outcome)), st.sampled_from(["x", "y"])),
    )
)
def test_bundles_hold_every_cell_once_and_nothing_else(cells: dict[tuple[str, str], tuple[Outcome, str]]) -> None:
    made = [Cell(kernel, vendor, outcome, Answer((), (), (), text), "", ()) for (vendor, kernel), (outcome, text) in cells.items()]
    seen = {}
    for found in bundle(made):
        for vendor in found.vendors:
            for kernel in found.kernels:
                assert (vendor, kernel) not in seen
                seen[vendor, kernel] = found.cell.look
    assert seen == cells


class Reader(HTMLParser):
    """Checks that elements close and notes what would be fetched."""

    VOID = frozenset({"meta", "input", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.chips: list[dict[str, str | None]] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.scripts += tag == "script"
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]
        if "data-outcome" in values:
            self.chips.append(values)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_is_whole() -> None:
    page = matrix_html(make())
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert not reader.fetched
    assert not re.search(r"(@import|url\(|https?://)", page)
    shown = [(chip["data-outcome"], chip["data-vendors"]) for chip in reader.chips]
    assert shown.count(("fail", "plain toy")) == 1
    assert shown.count(("na", "plain")) == 6
    for kernel in KERNELS:
        assert f'value="{kernel}"' in page


def test_hostile_text_stays_text() -> None:
    evil = '</script><script>alert(1)</script>"><img src=x onerror=alert(1)>\x1b[31m\u202e'
    matrix = make(Toy(), scenarios=[toy_scenario("mistaken", summary=evil, steps=[{"write": {"group_of": "nic", "type": evil}}])])
    page = matrix_html(matrix)
    reader = Reader()
    reader.feed(page)
    assert reader.scripts == 1
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;/script&gt;" in page
