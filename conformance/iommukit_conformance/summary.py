"""The matrix of a session: counts by vendor and kernel, what failed, and why the rest did not run."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iommukit.errors import InputError
from iommukit.scenario.result import Outcome
from iommukit_conformance.case import SUITE
from iommukit_conformance.lab import MODEL

OUTCOMES = tuple(outcome.value for outcome in Outcome)
SHOWN_FINDINGS = 3
EMULATOR = "qemu"
_MISTAKE = {Outcome.PASS.value: "rejected", Outcome.FAIL.value: "ACCEPTED", Outcome.NOT_APPLICABLE.value: "unseen"}
"""What a row about a mistake says of it."""
SHOWN_REASONS = 6

Row = dict[str, Any]


class Matrix:
    """The rows of a session, one for each case, vendor and kernel."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.unwritten = ""
        """Why the matrix could not be written."""

    def add(self, row: Row) -> None:
        """Take a row."""
        self.rows.append(row)

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """How many of each outcome, by vendor and kernel."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for row in self.rows:
            cell = found.setdefault(row["vendor"], {}).setdefault(row["kernel"], dict.fromkeys(OUTCOMES, 0))
            cell[row["outcome"]] += 1
        return found

    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row["outcome"] == Outcome.FAIL.value]

    def faults(self) -> list[str]:
        """What is wrong with the suite or the model, not with a vendor."""
        broken = [
            f"{row['case']}: {finding['text']}"
            for row in self.failures()
            if row["vendor"] == SUITE
            for finding in row.get("findings", ())
        ]
        return broken + list(dict.fromkeys(row["reason"] for row in self.rows if row.get("fault")))

    def tested(self) -> bool:
        """Whether any case of a vendor has passed or failed."""
        meant = (Outcome.PASS.value, Outcome.FAIL.value, Outcome.XFAIL.value)
        return any(row["vendor"] != SUITE and row["outcome"] in meant for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The matrix as data: ``counts[vendor][kernel][outcome]``, all ``cases``, and ``faults`` of the suite itself.

        The order is the names', whatever order the cases were run in.
        """
        ordered = Matrix()
        ordered.rows = sorted(self.rows, key=lambda row: tuple(row[key] for key in ("vendor", "kernel", "stage", "case", "title")))
        return {"format": "iommukit-matrix-1", "faults": ordered.faults(), "counts": ordered.counts(), "cases": ordered.rows}

    def write(self, path: Path) -> None:
        """Write the matrix; the file is there whole or not at all.  Raises ``InputError``."""
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self.to_json(), file, indent=1, ensure_ascii=False)
                    file.write("\n")
                Path(name).chmod(0o644)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", source=str(path)) from error

    # ---- for people --------------------------------------------------------------------------------------------------

    def table(self) -> Iterator[str]:
        """Vendor, kernel and the five counts; where an emulator was used, its name."""
        used = {row["hardware"] for row in self.rows if "hardware" in row} - {MODEL}
        if used:
            yield f"on the hardware of {', '.join(sorted(used))}"
        counts = self.counts()
        names = [vendor for vendor in counts if vendor != SUITE] + [vendor for vendor in counts if vendor == SUITE]
        width = max(map(len, (*names, "vendor")))
        kernels = max(map(len, (*(kernel for cells in counts.values() for kernel in cells), "kernel")))
        yield f"{'vendor':{width}}  {'kernel':{kernels}}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES)
        for vendor in names:
            for kernel, cell in counts[vendor].items():
                numbers = "".join(f"{cell[outcome] or '.':>11}" for outcome in OUTCOMES)
                yield f"{vendor:{width}}  {kernel:{kernels}}{numbers}"

    def wrong_drivers(self) -> Iterator[str]:
        """Which wrong driver the suite has rejected, by which rule, for which mistake."""
        from iommukit_conformance.wrong import WRONG

        drivers = {driver.label(): driver for driver in WRONG}
        rows = [row for row in self.rows if row["vendor"] == SUITE and row["case"] in drivers]
        if not rows:
            return
        rejected = sum(row["outcome"] == Outcome.PASS.value for row in rows)
        width = max(len(row["case"]) for row in rows)
        yield f"{'wrong driver':{width}}  {'by rule':8}  mistake  ({rejected} of {len(rows)} rejected by the rule that names it)"
        for row in rows:
            driver = drivers[row["case"]]
            rule = driver.rule if row["outcome"] == Outcome.PASS.value else "ACCEPTED"
            yield f"{row['case']:{width}}  {rule:8}  {driver.mistake}"

    def mistakes(self) -> Iterator[str]:
        """Which mistake in using hardware was rejected with which vendor, on the model and on an emulator."""
        rows = [row for row in self.rows if "mistake" in row]
        if not rows:
            return
        seen = [row for row in rows if row["outcome"] != Outcome.NOT_APPLICABLE.value]
        rejected = sum(row["outcome"] == Outcome.PASS.value for row in seen)
        vendors, names = (
            max(len(title), *(len(row[key]) for row in rows)) for title, key in (("vendor", "vendor"), ("mistake", "case"))
        )
        yield (
            f"{'vendor':{vendors}}  {'mistake':{names}}  {'by rule':9}  {MODEL:8}  {EMULATOR:8}"
            f"  ({rejected} of {len(seen)} rejected by the rule that names it)"
        )
        for row in rows:
            word = _MISTAKE.get(row["outcome"], row["outcome"].lower())
            cells = {MODEL: "-", EMULATOR: "-", MODEL if row["hardware"] == MODEL else EMULATOR: word}
            columns = f"{cells[MODEL]:8}  {cells[EMULATOR]:8}"
            what = row["reason"] if row["outcome"] == Outcome.NOT_APPLICABLE.value else row["mistake"]["sentence"]
            yield f"{row['vendor']:{vendors}}  {row['case']:{names}}  {row['mistake']['rule']:9}  {columns}  {what}"
        yield "- not tried in this session: one session has one hardware (--hardware); unseen: it cannot show there, for the reason"

    def failed(self) -> Iterator[str]:
        """What failed, with its first findings; a failure that is the same under several kernels once."""
        same: dict[str, list[Row]] = {}
        for row in self.failures():
            what = [row[key] for key in ("vendor", "case", "rule", "title")]
            same.setdefault(json.dumps([what, row.get("findings")]), []).append(row)
        for rows in same.values():
            row, kernels = rows[0], ", ".join(row["kernel"] for row in rows)
            yield f"{row['vendor']} under {kernels}: {row['rule'] or 'no rule'}: {row['title']} [{row['case']}]"
            findings = row.get("findings", ())
            for finding in findings[:SHOWN_FINDINGS]:
                named = "" if finding["rule"] == row["rule"] else f"{finding['rule']}: "
                yield f"    {named}{finding['text']}"
            if len(findings) > SHOWN_FINDINGS:
                yield f"    and {len(findings) - SHOWN_FINDINGS} more"

    def reasons(self) -> Iterator[str]:
        """Why cases were not applicable, undecided or expected to fail; the most frequent reasons."""
        for outcome in (Outcome.XFAIL, Outcome.NOT_APPLICABLE, Outcome.UNDECIDED):
            found = Counter(row.get("reason", "") for row in self.rows if row["outcome"] == outcome.value)
            for reason, number in found.most_common(SHOWN_REASONS):
                yield f"{outcome.value:>9} {number:6}  {reason}"
            rest = sum(found.values()) - sum(number for _, number in found.most_common(SHOWN_REASONS))
            if rest:
                yield f"{outcome.value:>9} {rest:6}  for {len(found) - SHOWN_REASONS} other reasons (--matrix-json has them all)"
