"""A process that is cut off or stands still, and closes nothing: another one does its work within 15 s."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct

from deskwire.events.v1 import event_hub_service_pb2, event_hub_service_pb2_grpc
from deskwire_cli.launch.probes import serving
from deskwire_common import topics
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.ids import RandomIds
from deskwire_common.migrations import migrate
from deskwire_common.outbox import OutboxRelay
from deskwire_common.ownership import member_name, spread
from deskwire_common.rpc import make_channel
from deskwire_events.store import METADATA
from support import eventually
from support.ports import free_port
from support.relay import relay
from support.topic import read_rows

SECONDS = 15.0
SLOTS = METADATA.tables["slots"]


class Hub:
    """A hub as a process of its own."""

    def __init__(self, port: int, process: Process, token: str) -> None:
        self.name = member_name(port)
        self.process = process
        self._channel = make_channel(f"127.0.0.1:{port}", token=lambda: token)
        self._hub = event_hub_service_pb2_grpc.EventHubServiceStub(self._channel)

    async def publish(self, subject: str) -> str:
        """Have it write an event into its outbox; the event's id."""
        event = event_hub_service_pb2.ExternalEvent(
            event_type="invoice_paid", subject=subject, data=Struct()
        )
        answer = await self._hub.Publish(
            event_hub_service_pb2.PublishRequest(request_id=RandomIds().uuid7(), events=[event]),
            timeout=30,
        )
        return str(answer.event_ids[0])

    async def close(self) -> None:
        await self._channel.close()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


class Hubs:
    """Starts hubs of one tenant, each on a way of its own to one database."""

    def __init__(self, stack: AsyncExitStack, kafka: str, keys_file: Path, token: str) -> None:
        self._stack = stack
        self._settings = {"DESKWIRE_KAFKA": kafka, "DESKWIRE_KEYS_FILE": str(keys_file)}
        self._token = token

    async def start(self, url: str, port: int) -> Hub:
        """Start one; the test's way to the database must be good by then."""
        address = f"127.0.0.1:{port}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deskwire_events", "serve",
            env={
                **os.environ, **self._settings,
                "DESKWIRE_GRPC_LISTEN": address, "DESKWIRE_DATABASE_URL": url,
            },
            stdout=DEVNULL, stderr=DEVNULL,
            # In the test's own process group the kernel would wake a stopped process when that group is orphaned.
            start_new_session=True,
        )  # fmt: skip
        hub = Hub(port, process, self._token)
        self._stack.push_async_callback(hub.close)

        async def serves() -> bool:
            problem = await asyncio.to_thread(serving(address))
            assert not problem
            return True

        await eventually(serves, timeout=30, interval=0.2)
        return hub


@asynccontextmanager
async def owners(url: str) -> AsyncIterator[Database]:
    db = await Database.open(url, pool_size=1)
    try:
        yield db
    finally:
        await db.close()


async def relayer(db: Database) -> str:
    """Which process has the outbox, as the database says."""
    query = sa.select(SLOTS.c.owner).where(SLOTS.c.kind == OutboxRelay.KIND)
    async with db.read() as connection:
        return str((await connection.execute(query)).scalar_one())


@pytest.mark.parametrize("how", ["cut", "stopped"])
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_whoever_relays_and_falls_silent_is_replaced(
    request: pytest.FixtureRequest,
    kind: str,
    how: str,
    kafka: str,
    keys_file: Path,
    signer: TokenSigner,
) -> None:
    server = request.getfixturevalue(kind)
    url = server.fresh()
    await migrate(url, "deskwire_events")
    async with relay(server.port) as cable, AsyncExitStack() as stack:
        db = await stack.enter_async_context(owners(url))
        hubs = Hubs(stack, kafka, keys_file, signer.mint(
            tenant=f"t-{RandomIds().uuid7()}", role=Role.INTEGRATION, subject="erp",
            system="erp:main",
        ))  # fmt: skip
        parts = urlsplit(url)
        place = f"{parts.username}:{parts.password}@127.0.0.1:{cable.port}"
        leading, other = ports_in_order()
        leader = await hubs.start(urlunsplit(parts._replace(netloc=place)), leading)
        follower = await hubs.start(url, other)
        await eventually_relays(db, leader)
        first = await leader.publish("before")
        await is_on_kafka(kafka, [first])

        silence(leader, how, cable.freeze)
        meanwhile = await follower.publish("meanwhile")
        await is_on_kafka(kafka, [first, meanwhile], SECONDS)
        assert await relayer(db) == follower.name

        # It comes back, and into what is its own, in good order.
        silence(leader, how, cable.release, again=True)
        await eventually_relays(db, leader)
        last = await follower.publish("after")
        await is_on_kafka(kafka, [first, meanwhile, last])
    server.drop(url)


def ports_in_order() -> tuple[int, int]:
    """Two ports, the first of whose processes should relay while both live."""
    one, other = free_port(), free_port()
    names = {member_name(port): port for port in (one, other)}
    owner = names[spread(OutboxRelay.KIND, ["all"], names)["all"]]
    return (one, other) if owner == one else (other, one)


def silence(hub: Hub, how: str, cable: object, *, again: bool = False) -> None:
    """Cut its cable, or have it stand still; `again`: undo that."""
    if how == "stopped":
        hub.process.send_signal(signal.SIGCONT if again else signal.SIGSTOP)
    else:
        assert callable(cable)
        cable()


async def eventually_relays(db: Database, hub: Hub) -> None:
    async def does() -> bool:
        return await relayer(db) == hub.name

    await eventually(does, timeout=40, interval=0.1)


async def is_on_kafka(kafka: str, ids: list[str], seconds: float = 10.0) -> None:
    """Wait until these events of the test are there."""

    async def is_there() -> bool:
        rows = await read_rows(kafka, topics.EXTERNAL.name)
        found = [row["event_id"] for row in rows if row["event_id"] in ids]
        assert sorted(found) == sorted(ids), found
        return True

    await eventually(is_there, timeout=seconds, interval=0.2)
