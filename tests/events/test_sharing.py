"""Several hubs on one database: they share the adapters, and each gets its events whoever comes and goes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from deskwire_common.db import Database
from deskwire_events.domain import KIND, SLOTS
from deskwire_events.store import METADATA
from support import eventually
from support.sharing import shared

COUNT = 8


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_two_hubs_share_adapters(
    request: pytest.FixtureRequest, kind: str, start: Any, tenant: str, crm: Any
) -> None:
    server = request.getfixturevalue(kind)
    url = server.fresh()
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(start(url))
        db = await Database.open(url, pool_size=1)
        stack.push_async_callback(db.close)
        olga = one(tenant)
        for number in range(COUNT):
            await olga.register(f"crm-{number}", crm.target, system_id=f"crm:{number}")
        slots = {str(slot) for slot in range(SLOTS)}

        async def are(count: int) -> bool:
            assert await shared(db, METADATA, KIND, count) == slots
            return True

        await eventually(lambda: are(1))
        sent = await olga.publish(("invoice_paid", "a", {}))
        await eventually(lambda: everywhere(crm, sent), timeout=30)
        async with start(url) as other:
            await eventually(lambda: are(2), timeout=30)
            sent += await other(tenant).publish(("invoice_paid", "a", {}))
            await eventually(lambda: everywhere(crm, sent), timeout=30)
            # Registered at the one, removed at the other: whoever has it hears of it.
            await other(tenant).remove("crm-0")
            before = len(crm.got)
            sent += await other(tenant).publish(("invoice_paid", "a", {}))
            await eventually(lambda: counts(crm, sent[2]) >= COUNT - 1, timeout=30)
            assert len(crm.got) >= before + COUNT - 1
        await eventually(lambda: are(1), timeout=30)
        sent += await olga.publish(("invoice_paid", "a", {}))
        await eventually(lambda: counts(crm, sent[3]) >= COUNT - 1, timeout=30)
    server.drop(url)


def everywhere(crm: Any, sent: list[str]) -> bool:
    """Whether every adapter has each of these; a hand-over may repeat one."""
    assert all(counts(crm, each) >= COUNT for each in sent)
    return True


def counts(crm: Any, event_id: str) -> int:
    return int(crm.ids.count(event_id))
