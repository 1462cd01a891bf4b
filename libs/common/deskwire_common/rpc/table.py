"""One row per RPC: its roles, its use case, and its other properties.

    TICKETS = Service(
        "deskwire.tickets.v1.TicketService",
        unary(TicketServiceServicer.GetTicket).by(TicketActions.get_ticket, READERS),
        ...
    )
    TABLE = Table(TICKETS)

A row names the method of the generated servicer, which gives mypy the request and the response of the contract, and the
function of the use case, which must take the one and return the other. The table knows who may call what before
anything is built; `register` connects it to the objects whose classes define the functions.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from deskwire_common.auth import Role
from deskwire_common.rpc.access import REQUEST_BYTES

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
OwnerT = TypeVar("OwnerT")
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


Forward: TypeAlias = Callable[
    [str, str, Any, Context, Callable[[Any], Awaitable[Any]], type[Any]], Awaitable[Any]
]
"""Serves a call of a row with `at` at the owner of its key, and raises the error that ends it. Its arguments: the
method's full name, the key, the request, the context, the use case if the owner is here, and the response's class."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """A row: a method's name, its use case (a function of a class) and who may call it.

    `at`: from a request, the key whose owner must answer; None: any process may. `suite`: for operators of all tenants,
    who may call nothing else. `public`: without a token. `inline`: it checks its caller itself, and no stage is around
    it. `reads_bytes`, `writes_bytes`: its messages stay as they are on the wire. `request_bytes`: the largest request,
    or message of a stream of them; the contract's comment says it where it isn't the usual one.
    """

    name: str
    use_case: Callable[..., Any]
    roles: frozenset[Role]
    streams: bool = False
    at: Callable[[Any], str] | None = None
    suite: bool = False
    public: bool = False
    inline: bool = False
    reads_bytes: bool = False
    writes_bytes: bool = False
    request_bytes: int = REQUEST_BYTES


class Unary(Generic[RequestT, ResponseT]):
    """A method with one request and one response, still without its use case."""

    def __init__(self, name: str) -> None:
        self._name = name

    def by(
        self,
        use_case: Callable[[OwnerT, RequestT], Awaitable[ResponseT]],
        roles: Collection[Role],
        *,
        at: Callable[[RequestT], str] | None = None,
        suite: bool = False,
        public: bool = False,
        request_bytes: int = REQUEST_BYTES,
    ) -> Rpc:
        """Return the row. `use_case` is awaited with the request; for the rest see Rpc."""
        return Rpc(
            self._name,
            use_case,
            frozenset(roles),
            at=at,
            suite=suite,
            public=public,
            request_bytes=request_bytes,
        )


class Stream(Generic[RequestT, ResponseT]):
    """A method with a stream of responses, still without its use case: RequestT may be a stream, too."""

    def __init__(self, name: str) -> None:
        self._name = name

    def by(
        self,
        use_case: Callable[[OwnerT, RequestT, Context], AsyncGenerator[ResponseT]],
        roles: Collection[Role],
        *,
        request_bytes: int = REQUEST_BYTES,
    ) -> Rpc:
        """Return the row. `use_case` is an async generator, closed when the call ends."""
        return Rpc(
            self._name, use_case, frozenset(roles), streams=True, request_bytes=request_bytes
        )

    def writing(
        self,
        use_case: Callable[[OwnerT, RequestT, Context], AsyncGenerator[bytes]],
        roles: Collection[Role],
        *,
        request_bytes: int = REQUEST_BYTES,
    ) -> Rpc:
        """Return the row of a stream as in `by`, whose responses the use case has encoded."""
        row = self.by(use_case, roles, request_bytes=request_bytes)  # type: ignore[arg-type]
        return replace(row, writes_bytes=True)

    def by_encoded(
        self,
        use_case: Callable[[OwnerT, RequestT, Context], AsyncIterator[bytes]],
        roles: Collection[Role],
        *,
        request_bytes: int,
    ) -> Rpc:
        """Return the row of a batched stream: responses are bytes, no stage is around it, it checks its caller.

        Nothing checks the requests' size but gRPC, by the largest `request_bytes` of the process.
        """
        return replace(
            self.by(use_case, roles, request_bytes=request_bytes),  # type: ignore[arg-type]
            inline=True,
            writes_bytes=True,
        )

    def by_bytes(
        self,
        use_case: Callable[[OwnerT, AsyncIterator[bytes], Context], AsyncIterator[bytes]],
        roles: Collection[Role],
        *,
        request_bytes: int,
    ) -> Rpc:
        """Return the row of a batched stream whose requests stay bytes, too."""
        row = self.by_encoded(use_case, roles, request_bytes=request_bytes)  # type: ignore[arg-type]
        return replace(row, reads_bytes=True)


def unary(
    method: Callable[[Any, RequestT, Any], ResponseT | Awaitable[ResponseT]],
) -> Unary[RequestT, ResponseT]:
    """Begin the row of a method of a generated servicer that has one request and one response."""
    return Unary(method.__name__)


def stream(
    method: Callable[[Any, RequestT, Any], Iterator[ResponseT] | AsyncIterator[ResponseT]],
) -> Stream[RequestT, ResponseT]:
    """Begin the row of a method of a generated servicer that has a stream of responses."""
    return Stream(method.__name__)


class Service:
    """All rows of a service of the contract."""

    def __init__(self, name: str, *rpcs: Rpc) -> None:
        """`name` is the contract's. Raises ValueError unless every method has its one row, of its kind."""
        self.name = name
        self.rpcs = rpcs
        self._methods: Mapping[str, MethodDescriptor] = (
            Default().FindServiceByName(name).methods_by_name
        )
        names = [rpc.name for rpc in rpcs]
        if sorted(names) != sorted(self._methods):
            wrong = sorted(set(self._methods).symmetric_difference(names)) or ["a method twice"]
            raise ValueError(f"the rows of {name} and its methods differ: {', '.join(wrong)}")
        for rpc in rpcs:
            if self._methods[rpc.name].server_streaming != rpc.streams:
                raise ValueError(f"{name}/{rpc.name} is begun with the wrong one of unary, stream")

    def path(self, rpc: Rpc) -> str:
        """Return the full name of a row's method: `/deskwire.tickets.v1.TicketService/GetTicket`."""
        return f"/{self.name}/{rpc.name}"

    def register(
        self, server: grpc.aio.Server, owners: Sequence[object], forward: Forward | None
    ) -> None:
        """Serve the rows on a server; see Table.register."""
        handlers = {rpc.name: self._handler(rpc, _bound(rpc, owners), forward) for rpc in self.rpcs}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self.name, handlers),)
        )

    def _handler(
        self, rpc: Rpc, use_case: Callable[..., Any], forward: Forward | None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = self._methods[rpc.name]
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        if rpc.at is not None:
            if forward is None:
                raise ValueError(f"{self.path(rpc)} has an owner, and nothing passes it on")
            serve = _at_owner(forward, self.path(rpc), rpc.at, use_case, response)
        else:
            serve = (
                use_case
                if rpc.inline
                else _streamed(use_case)
                if rpc.streams
                else _simple(use_case)
            )
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        handler: grpc.RpcMethodHandler[Any, Any] = make(
            serve,
            request_deserializer=bytes if rpc.reads_bytes else request.FromString,
            response_serializer=bytes if rpc.writes_bytes else response.SerializeToString,
        )
        return handler


class Table:
    """The services of a process, and the properties of all their rows by full method name."""

    def __init__(self, *services: Service) -> None:
        self.services = services
        rows = {service.path(rpc): rpc for service in services for rpc in service.rpcs}
        self.authorization: Mapping[str, frozenset[Role]] = {
            path: rpc.roles for path, rpc in rows.items()
        }
        self.suite = frozenset(path for path, rpc in rows.items() if rpc.suite)
        self.public = frozenset(path for path, rpc in rows.items() if rpc.public)
        self.inline = frozenset(path for path, rpc in rows.items() if rpc.inline)
        self.request_bytes: Mapping[str, int] = {
            path: rpc.request_bytes for path, rpc in rows.items()
        }

    def register(
        self, server: grpc.aio.Server, owners: Sequence[object], forward: Forward | None = None
    ) -> None:
        """Serve all rows on a server.

        `owners` are the objects whose classes define the use cases; `forward` serves the rows with `at`. Raises
        ValueError for a use case without its object, or with several.
        """
        for service in self.services:
            service.register(server, owners, forward)


def _bound(rpc: Rpc, owners: Sequence[object]) -> Callable[..., Any]:
    name = rpc.use_case.__name__
    found = [each for each in owners if getattr(type(each), name, None) is rpc.use_case]
    if len(found) != 1:
        raise ValueError(f"{rpc.use_case.__qualname__} needs one object, and has {len(found)}")
    bound: Callable[..., Any] = getattr(found[0], name)
    return bound


# grpc.aio checks whether the function itself is async: it would serve a partial or a lambda as a blocking one.


def _simple(use_case: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    async def serve(request: Any, _context: Context) -> Any:
        return await use_case(request)

    return serve


def _at_owner(
    forward: Forward,
    path: str,
    at: Callable[[Any], str],
    use_case: Callable[..., Awaitable[Any]],
    response: type[Message],
) -> Callable[..., Any]:
    async def serve(request: Any, context: Context) -> Any:
        return await forward(path, at(request), request, context, use_case, response)

    return serve


def _streamed(use_case: Callable[..., AsyncGenerator[Any]]) -> Callable[..., Any]:
    async def serve(request: Any, context: Context) -> Any:
        async with aclosing(use_case(request, context)) as responses:
            async for response in responses:
                yield response

    return serve
