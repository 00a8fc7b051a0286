"""Walks of tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from iommukit.hw.walk import Mode, Step
from iommukit.report.page import Page, Span, counted
from iommukit.report.walk import DeviceWalk, Range, WalkReport

MODE_STYLE = {Mode.TRANSLATED: "good", Mode.PASS_THROUGH: "warn", Mode.BLOCKED: "plain", Mode.BAD: "bad"}

MANY, SHOWN = 16, 3
"""More bad entries than this and nothing else is no table of that kind: then only so many are shown."""

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(size: int) -> str:
    """Bytes in the largest unit that divides them."""
    unit = 0
    while size and size % 1024 == 0 and unit < len(UNITS) - 1:
        size //= 1024
        unit += 1
    return f"{size} {UNITS[unit]}"


def walk_page(report: WalkReport) -> Page:
    """The devices, the entries that lead to their tables, and their ranges or the one address."""
    page = Page()
    roots = ", ".join(f"{name} {value:#x}" for name, value in report.roots.items())
    arch = f" of {report.arch}" if report.arch else ""
    page.line(Span(report.dump, "name"), f": {size_text(report.memory)}{arch}; {report.vendor} from {roots}")
    hopeless = len(report.devices) > MANY and all(device.walk.mode is Mode.BAD for device in report.devices)
    for device in report.devices[:SHOWN] if hopeless else report.devices:
        page.blank()
        _device(page, device, report.iova)
    if hopeless:
        page.blank()
        page.line(Span(f"all {len(report.devices)} entries are bad: is this the right root, and {report.vendor}'s table?", "bad"))
    if not report.devices and not report.cut:
        page.line("no device has an entry", indent=2)
    if report.cut:
        page.blank()
        page.line(Span(f"cut: {report.cut}", "warn"))
    return page


def _device(page: Page, device: DeviceWalk, iova: int | None) -> None:
    walk = device.walk
    number = "" if device.label == hex(device.requester) else f" ({device.requester:#x})"
    tag = "" if walk.domain is None else f", domain {walk.domain:#x}"
    reason = f": {walk.reason}" if walk.reason else ""
    page.line(Span(device.label, "name"), f"{number}  ", Span(walk.mode.value, MODE_STYLE[walk.mode]), f"{tag}{reason}")
    if iova is None:
        _entries(page, walk.steps)
        if walk.mode is Mode.TRANSLATED and not walk.reason:
            _ranges(page, device.ranges)
        return
    found = device.ranges[0] if device.ranges else None
    _entries(page, (*walk.steps, *(found.path if found else ())))
    if found is None:
        passed = walk.mode is Mode.PASS_THROUGH
        page.line(f"{iova:#x} → ", Span(f"{iova:#x}", "good") if passed else Span(walk.mode.value, "bad"), indent=2)
    elif found.reason:
        page.line(f"{iova:#x} → ", Span(found.reason, "bad"), indent=2)
    else:
        physical = found.physical + iova - found.iova
        what = ", ".join(f"page of {size_text(size)}" for size in found.pages)
        page.line(f"{iova:#x} → ", Span(f"{physical:#x}", "good"), f" ({found.rights}, {what})", indent=2)


def _entries(page: Page, steps: Iterable[Step]) -> None:
    page.pairs(
        [(step.name, f"at {step.address:#x}", f"{step.value:#x}", Span(step.meaning, "dim")) for step in steps],
        indent=2,
    )


def _ranges(page: Page, ranges: list[Range]) -> None:
    if not ranges:
        page.line("nothing is mapped", indent=2)
        return
    grid = page.grid("IOVA", "size", "physical", "rights", "pages", "first entry")
    for each in ranges:
        last = each.path[-1] if each.path else None
        grid.add(
            Span(f"{each.iova:#x}"),
            size_text(each.size),
            Span(each.reason, "bad") if each.reason else f"{each.physical:#x}",
            "" if each.reason else Span(each.rights, "good"),
            ", ".join(f"{count} of {size_text(size)}" for size, count in sorted(each.pages.items())),
            Span(f"{last.name} at {last.address:#x}" if last else "", "dim"),
        )
    good = [each for each in ranges if not each.reason]
    total = counted(len(good), "range") + f", {size_text(sum(each.size for each in good))}"
    bad = len(ranges) - len(good)
    page.line(total, Span(f", {counted(bad, 'bad entry', 'bad entries')}", "bad") if bad else "", indent=2)
