"""Several workers under one gateway command: one address, and a worker that dies is missed by nobody for long."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from deskwire.gateway.v1 import gateway_service_pb2, gateway_service_pb2_grpc
from deskwire_client import Client
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.rpc import make_channel
from support import eventually
from support.command import Command
from support.ports import free_base
from support.suite import new_id


@pytest.fixture
def deskwire(tmp_path: Path) -> Any:
    command = Command(tmp_path / "home", free_base())
    yield command
    command("down")


def gateway_of(command: Command) -> psutil.Process:
    _, status = command.status()
    return psutil.Process(
        next(each["pid"] for each in status["processes"] if each["name"] == "gateway")
    )


@pytest.mark.timeout(240)
async def test_workers_share_an_address_and_come_back(
    deskwire: Command, kafka: str, valkey: str
) -> None:
    up = await asyncio.to_thread(
        deskwire.up, "--kafka", kafka, "--redis", valkey, "--gateway-workers", "2"
    )
    assert up.returncode == 0, up.stderr
    gateway = gateway_of(deskwire)
    await eventually(lambda: len(gateway.children()) == 2)

    def metrics() -> str:
        with urlopen(f"http://127.0.0.1:{deskwire.base + 21}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def linked() -> set[str]:
        """Workers that have their link to chat; the first one is enough for `up` to say that it is ready."""
        return {
            line[line.index("worker=") + 8]
            for line in metrics().splitlines()
            if line.startswith("deskwire_gateway_links{") and not line.endswith(" 0.0")
        }

    async def both_linked() -> bool:
        return await asyncio.to_thread(linked) == {"0", "1"}

    await eventually(both_linked, timeout=30)
    signer = TokenSigner(KeySet.load(deskwire.home / "keys.json"))
    # Of its own: other tests' sessions may still be in the directory.
    tenant = f"t-{new_id()[:8]}"
    operator = signer.mint(tenant=tenant, role=Role.OPERATOR, subject="olga")
    url = f"ws://127.0.0.1:{deskwire.base}/ws"
    clients = [
        Client(url, signer.mint(tenant=tenant, role=Role.VISITOR, subject=f"v-{number}"))
        for number in range(24)
    ]
    conversations = [new_id() for _ in clients]
    async with make_channel(f"127.0.0.1:{deskwire.base + 1}", token=lambda: operator) as channel:
        stub = gateway_service_pb2_grpc.GatewayServiceStub(channel)

        async def workers() -> dict[str, str]:
            """Session → worker, of all that are connected."""
            found = await stub.ListSessions(gateway_service_pb2.ListSessionsRequest(page_size=100))
            return {each.user.subject: each.worker_id for each in found.sessions}

        await asyncio.gather(*(each.connect() for each in clients))
        await asyncio.gather(
            *(client.send(talk, "one") for client, talk in zip(clients, conversations, strict=True))
        )

        async def both() -> bool:
            there = await workers()
            return len(there) == 24 and len(set(there.values())) == 2

        await eventually(both)

        # One is killed: its clients come back, to either, and nothing that they send is lost or changes its order.
        os.kill(gateway.children()[0].pid, signal.SIGKILL)
        acks = await asyncio.gather(
            *(client.send(talk, "two") for client, talk in zip(clients, conversations, strict=True))
        )
        assert {ack.seq for ack in acks} == {2}
        assert 0 < sum(client.reconnects for client in clients) < 24 * 3
        await eventually(lambda: len(gateway.children()) == 2)
        await asyncio.gather(*(each.close() for each in clients))

    await eventually(both_linked, timeout=30)

    # Killed itself, it leaves no worker behind.
    children = gateway.children()
    gateway.kill()
    await eventually(
        lambda: not any(each.is_running() and each.status() != "zombie" for each in children)
    )
