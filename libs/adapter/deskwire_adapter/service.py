"""An adapter as SystemAdapterService: sessions, results that fit their events, errors that have a kind."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire_adapter.base import (
    AdapterBase,
    CredentialsRefused,
    Login,
    PushFailed,
    Session,
    SessionOver,
)
from deskwire_adapter.model import MAX_DETAIL, Incoming, Outcome, Result, unknown
from deskwire_adapter.watch import Watch

MAX_SESSIONS: Final = 1_000
"""Sessions that are kept; who had an older one signs in again."""
_EXPIRED: Final = Result(Outcome.AUTH_EXPIRED, "this session isn't known here: sign in")
_log = logging.getLogger("deskwire_adapter")
if TYPE_CHECKING:  # generic in its stubs alone
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AdapterService(system_adapter_service_pb2_grpc.SystemAdapterServiceServicer):
    """The four methods for one adapter. `watch` hears of each call that begins and ends."""

    def __init__(self, adapter: AdapterBase, watch: Watch | None = None) -> None:
        self._adapter = adapter
        self._watch = watch or Watch()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    async def Schema(self, _request: pb.SchemaRequest, _context: Context) -> pb.SchemaResponse:  # noqa: N802
        """What the adapter can."""
        adapter = self._adapter
        schema = adapter.config_schema
        return pb.SchemaResponse(
            adapter=adapter.program or type(adapter).__name__,
            event_types=adapter.event_types,
            max_batch=adapter.max_batch,
            idempotent=adapter.idempotent,
            config_schema="" if schema is None else json.dumps(schema),
        )

    async def Auth(self, request: pb.AuthRequest, context: Context) -> pb.AuthResponse:  # noqa: N802
        """Open a session."""
        try:
            config = json.loads(request.config or "{}", parse_float=Decimal)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"config is no JSON: {error}")
        login = Login(request.tenant_id, config, dict(request.credentials))
        try:
            session = await self._run(self._adapter.auth, login)
        except CredentialsRefused as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _short(error))
        except MemoryError:
            self._watch.out_of_memory()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, who called hears of it
            _log.exception("auth failed")
            await context.abort(grpc.StatusCode.INTERNAL, _short(error))
        # 192 random bits: nobody guesses a session of another tenant.
        name = secrets.token_urlsafe(24)
        self._sessions[name] = session
        while len(self._sessions) > MAX_SESSIONS:
            _, oldest = self._sessions.popitem(last=False)
            await self._close(oldest)
        response = pb.AuthResponse(session=name)
        if session.expires is not None:
            response.expire_time.FromDatetime(session.expires)
        return response

    async def Push(self, request: pb.PushRequest, context: Context) -> pb.PushResponse:  # noqa: N802
        """One result for each event."""
        session = self._session(request.session)
        if session is None:
            results: Sequence[Result] = [_EXPIRED] * len(request.items)
        else:
            events = [
                Incoming(item.event, item.json, max(item.attempt, 1), item.traceparent)
                for item in request.items
            ]
            try:
                results = await self._push(session, events)
            except SessionOver as error:
                await self._forget(request.session)
                results = [Result(Outcome.AUTH_EXPIRED, _short(error))] * len(events)
            except MemoryError:
                self._watch.out_of_memory()
                raise
            except Exception as error:  # noqa: BLE001 - the hub finds out which event is to blame
                _log.exception("push failed")
                await context.abort(grpc.StatusCode.INTERNAL, _short(error))
            if any(each.outcome is Outcome.AUTH_EXPIRED for each in results):
                await self._forget(request.session)
        if len(results) != len(request.items):
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"push returned {len(results)} results for {len(request.items)} events",
            )
        return pb.PushResponse(
            results=[
                result.message(item.event.event_id)
                for item, result in zip(request.items, results, strict=True)
            ]
        )

    async def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:  # noqa: N802
        """Whether the system would take events."""
        session = self._session(request.session)
        if session is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _EXPIRED.detail)
            raise AssertionError("abort raises")
        try:
            problem = await self._run(self._adapter.check, session)
        except Exception as error:  # noqa: BLE001 - a check that fails is its answer
            problem = _short(error)
        return pb.CheckResponse(healthy=not problem, detail=problem[:MAX_DETAIL])

    async def close(self) -> None:
        """End all sessions, and the adapter."""
        while self._sessions:
            await self._close(self._sessions.popitem()[1])
        await self._run(self._adapter.close)

    # -- one adapter's methods ---------------------------------------------------------------------

    async def _push(self, session: Session, events: Sequence[Incoming]) -> Sequence[Result]:
        if type(self._adapter).push is not AdapterBase.push:
            return list(await self._run(self._adapter.push, session, events))
        results: list[Result] = []
        for event in events:
            try:
                result = await self._run(self._adapter.push_one, session, event)
            except PushFailed as error:
                result = error.result
            except (SessionOver, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - one event's fault is its own
                _log.exception("push of %s failed", event.event_id)
                result = unknown(_short(error))
            if not isinstance(result, Result):
                result = unknown(f"push_one returned {type(result).__name__}, not a Result")
            results.append(result)
            if result.outcome is Outcome.RATE_LIMITED:
                # The system wants peace: what is left isn't tried.
                results += [result] * (len(events) - len(results))
                break
        return results

    async def _run(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Await a coroutine function; run a plain one in a thread."""
        with self._watch.call():
            if inspect.iscoroutinefunction(method):
                return await method(*arguments)
            found = await asyncio.to_thread(method, *arguments)
            return await found if inspect.isawaitable(found) else found

    def _session(self, name: str) -> Session | None:
        session = self._sessions.get(name)
        if session is not None:
            self._sessions.move_to_end(name)
        return session

    async def _forget(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            await self._close(session)

    async def _close(self, session: Session) -> None:
        with suppress(Exception):
            await self._run(session.close)


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:MAX_DETAIL]
