"""Wrong drivers: the reference with one realistic mistake each, to test the suite itself.

``python -m iommukit_conformance.wrong`` runs the suite against all of them.  Each must be rejected by the rule that names
its mistake; one that is accepted, or rejected for another reason only, is a hole in the suite.
"""

from __future__ import annotations

from iommukit_conformance.wrong import domains, groups, hardware, policy, queues, regions
from iommukit_conformance.wrong.base import Wrong

WRONG: tuple[type[Wrong], ...] = tuple(
    member
    for module in (policy, domains, queues, regions, groups, hardware)
    for member in vars(module).values()
    if isinstance(member, type) and issubclass(member, Wrong) and member.__module__ == module.__name__
)
"""All of them, in the order of their modules."""

SMOKE: tuple[type[Wrong], ...] = (policy.IdentityForAll, domains.MovedBeforeRefused)
"""The two that the harness looks at before it judges anybody."""
