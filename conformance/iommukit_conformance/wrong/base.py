"""What wrong drivers have in common."""

from __future__ import annotations

from typing import ClassVar

from iommukit_conformance.reference import Reference


class Wrong(Reference):
    """A reference driver with one mistake."""

    mistake: ClassVar[str]
    """The mistake, in one sentence."""
    rule: ClassVar[str]
    """The rule that must reject it."""
    kernel: ClassVar[str] = "rfc"
    """A kernel under which the mistake shows."""

    @classmethod
    def label(cls) -> str:
        """The class name as words."""
        return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).lstrip("-")
