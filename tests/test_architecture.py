"""The map is true: imports run one way, nobody knows a vendor by name, and no file knows the machine that it was written on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from iommukit.hookspecs import VendorSpec

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "iommukit"
LAYERS = ("cli", "report", "scenario", "kernel", "dma", "hw")
"""From the top down: a layer imports those to its right."""
BELOW_KERNEL = ("machine",)
"""Machine files and tables: for every layer to use, and ignorant of all of them."""
VENDORS = ("intel_vtd", "amd_vi", "arm_smmu", "s390")


def _imports(path: Path) -> Iterator[str]:
    """The modules that a file imports when it runs; what is only for type checkers does not count."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        pending.extend(ast.iter_child_nodes(node))


def _layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "iommukit" else None


@pytest.mark.parametrize("layer", [*LAYERS, *BELOW_KERNEL])
def test_imports_run_one_way(layer: str) -> None:
    allowed = {*LAYERS[LAYERS.index(layer) :], *BELOW_KERNEL} if layer in LAYERS else {*BELOW_KERNEL}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (CORE / layer).rglob("*.py")
        for module in _imports(path)
        if (target := _layer(module)) in (*LAYERS, *BELOW_KERNEL) and target not in allowed
    ]
    assert not wrong


def test_the_nouns_import_no_layer() -> None:
    nouns = ("policy", "domain", "device", "group", "regions", "errors", "hookspecs")
    wrong = [(noun, module) for noun in nouns for module in _imports(CORE / f"{noun}.py") if _layer(module) in LAYERS]
    assert not wrong


@pytest.mark.parametrize("folder", ["core", "conformance", "oracle"])
def test_nobody_imports_a_vendor(folder: str) -> None:
    plugins = tuple(f"iommukit_{vendor}" for vendor in VENDORS)
    wrong = [(path, module) for path in (ROOT / folder).rglob("*.py") for module in _imports(path) if module.startswith(plugins)]
    assert not wrong


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_imports_the_core_and_itself(vendor: str) -> None:
    others = tuple(f"iommukit_{name}" for name in (*VENDORS, "conformance", "oracle") if name != vendor)
    barred = ("cli", "report", "scenario")
    wrong = [
        (path, module)
        for path in (ROOT / "plugins" / vendor).rglob("*.py")
        for module in _imports(path)
        if module.startswith(others) or _layer(module) in barred
    ]
    assert not wrong


WRITES_TABLES = tuple(f"iommukit.hw.{name}" for name in ("format", "radix", "tree", "fill"))
"""The driver's engine: a model that used it would agree with the driver's mistakes."""
DESCRIBES_UNITS = {"intel_vtd": ("capabilities", "remapping"), "amd_vi": ("units",), "arm_smmu": ("smmu",), "s390": ("functions",)}
"""Modules that say what a unit is, not how anything is written: the model may ask them, beside the names of bits."""


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_model_knows_nothing_of_its_driver(vendor: str) -> None:
    own = f"iommukit_{vendor}"
    allowed = (f"{own}.model", f"{own}.layout", *(f"{own}.{name}" for name in DESCRIBES_UNITS[vendor]))
    files = list((ROOT / "plugins" / vendor / own / "model").glob("*.py"))
    wrong = [
        (path, module)
        for path in files
        for module in _imports(path)
        if module.startswith(WRITES_TABLES) or (module.startswith(f"{own}.") and not module.startswith(allowed))
    ]
    assert len(files) > 3
    assert not wrong


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_driver_knows_nothing_of_the_model(vendor: str) -> None:
    """But for the one hook that builds it, and for reading dumps as hardware would."""
    own = f"iommukit_{vendor}"
    users = {
        path.name
        for path in (ROOT / "plugins" / vendor / own).glob("*.py")
        if any(module.startswith(f"{own}.model") for module in _imports(path))
    }
    assert len(users - {"dump.py"}) <= 1, users


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_module_has_a_hook_s_name(vendor: str) -> None:
    """Importing it would put the module in the hook's place in the package."""
    hooks = {name for name in vars(VendorSpec) if not name.startswith("_")}
    wrong = [path for path in (ROOT / "plugins" / vendor / f"iommukit_{vendor}").glob("*.py") if path.stem in hooks]
    assert not wrong


def test_vendor_names_decide_nothing_in_the_core() -> None:
    """The suite asks for capabilities; the core knows no vendor."""
    named = re.compile("|".join(rf"[\"']{vendor}[\"']" for vendor in VENDORS))
    for folder in (CORE, ROOT / "conformance"):
        wrong = [path for path in folder.rglob("*.py") if named.search(path.read_text(encoding="utf-8"))]
        assert not wrong


def test_no_file_knows_its_author_s_machine() -> None:
    pattern = re.compile(r"(?<![\w.)])/(?:work|root|home)/\w")
    wrong = [
        path
        for suffix in ("*.py", "*.md", "*.toml", "*.yaml", "*.ini")
        for path in ROOT.rglob(suffix)
        if not {".venv", ".tox", "build", "dist"} & set(path.relative_to(ROOT).parts)
        and pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert not wrong
