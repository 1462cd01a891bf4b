"""The example receiver and the page that shows it, as a stranger would use them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.contract import ROOT
from support.ports import free_port

EXAMPLE = ROOT / "examples" / "webhooks"


def test_the_page_shows_the_code_that_runs() -> None:
    page = (ROOT / "docs" / "webhooks.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown in (EXAMPLE / "receiver.py").read_text()


@asynccontextmanager
async def program(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running program, ended at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(*arguments: str, **environment: str) -> str:
    """What a program says that ends by itself."""
    async with program(*arguments, **environment) as process:
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode().strip()


@pytest.fixture
async def hub(start: Any, hub_url: str) -> AsyncIterator[Any]:
    more = {"webhook_targets": "127.0.0.1:*", "webhook_allow_http": True}
    async with start(hub_url, **more) as client:
        yield client


async def test_the_example_receives(
    hub: Any, tenant: str, signer: TokenSigner, tmp_path: Path
) -> None:
    port = free_port()
    access = {
        "WEBHOOK_TOKEN": signer.mint(tenant=tenant, role=Role.OPERATOR, subject="olga"),
        "WEBHOOK_HUB": hub.target,
    }
    subscribe = str(EXAMPLE / "subscribe.py")
    url = f"http://127.0.0.1:{port}/"
    secret = await said(subscribe, "create", "billing", url, "order_paid", **access)
    assert secret.startswith("whsec_")

    async def outcome() -> str:
        return await said(subscribe, "check", "billing", **access)

    receiver = str(EXAMPLE / "receiver.py")
    store = {"WEBHOOK_DATABASE": str(tmp_path / "received.db")}
    async with program(receiver, str(port), WEBHOOK_SECRETS=secret, **store) as process:

        async def is_up() -> bool:
            return await outcome() == "PUSH_OUTCOME_DELIVERED 204"

        await eventually(is_up, timeout=30)
        await hub(tenant).publish(("order_paid", "o-1", {"amount": 7}))
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while (line := (await process.stdout.readline()).decode()).startswith(
                "webhook_checked"
            ):
                pass
        assert line == 'order_paid o-1 {"amount": 7}\n'
    other = "whsec_" + "A" * 43 + "="
    async with program(receiver, str(port), WEBHOOK_SECRETS=other, **store):

        async def is_refused() -> bool:
            return await outcome() == "PUSH_OUTCOME_REJECTED 401 HTTP 401"

        await eventually(is_refused, timeout=30)
