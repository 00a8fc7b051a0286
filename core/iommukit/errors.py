"""The kinds of error that users and drivers meet.

``InputError`` is somebody's bad input: one line that names the file, the place in it and what was expected; the command
line turns it into exit code 2.  ``IommuError`` is an errno that a driver or the core answers inside the model.
"""

from __future__ import annotations

import errno as _errno


class InputError(Exception):
    """Bad input: a file, a table, a name or a key that cannot be used.

    ``str(error)`` is one line, ``source: place: what is wrong``, fit to be printed as it is.
    """

    def __init__(self, message: str, *, source: str | None = None, place: str | None = None) -> None:
        self.source = source
        self.place = place
        self.message = message
        super().__init__(": ".join(part for part in (source, place, message) if part))


class FirmwareError(InputError):
    """A firmware table that cannot be what it says it is.

    ``table`` is the ACPI signature, ``offset`` counts bytes from the start of the table, ``field`` is the field's name in
    the table's specification.
    """

    def __init__(self, message: str, *, table: str, offset: int, field: str, source: str | None = None) -> None:
        self.table = table
        self.offset = offset
        self.field = field
        super().__init__(message, source=source, place=f"{table} at offset {offset:#x}, {field}")


class IommuError(Exception):
    """A negative errno of the modelled kernel or driver, such as ``IommuError("EBUSY")``.

    ``EPROBE_DEFER`` is the kernel's own: whoever binds through sysfs sees it as ``EAGAIN``.
    """

    def __init__(self, name: str, reason: str = "") -> None:
        if not hasattr(_errno, name) and name != "EPROBE_DEFER":
            raise ValueError(f"{name} is no errno name")
        self.name = name
        self.reason = reason
        super().__init__(f"-{name}" + (f": {reason}" if reason else ""))


class NotApplicable(Exception):
    """A vendor or a kernel cannot express what a scenario asks for; ``str(error)`` is the reason shown beside N/A."""


class HardwareLost(Exception):
    """The hardware under a running kernel is gone: an emulator has died or stopped to answer.

    ``str(error)`` is one line with its last words.  It is a finding about what the driver did to it, and never a pass.
    """
