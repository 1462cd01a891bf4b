"""What tenants have looked up by blocking calls: names of their targets, by the operator's rules, and secrets."""

from __future__ import annotations

from functools import partial
from typing import Final

from deskwire_common.quota import Threads
from deskwire_common.targets import IpAddress, Targets

LOOK_UPS: Final = Threads("resolve", 32, per_tenant=4)
"""A tenant's slow name server holds a thread for half a minute, for which no commit and no other tenant may wait."""


async def resolved(targets: Targets, tenant: str, host: str, port: int) -> list[IpAddress]:
    """The addresses to dial, each of them allowed. Raises TargetRefused."""
    return await LOOK_UPS.run(tenant, partial(targets.addresses, host, port))
