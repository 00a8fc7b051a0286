"""CLP answers: the document of docs/clp.md, and what is wrong with others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iommukit.errors import InputError
from iommukit_s390.firmware import CLP, PFT_ISM, ClpBar, ClpConfiguration, ClpFunction, ClpGroup

DOCS = Path(__file__).parents[2] / "docs" / "clp.md"

FUNCTION: dict[str, Any] = {"fid": 1, "fh": "0x80000001", "uid": 1, "pfgid": 7}
GROUP: dict[str, Any] = {"gid": 7}


def clp(*functions: dict[str, Any], groups: tuple[dict[str, Any], ...] = (GROUP,), **fields: Any) -> ClpConfiguration:
    return CLP.validate({"functions": list(functions), "groups": list(groups), **fields}, "clp.json")


def example() -> str:
    match = re.search(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    return match[1]


def test_the_example_of_the_docs() -> None:
    table = CLP.parse(example(), "docs")
    virtio, ism = table.functions
    assert (virtio.sdma, virtio.edma, virtio.enabled) == (0x100000000, 0x1FFFFFFFFFFFFFF, True)
    assert (table.tlb_refresh(virtio), table.relaxed_translation(virtio)) == (True, False)
    assert (table.tlb_refresh(ism), table.relaxed_translation(ism)) == (False, True)
    assert ism.pft == PFT_ISM
    assert [table.pci_address(function) for function in table.functions] == ["0001:00:00.0", "0002:00:00.0"]
    assert table.function(2) is ism
    assert table.function(3) is None
    assert virtio.bars == (ClpBar(index=4, size=0x4000),)
    assert CLP.lint(table) == []


@pytest.mark.parametrize("model", [ClpConfiguration, ClpFunction, ClpGroup, ClpBar])
def test_the_docs_name_every_key(model: type[ClpConfiguration]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in model.model_fields:
        assert f"`{name}`" in text, name


def test_round_trip() -> None:
    table = CLP.parse(example())
    data = CLP.build(table)
    assert CLP.parse(data) == table
    assert CLP.build(CLP.parse(data)) == data
    assert json.loads(data)["functions"][0]["fh"] == "0x80000001"
    assert CLP.validate(table.model_dump(mode="json")) == table
    for form in (json.loads(example()), json.loads(data), table.model_dump(mode="json")):
        jsonschema.validate(form, CLP.json_schema())


def test_relaxed_translation_of_one_function() -> None:
    groups = ({"gid": 7, "rtr": True},)
    table = clp(FUNCTION, {**FUNCTION, "fid": 2, "fh": 2, "rtr": False}, groups=groups)
    assert [table.relaxed_translation(function) for function in table.functions] == [True, False]


def test_addresses() -> None:
    functions = ({**FUNCTION, "uid": 0x1F}, {**FUNCTION, "fid": 2, "fh": 2, "uid": 0, "rid": "0x0009"})
    table = clp(*functions)
    assert [table.pci_address(function) for function in table.functions] == ["0000:00:00.0", "0001:00:01.1"]
    table = clp(*functions, uid_checking=True)
    assert [table.pci_address(function) for function in table.functions] == ["001f:00:00.0", "0001:00:01.1"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "line 1, column 2: is not JSON: Expecting property name enclosed in double quotes"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 100_000, "is not JSON: "),
        (b"[]", "CLP: input should be a valid dictionary or instance of ClpConfiguration, got []"),
        (b'{"functions": []}', "groups: this field is missing"),
        (b'{"clp": 2, "functions": [], "groups": []}', "clp: input should be 1, got 2"),
    ],
)
def test_documents_that_are_none(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        CLP.parse(data, "clp.json")
    assert str(caught.value).startswith(f"clp.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("functions", "fields", "message"),
    [
        ([{**FUNCTION, "fid": None}], {}, "functions[0].fid: input should be a valid integer, got None"),
        ([{**FUNCTION, "fid": "x"}], {}, "functions[0].fid: a number was expected, such as 10 or 0xa, not 'x'"),
        ([{**FUNCTION, "speed": 1}], {}, "functions[0].speed: no such field"),
        ([{**FUNCTION, "sdma": 2, "edma": 1}], {}, "functions[0]: edma 0x1 lies before sdma 0x2"),
        ([{**FUNCTION, "pfgid": 8}], {}, "functions[0].pfgid: there is no group 0x8"),
        ([FUNCTION, {**FUNCTION, "fh": 2}], {}, "functions[1].fid: 0x1 belongs to another function too"),
        ([FUNCTION, {**FUNCTION, "fid": 2}], {}, "functions[1].fh: 0x80000001 belongs to another function too"),
        (
            [FUNCTION, {**FUNCTION, "fid": 2, "fh": 2}],
            {"uid_checking": True},
            "functions[1].uid: 0x1 belongs to another function too",
        ),
        (
            [{**FUNCTION, "uid": "0x10000"}],
            {"uid_checking": True},
            "functions[0].uid: 0x10000 has more than the 16 bits of a PCI domain",
        ),
        ([FUNCTION], {"groups": [GROUP, GROUP]}, "groups[1].gid: 0x7 is the id of another group too"),
        ([FUNCTION], {"groups": [{**GROUP, "noi": 4096}]}, "groups[0].noi: input should be less than or equal to 4095, got 4096"),
        ([{**FUNCTION, "bars": [{"index": 6, "size": 1}]}], {}, "functions[0].bars[0].index: input should be less than 6, got 6"),
        ([{**FUNCTION, "bars": [{"index": 0, "size": 3}]}], {}, "functions[0].bars[0]: size 0x3 is no power of two"),
        ([{**FUNCTION, "bars": [{"index": 0, "size": 1}] * 2}], {}, "functions[0]: two bars have the same index"),
    ],
)
def test_contradictions(functions: list[Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        CLP.validate({"functions": functions, "groups": [GROUP], **fields}, "clp.json")
    assert str(caught.value) == f"clp.json: {message}"


def test_findings() -> None:
    table = clp({**FUNCTION, "sdma": 1}, groups=(GROUP, {"gid": 8}))
    assert [(x.field, x.message) for x in CLP.lint(table)] == [
        ("functions[0].sdma", "0x1..0xffffffffffffffff are no whole pages of 4 KiB"),
        ("groups[1].gid", "no function is in this group"),
    ]


@given(data=st.binary(max_size=60) | st.text(max_size=60))
def test_anything(data: bytes | str) -> None:
    with pytest.raises(InputError) as caught:
        CLP.parse(data, "clp.json")
    assert "\n" not in str(caught.value)
