"""Functions of s390 as QEMU makes them."""

from __future__ import annotations

from iommukit.device import DeviceKind
from iommukit_oracle.kernel.builder import Builder, argument, check
from iommukit_oracle.kernel.devices import BRIDGES, ZPCI
from iommukit_oracle.kernel.realisation import Inexpressible, Placed, Plugging


class Zpci(Builder):
    """s390: every function in a segment of its own, whose number is QEMU's ``uid``."""

    def build(self) -> None:
        """Make the arguments for all functions.  Raises ``Inexpressible``."""
        for number, spec in enumerate(self.machine.devices, start=1):
            check(spec)
            if spec.reserved:
                raise Inexpressible("firmware of s390 reserves no memory for a function")
            if spec.kind in BRIDGES or spec.kind is DeviceKind.PLATFORM:
                raise Inexpressible(f"QEMU's s390 has no {spec.kind.value.replace('_', ' ')}")
            model = self.model(spec, ZPCI)
            id = f"f{number}"
            if spec.id is not None:
                self.notes.append(f"{model.name} stands for {spec.name} ({spec.id})")
            properties = self.backed(model, id)
            if spec.present:
                self.devices += [f"zpci,uid={number},fid={number},target={id}", argument(properties)]
            self.placed[spec.name] = Placed(
                name=spec.name,
                address=f"{number:04x}:00:00.0",
                id=id,
                properties=properties,
                present=spec.present,
                plugging=Plugging.QMP,
                driver=model.driver,
                work=model.work,
            )
