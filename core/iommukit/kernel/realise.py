"""Realising a machine for a vendor: roles become the vendor's devices, firmware becomes parsed tables."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from iommukit.errors import InputError, NotApplicable
from iommukit.kernel.boot import BootState
from iommukit.machine.model import DeviceSpec, Machine
from iommukit.machine.tables import BASE64
from iommukit.vendors import Vendor


def realise(machine: Machine, vendor: Vendor, boot: BootState) -> Machine:
    """The machine as this vendor would have it.

    Raises ``NotApplicable`` where the vendor lacks the architecture, a hardware option, a role or the reader for a table;
    ``InputError`` or ``FirmwareError`` for a table that cannot be read.
    """
    declaration = vendor.declaration
    if machine.arch is not None and machine.arch not in declaration.arch:
        raise NotApplicable(f"{vendor.name} does not exist on {machine.arch}")
    for key in machine.hardware:
        if key not in declaration.hardware_options:
            raise NotApplicable(f"{vendor.name} has no hardware option {key}")
    firmware = {signature: _table(machine, vendor, signature, raw) for signature, raw in machine.firmware.items()}
    hardware = dict(machine.hardware)
    devices: list[DeviceSpec] = []
    extra: list[DeviceSpec] = []
    for spec in machine.devices:
        if spec.role in (None, "plain"):
            devices.append(spec)
        elif spec.role == "untrusted":
            devices.extend(_untrusted(machine, vendor, spec))
        else:
            device, companions = _example(vendor, spec, boot, hardware)
            devices.append(device)
            # Two devices of one role share their companion.
            extra.extend(companion for companion in companions if companion not in extra)
    if not (firmware or extra) and all(spec.role in (None, "plain") for spec in machine.devices):
        return machine
    return _rebuild(machine, devices=(*extra, *devices), hardware=hardware, firmware=firmware)


def _rebuild(machine: Machine, **changes: Any) -> Machine:
    names = [spec.name for spec in changes["devices"]]
    if len(set(names)) != len(names):
        raise InputError("a role's companion has the name of another device", source=machine.source)
    return machine.model_copy(update=changes)


def _untrusted(machine: Machine, vendor: Vendor, spec: DeviceSpec) -> list[DeviceSpec]:
    """A device below an external-facing port; the port is added where the machine names none."""
    if not vendor.has("trust"):
        raise NotApplicable(f"{vendor.name} knows no untrusted devices")
    if spec.parent is not None:
        above: str | None = spec.parent
        while above is not None:
            port = machine.device(above)
            if port is None:
                break
            if port.external_facing:
                return [spec]
            above = port.parent
        message = "an untrusted device needs an external-facing port above it"
        raise InputError(message, source=machine.source, place=f"device {spec.name}")
    port = DeviceSpec.model_validate(
        {
            "name": f"{spec.name}-port",
            "id": "1b36:000c",
            "class": "060400",
            "kind": "root_port",
            "acs": ("SV", "RR", "CR", "UF"),
            "external_facing": True,
        }
    )
    return [port, spec.model_copy(update={"parent": port.name, "address": None})]


def _example(vendor: Vendor, spec: DeviceSpec, boot: BootState, hardware: dict[str, Any]) -> tuple[DeviceSpec, list[DeviceSpec]]:
    assert spec.role is not None
    example = vendor.ops.example_device(role=spec.role, boot=boot)
    if example is None:
        raise NotApplicable(f"{vendor.name} has no device for the role {spec.role}")
    for key, value in example.hardware.items():
        if hardware.setdefault(key, value) != value:
            raise NotApplicable(f"the role {spec.role} needs {key}={value}, the machine says {hardware[key]}")
    given = spec.model_dump(mode="python", by_alias=True, exclude_unset=True, exclude={"role"})
    # What the machine file says of the device outranks the example, except for what makes the role.
    fields = {**given, **example.device, "name": spec.name, "role": spec.role}
    try:
        device = DeviceSpec.model_validate(fields)
        companions = [DeviceSpec.model_validate(companion) for companion in example.companions]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"its example for the role {spec.role} is no device: {place}: {first['msg']}"
        raise InputError(message, source=f"vendor plugin {vendor.name}") from error
    return device, companions


def _table(machine: Machine, vendor: Vendor, signature: str, raw: Any) -> Any:
    formats = {known.signature: known for known in vendor.ops.firmware_formats()}
    reader = formats.get(signature)
    if reader is None:
        raise NotApplicable(f"{vendor.name} reads no {signature} table")
    source = f"{machine.source}, firmware {signature}"
    if isinstance(raw, bytes):
        return reader.parse(raw, source)
    if isinstance(raw, str) and raw.startswith(BASE64):
        try:
            data = base64.b64decode("".join(raw.removeprefix(BASE64).split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError("is no base64 text", source=source) from error
        return reader.parse(data, source)
    if isinstance(raw, Mapping):
        return reader.validate(raw, source)
    if isinstance(raw, BaseModel):
        return raw
    if isinstance(raw, str):
        message = "a table beside the machine file was expected, base64:… or structured fields"
        raise InputError(message, source=source)
    message = f"a file name, base64:… or structured fields were expected, got {type(raw).__name__}"
    raise InputError(message, source=source)
