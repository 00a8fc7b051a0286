"""The kernel command line: who reads which option, in which order, and what had no effect.

Early parameters are parsed first, in the order written; ``__setup`` options afterwards, in the order written.  What nobody
reads is reported, as are values that an option refuses and options that are believed to do something and do not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iommukit.kernel.boot import BootState


class Stage(enum.Enum):
    """When an option is read."""

    EARLY = "early"
    SETUP = "setup"


class Verdict(enum.Enum):
    """What became of an option."""

    EFFECTIVE = "effective"
    """It changed something that this model follows."""
    INEFFECTIVE = "ineffective"
    """It was read and changed nothing here."""
    INVALID = "invalid"
    """Its reader refused the value; nothing changed."""
    UNKNOWN = "unknown"
    """No reader in this kernel."""


@dataclass(frozen=True, slots=True)
class OptionReport:
    """What became of one word of the command line."""

    option: str
    verdict: Verdict
    note: str = ""
    malformed: bool = False
    """Its reader answered non-zero although it took the word, and the kernel calls the option malformed."""


Apply = Callable[[str | None, "BootState"], Iterable[OptionReport]]


@dataclass(frozen=True, slots=True)
class KernelOption:
    """One option.

    ``apply`` gets the text after ``=`` (``None`` where there is no ``=``) and the boot state, changes the state, and yields what it
    made of the value.
    """

    name: str
    stage: Stage
    apply: Apply
    summary: str


def kstrtobool(value: str | None) -> bool | None:
    """The kernel's idea of a boolean: ``None`` where it refuses (``lib/kstrtox.c``).

    Only the first character counts, or the first two of ``on`` and ``off``.
    """
    if not value:
        return None
    first = value[0]
    if first in "yYtT1":
        return True
    if first in "nNfF0":
        return False
    if first in "oO":
        second = value[1:2]
        if second in ("n", "N"):
            return True
        if second in ("f", "F"):
            return False
    return None


def split_cmdline(text: str) -> Iterator[tuple[str, str | None]]:
    """Split into names and values (``next_arg``): double quotes group, ``--`` ends the kernel's part."""
    for word in _words(text):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if equals and value.startswith('"'):
            value = value[1:-1] if value.endswith('"') and len(value) > 1 else value[1:]
        yield name, value if equals else None


@lru_cache(maxsize=1024)
def _split(text: str) -> tuple[tuple[str, str | None], ...]:
    return tuple(split_cmdline(text))


def _words(text: str) -> Iterator[str]:
    word: list[str] = []
    quoted = False
    for character in text:
        if character == '"':
            quoted = not quoted
        if character.isspace() and not quoted:
            if word:
                yield _unquote("".join(word))
            word = []
        else:
            word.append(character)
    if word:
        yield _unquote("".join(word))


def _unquote(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == '"' == word[-1] else word.removeprefix('"')


def _same(name: str) -> str:
    """The kernel takes - and _ in parameter names for the same character."""
    return name.replace("-", "_")


def apply_cmdline(boot: BootState, options: Iterable[KernelOption], relevant: Callable[[str], bool]) -> list[OptionReport]:
    """Run every option of the command line through its readers.

    ``relevant`` says of a name that no reader claims whether it looks like ours; other words of a command line
    (``root=…``, ``quiet``) are nobody's business here and are not reported.
    """
    readers: dict[str, list[KernelOption]] = {}
    for option in options:
        readers.setdefault(_same(option.name), []).append(option)
    words = _split(boot.cmdline)
    reports: list[tuple[int, OptionReport]] = []
    for stage in Stage:
        for position, (name, value) in enumerate(words):
            for option in readers.get(_same(name), ()):
                if option.stage is not stage:
                    continue
                made = list(option.apply(value, boot))
                reports.extend((position, report) for report in made)
                if stage is Stage.EARLY and any(report.malformed or report.verdict is Verdict.INVALID for report in made):
                    boot.log.append(f"Malformed early option '{name}'")  # do_early_param
    for position, (name, value) in enumerate(words):
        if _same(name) not in readers and relevant(name):
            shown = name if value is None else f"{name}={value}"
            reports.append((position, OptionReport(shown, Verdict.UNKNOWN, "no reader in this kernel")))
    return [report for _, report in sorted(reports, key=lambda pair: pair[0])]
