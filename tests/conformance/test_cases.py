"""The five outcomes of a case, without pytest around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from iommukit.domain import DomainType
from iommukit.errors import InputError, IommuError, NotApplicable
from iommukit.hookspecs import VendorDeclaration, hookimpl
from iommukit.kernel.profiles import get_kernel
from iommukit.scenario.result import Outcome
from iommukit.vendors import VendorRegistry
from iommukit_conformance.case import Case, Finding, HarnessFault, Stage, Undecided, decide, hold
from iommukit_conformance.lab import Bench, Lab
from iommukit_conformance.reference import NAME, Reference
from iommukit_conformance.selection import Selection, select
from iommukit_conformance.session import Session
from iommukit_conformance.suite import cases
from iommukit_conformance.wrong.domains import CrashesOnUnknownTypes

RULE = "DRV-22"


class Honest(Reference):
    """Declares that it breaks a rule."""

    @hookimpl
    def declare(self) -> VendorDeclaration:
        said = super().declare()
        return VendorDeclaration(said.title, said.arch, said.capabilities, said.hardware_options, {RULE: "hardware bug 7"})


def lab_of(driver: Reference, kernel: str = "rfc") -> Lab:
    registry = VendorRegistry()
    registry.register(driver, NAME)
    return Bench(registry).lab(NAME, get_kernel(kernel))


def case_of(*answers: object, rule: str = RULE) -> Case:
    def check(lab: Lab) -> Iterator[str | None]:
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer  # type: ignore[misc]

    return Case("made-up", check, rule, "a rule")


@pytest.mark.parametrize(
    ("answers", "outcome", "reason"),
    [
        ((None,), Outcome.PASS, ""),
        ((None, "wrong"), Outcome.FAIL, ""),
        ((), Outcome.UNDECIDED, "nothing came up that could be checked"),
        ((NotApplicable("no ports"),), Outcome.NOT_APPLICABLE, "no ports"),
        ((Undecided("nobody can say"),), Outcome.UNDECIDED, "nobody can say"),
        ((None, Undecided("nobody can say")), Outcome.UNDECIDED, "nobody can say"),
        (("wrong", NotApplicable("too late")), Outcome.FAIL, ""),
        (("wrong", Undecided("too late")), Outcome.FAIL, ""),
        ((IommuError("ENOMEM"),), Outcome.FAIL, ""),
    ],
)
def test_outcomes(answers: tuple[object, ...], outcome: Outcome, reason: str) -> None:
    verdict = decide(case_of(*answers), lab_of(Reference()))
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_a_declared_failure_is_expected_with_its_reason() -> None:
    verdict = decide(case_of("wrong"), lab_of(Honest()))
    assert (verdict.outcome, verdict.reason) == (Outcome.XFAIL, "hardware bug 7")


def test_a_declared_failure_that_passes_is_a_failure() -> None:
    verdict = decide(case_of(None), lab_of(Honest()))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.findings[0].text == "passes, though it is declared to fail: hardware bug 7"


def test_a_declaration_excuses_no_other_rule() -> None:
    case = case_of(Finding("DRV-24", "something else"), "wrong")
    assert decide(case, lab_of(Honest())).outcome is Outcome.FAIL


@pytest.mark.parametrize("answer", [NotApplicable("x"), Undecided("x")])
def test_a_declared_failure_that_was_not_tried_is_neither(answer: Exception) -> None:
    assert decide(case_of(answer), lab_of(Honest())).outcome in (Outcome.NOT_APPLICABLE, Outcome.UNDECIDED)


def test_a_crash_of_the_driver_is_its_own() -> None:
    def check(lab: Lab) -> Iterator[str | None]:
        lab.alloc(lab.plain(), DomainType.BLOCKED)
        yield None

    verdict = decide(Case("crash", check, "DRV-33"), lab_of(CrashesOnUnknownTypes()))
    assert verdict.outcome is Outcome.FAIL
    assert {finding.rule for finding in verdict.findings} == {"DRV-02"}
    assert "KeyError" in verdict.findings[0].text


def test_a_crash_of_the_suite_is_not_the_driver_s() -> None:
    with pytest.raises(HarnessFault, match="ZeroDivisionError"):
        decide(case_of(ZeroDivisionError()), lab_of(Reference()))


def test_hold() -> None:
    assert hold(1, "no") is None
    assert hold((), "no") == "no"


# ---- sessions --------------------------------------------------------------------------------------------------------


class DoesNotBoot(Reference):
    @hookimpl
    def discover(self, machine, boot):
        raise InputError("is no machine for me", source=machine.machine)


def session_of(driver: Reference, **more: dict[str, str]) -> Session:
    registry = VendorRegistry()
    registry.register(driver, NAME)
    return Session(Selection(registry, (NAME,), (get_kernel("rfc"),), {}), more.get("disputed"))


def verdicts(session: Session, names: tuple[str, ...]) -> dict[str, Outcome]:
    chosen = [case for case in cases() if case.name in names]
    assert len(chosen) == len(names)
    return {case.name: session.decide(case, NAME, get_kernel("rfc")).outcome for case in chosen}


NAMES = ("an_ordinary_machine_boots", "an_ordinary_device_requires_nothing", "heard_DRV-30")


def test_a_vendor_that_boots_is_examined() -> None:
    assert set(verdicts(session_of(Reference()), NAMES).values()) == {Outcome.PASS}


def test_a_vendor_that_does_not_boot_is_not_examined_further() -> None:
    session = session_of(DoesNotBoot())
    found = verdicts(session, NAMES)
    assert found.pop("an_ordinary_machine_boots") is Outcome.FAIL
    assert set(found.values()) == {Outcome.UNDECIDED}
    assert "is no machine for me" in session.smoke(NAME, get_kernel("rfc"))


def test_a_vendor_that_cannot_be_loaded_fails_its_smoke_test() -> None:
    session = Session(Selection(VendorRegistry(), ("acme",), (get_kernel("rfc"),), {"acme": "no module 'acme'"}))
    smoke, other = (next(case for case in cases() if case.name == name) for name in NAMES[:2])
    verdict = session.decide(smoke, "acme", get_kernel("rfc"))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.findings[0].text == "no module 'acme'"
    assert session.decide(other, "acme", get_kernel("rfc")).outcome is Outcome.UNDECIDED


def test_a_broken_suite_judges_nobody() -> None:
    session = session_of(Reference())
    session.__dict__["_harness"] = {"x": decide(case_of("two and two is five"), lab_of(Reference()))}
    case = next(case for case in cases() if case.name == NAMES[1])
    verdict = session.decide(case, NAME, get_kernel("rfc"))
    assert verdict.outcome is Outcome.UNDECIDED
    assert "the suite itself is broken, which says nothing of a driver" in verdict.reason
    assert "two and two is five" in verdict.reason


@pytest.mark.parametrize("key", [NAMES[1], f"{NAMES[1]}[reference]", f"{NAMES[1]}[reference-rfc]"])
def test_a_disputed_case_is_undecided_with_its_reason(key: str) -> None:
    session = session_of(Reference(), disputed={key: "reads the wrong manual"})
    case = next(case for case in cases() if case.name == NAMES[1])
    verdict = session.decide(case, NAME, get_kernel("rfc"))
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "disputed: reads the wrong manual")


# ---- choosing --------------------------------------------------------------------------------------------------------

PLUGIN = "toy=iommukit_conformance.reference:driver"


def test_a_vendor_plugin_alone_is_what_is_tested() -> None:
    selection = select(plugins=[PLUGIN])
    assert selection.vendors == ("toy",)
    assert set(selection.registry.names()) > {"toy"}


def test_without_a_name_the_module_names_the_vendor() -> None:
    assert select(plugins=["iommukit_conformance.reference:driver"]).vendors == ("reference",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vendors": ["acme"]}, r"^no vendor 'acme'; there are .*intel_vtd"),
        ({"kernels": ["2.6"]}, r"^no kernel '2.6'; there are rfc, "),
        ({"kernels": ["5.15"]}, r"^of kernel 5.15 only the boot is modelled"),
        ({"plugins": ["acme"]}, r"^--vendor-plugin acme: no module 'acme'$"),
        ({"plugins": ["iommukit_conformance.reference:nobody"]}, r"^--vendor-plugin .*: cannot be loaded: AttributeError"),
    ],
)
def test_what_does_not_exist_is_named_in_one_line(arguments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        select(**arguments)
    assert "\n" not in str(caught.value)


def test_a_plugin_without_hooks_is_broken_and_named() -> None:
    selection = select(plugins=["acme=iommukit_conformance.rules"])
    assert selection.vendors == ("acme",)
    assert "declare" in selection.broken["acme"]


def test_the_names_of_cases_are_unique_and_their_rules_exist() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    from iommukit_conformance.scenarios import known_rules

    assert {case.rule for case in cases() if case.stage is not Stage.SCENARIO} <= known_rules()
    assert all(case.title for case in cases())


def test_the_suite_asks_for_capabilities_and_never_for_names() -> None:
    import iommukit_conformance

    names = [entry.name for entry in entry_points(group="iommukit.vendors")]
    assert len(names) >= 4
    folder = Path(iommukit_conformance.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert [name for name in names if re.search(rf"\b{name}\b", text)] == [], path.name
