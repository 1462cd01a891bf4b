"""The session directory: who is connected to which worker, in Redis, for ListSessions.

Per worker and tenant one hash that expires unless its worker refreshes it, so nothing stays of a worker that died.
It is a convenience: Redis may be away, and messages don't notice.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import gateway_service_pb2 as pb
from deskwire_common.errors import Unavailable
from deskwire_common.logging import get_logger
from deskwire_gateway.session import Session

_PREFIX: Final = "deskwire:sessions"
_EXPIRE: Final = 60
_REFRESH: Final = 15.0
_FLUSH: Final = 0.5
_CHUNK: Final = 1_000


class Entry(NamedTuple):
    """A session as it is in the directory."""

    session_id: str
    worker_id: str
    value: bytes | None


class Directory:
    """This worker's part of the directory, and a view of all of it."""

    def __init__(self, redis: Redis, worker_id: str, sessions: Mapping[int, Session]) -> None:
        """`sessions`: those of this worker, by number, as its registry keeps them."""
        self._redis: Any = redis
        self._worker_id = worker_id
        self._sessions = sessions
        self._changed: dict[str, Session] = {}

    def changed(self, session: Session) -> None:
        """Note that a session opened or ended; it is written soon."""
        self._changed[session.session_id] = session

    async def run(self) -> None:
        """Write changes until cancelled. Outlasts an outage of Redis, and writes everything again after it."""
        loop = asyncio.get_running_loop()
        refreshed = 0.0
        whole = True
        while True:
            await asyncio.sleep(_FLUSH)
            try:
                if whole:
                    for session in list(self._sessions.values()):
                        self._changed[session.session_id] = session
                whole = True
                await self._flush()
                if loop.time() - refreshed > _REFRESH:
                    await self._refresh()
                    refreshed = loop.time()
                whole = False
            except (RedisError, OSError) as error:
                get_logger().warning("directory_not_written", error=type(error).__name__)
                await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Take this worker out of the directory, if Redis is there."""
        try:
            for tenant in self._tenants():
                await self._redis.delete(self._key(tenant, self._worker_id))
                await self._redis.srem(f"{_PREFIX}:{tenant}", self._worker_id)
        except (RedisError, OSError):
            pass  # it expires
        await self._redis.aclose()

    async def page(self, tenant: str, *, after: str, limit: int) -> list[Entry]:
        """Return a tenant's sessions after an id, by session_id. Raises Unavailable when Redis doesn't answer.

        It reads all ids of the tenant, which may have very many sessions, but only the entries that it returns.
        """
        try:
            workers = await self._redis.smembers(f"{_PREFIX}:{tenant}")
            places: list[tuple[str, str]] = []
            for worker in [name.decode() for name in workers]:
                ids = await self._redis.hkeys(self._key(tenant, worker))
                later = [
                    (session_id, worker)
                    for session_id in map(bytes.decode, ids)
                    if session_id > after
                ]
                places = heapq.nsmallest(limit, [*places, *later])
            pipe = self._redis.pipeline(transaction=False)
            for session_id, worker in places:
                pipe.hget(self._key(tenant, worker), session_id)
            values = await pipe.execute()
        except (RedisError, OSError) as error:
            raise Unavailable("the session directory doesn't answer", retry_after=1.0) from error
        return [Entry(*place, value) for place, value in zip(places, values, strict=True)]

    def _tenants(self) -> set[str]:
        return {
            session.principal.tenant
            for session in self._sessions.values()
            if session.principal is not None
        }

    async def _flush(self) -> None:
        changed, self._changed = self._changed, {}
        items = list(changed.items())
        for start in range(0, len(items), _CHUNK):
            pipe = self._redis.pipeline(transaction=False)
            for session_id, session in items[start : start + _CHUNK]:
                if session.principal is None:
                    continue
                tenant = session.principal.tenant
                key = self._key(tenant, self._worker_id)
                if session.closed:
                    pipe.hdel(key, session_id)
                    continue
                pipe.hset(key, session_id, _entry(session))
                pipe.expire(key, _EXPIRE)
                pipe.sadd(f"{_PREFIX}:{tenant}", self._worker_id)
            await pipe.execute()

    async def _refresh(self) -> None:
        for tenant in self._tenants():
            await self._redis.expire(self._key(tenant, self._worker_id), _EXPIRE)
            # A worker that died leaves its name here. Its hash has expired, so remove the name, too.
            for worker in await self._redis.smembers(f"{_PREFIX}:{tenant}"):
                if not await self._redis.exists(self._key(tenant, worker.decode())):
                    await self._redis.srem(f"{_PREFIX}:{tenant}", worker)

    @staticmethod
    def _key(tenant: str, worker: str) -> str:
        return f"{_PREFIX}:{tenant}:{worker}"


def _entry(session: Session) -> str:
    actor = session.actor()
    return json.dumps(
        [actor.role, actor.subject, actor.display_name, session.client, int(session.connected_at)]
    )


def session_message(entry: Entry) -> pb.Session | None:
    """Return a session as callers see it; None when it has ended since its id was read."""
    if entry.value is None:
        return None
    role, subject, name, client, since = json.loads(entry.value)
    session = pb.Session(
        session_id=entry.session_id,
        user=actor_pb2.Actor(role=role, subject=subject, display_name=name),
        client=client,
        worker_id=entry.worker_id,
    )
    session.connect_time.FromSeconds(since)
    return session
