"""What firmware says in a guest: ports that face outside, memory that it reserves, the wish for protection.

Ports are described by a table of their own, which ``iasl`` compiles.  Regions go into QEMU's own DMAR or IVRS, read in a guest that
has the same devices, and put in its place (``CONFIG_ACPI_TABLE_UPGRADE``).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from iommukit.machine.acpi import checksummed
from iommukit_oracle.guest.packages import Archive, Packages, Unavailable, cache_folder
from iommukit_oracle.kernel.realisation import Region

# ---- ports that face outside -----------------------------------------------------------------------------------------

_TABLE = """DefinitionBlock ("", "SSDT", 2, "IOMMUK", "EXTPORT", 1)
{{
{ports}
}}
"""
_PORT = """    External (\\_SB.PCI0.S{number:02X}, DeviceObj)
    Scope (\\_SB.PCI0.S{number:02X})
    {{
        Name (_DSD, Package ()
        {{
            ToUUID ("efcc06cc-73ac-4bc3-bff0-76143807c389"),
            Package () {{ Package () {{ "ExternalFacingPort", 1 }}, Package () {{ "UID", {order} }} }}
        }})
    }}"""
"""QEMU names the device in slot s with function f ``S`` and s * 8 + f; the property is that of Windows' DMA protection."""
TIMEOUT = 30
"""Seconds for the compiler."""


def external_ports(numbers: Sequence[int]) -> Path:
    """A table, in the cache, that calls ports of the root bus external-facing: by slot and function number.

    Raises ``Unavailable`` without a compiler.
    """
    target = cache_folder() / "tables" / f"ext-{'-'.join(f'{number:02x}' for number in sorted(numbers))}.aml"
    if not target.exists():
        ports = "\n".join(_PORT.format(number=number, order=order) for order, number in enumerate(sorted(numbers)))
        compiled = _compile(_TABLE.format(ports=ports))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        partial.write_bytes(compiled)
        partial.replace(target)
    return target


def _compile(text: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="iommukit-asl-") as folder:
        source = Path(folder) / "table.asl"
        source.write_text(text)
        done = subprocess.run(
            [_compiler(), "-p", str(source.with_suffix("")), str(source)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        made = source.with_suffix(".aml")
        if done.returncode or not made.exists():
            raise Unavailable(f"iasl does not compile the table of ports: {(done.stderr or done.stdout).strip()[-200:]}")
        return made.read_bytes()


@lru_cache(maxsize=1)
def _compiler() -> str:
    """The one on the path, else Debian's, unpacked in the cache."""
    found = shutil.which("iasl")
    if found:
        return found
    arch = {"x86_64": "amd64", "aarch64": "arm64", "s390x": "s390x"}.get(os.uname().machine, "")
    program = Packages(Archive(arch)).unpacked("acpica-tools", wanted=lambda path: path == "usr/bin/iasl") / "usr/bin/iasl"
    if not program.exists():
        raise Unavailable("neither iasl nor Debian's package acpica-tools is to be had")
    program.chmod(0o755)
    return str(program)


# ---- tables in place of QEMU's ---------------------------------------------------------------------------------------

_LENGTH, _REVISION = 4, 24
"""Offsets in the header that all tables share (ACPI 5.2.6); the kernel takes a table of a higher OEM revision."""
_DMAR_FLAGS, _OPT_IN = 37, 1 << 2
"""DMA_CTRL_PLATFORM_OPT_IN_FLAG (VT-d 8.1)."""


def with_regions(signature: str, table: bytes, regions: Sequence[Region], *, opt_in: bool) -> bytes:
    """QEMU's DMAR or IVRS with further regions, and with the wish for protection."""
    new = bytearray(table)
    if opt_in:
        new[_DMAR_FLAGS] |= _OPT_IN
    for region in regions:
        new += _rmrr(region) if signature == "DMAR" else _ivmd(region)
    new[_LENGTH : _LENGTH + 4] = struct.pack("<I", len(new))
    revision = struct.unpack_from("<I", new, _REVISION)[0]
    new[_REVISION : _REVISION + 4] = struct.pack("<I", revision + 1)
    return checksummed(bytes(new))


def _rmrr(region: Region) -> bytes:
    """Reserved memory of one endpoint (VT-d 8.4, 8.3.1)."""
    path = b"".join(bytes(step) for step in region.path)
    scope = struct.pack("<BBHBB", 1, 6 + len(path), 0, 0, 0) + path
    return struct.pack("<HHHHQQ", 1, 24 + len(scope), 0, 0, region.start, region.end) + scope


def _ivmd(region: Region) -> bytes:
    """Memory of one requester, mapped one to one for reads and writes (AMD 5.2.2.7)."""
    size = region.end + 1 - region.start
    return struct.pack("<BBHHH8sQQ", 0x21, 0x07, 0x20, region.requester, 0, b"", region.start, size)


def from_lines(lines: Sequence[str]) -> bytes:
    """A table that a guest has read as lines: its own length tells how many newlines stood at the end."""
    data = "\n".join(lines).encode("latin-1")
    length = struct.unpack_from("<I", data, _LENGTH)[0] if len(data) >= _LENGTH + 4 else 0
    return data.ljust(length, b"\n")[:length]
