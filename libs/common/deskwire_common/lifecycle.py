"""The life of a service process: settings, start, health, signals, drain, stop; the same for all five.

A service's `app.build(settings, runtime)` constructs everything through the Runtime, which closes it in reverse order.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, ParamSpec, TypeVar

import grpc
import uvloop
from pydantic import ValidationError

from deskwire_common import collector, config, rpc
from deskwire_common.auth import ANY_TENANT, Admission, KeySet, TokenSigner, TokenVerifier
from deskwire_common.clock import Clock, SystemClock
from deskwire_common.config import ServiceSettings
from deskwire_common.errors import DeskwireError
from deskwire_common.ids import Ids, RandomIds
from deskwire_common.logging import get_logger, setup_logging
from deskwire_common.metrics import METRICS, start_metrics_server
from deskwire_common.rpc.table import Forward, Table
from deskwire_common.telemetry import setup_telemetry
from deskwire_common.validation import Validator

if TYPE_CHECKING:  # optional parts of this library: a gateway has neither
    from deskwire_common.db import Database
    from deskwire_common.kafka import Producer

OK, FAILED, USAGE = 0, 1, 2
"""Exit codes: done; it failed, and one line says why; the command or a setting is wrong."""

_CLOSE_SECONDS: Final = 10.0
"""Seconds for closing each thing; after them it is left as it is, and the next one is closed."""

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)
P = ParamSpec("P")
T = TypeVar("T")


class ClosingStack(AsyncExitStack):
    """Closes what it was given, last one first. It waits for none of them for ever."""

    def push_async_callback(
        self, callback: Callable[P, Awaitable[T]], /, *args: P.args, **kwds: P.kwargs
    ) -> Callable[P, Awaitable[T]]:
        """Call this at the end, and log `close_cut_short` when it takes too long."""

        async def close() -> None:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await callback(*args, **kwds)
            except TimeoutError:
                get_logger().warning(
                    "close_cut_short", what=getattr(callback, "__qualname__", repr(callback))
                )

        super().push_async_callback(close)
        return callback


class Runtime(Generic[SettingsT]):
    """Opens what a service is built with, and closes it all, last one first."""

    def __init__(self, name: str, settings: SettingsT, stack: ClosingStack) -> None:
        self.name = name
        self.settings = settings
        self.stack = stack
        self.clock: Clock = SystemClock()
        self.ids: Ids = RandomIds()
        self.keys = KeySet.load(settings.keys_file)
        self.signer = TokenSigner(self.keys, self.clock, subject=name)
        self.verifier = TokenVerifier(self.keys, self.clock)
        self.validator = Validator()
        self.crashed: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self.port = 0
        self.extra_ports: dict[str, int] = {}
        self._server: rpc.RunningServer | None = None
        self._drains: list[Callable[[], Awaitable[None]]] = []

    @property
    def tls(self) -> rpc.Tls | None:
        """The PEM files of the settings; None: plaintext."""
        s = self.settings
        if s.tls_cert is None or s.tls_key is None or s.tls_ca is None:
            return None
        return rpc.Tls(s.tls_cert, s.tls_key, s.tls_ca, s.tls_require_client_certificate)

    async def database(self, package: str) -> Database:
        """Open DESKWIRE_DATABASE_URL; FailedPrecondition unless its schema is this program's."""
        from deskwire_common.db import Database  # noqa: PLC0415 (an optional part of this library)
        from deskwire_common.migrations import check_schema  # noqa: PLC0415

        url: str = getattr(self.settings, "database_url")  # noqa: B009 - of the mixin
        db = await Database.open(url)
        self.stack.push_async_callback(db.close)
        await check_schema(db, package)
        return db

    async def producer(self, client_id: str = "", *, strict: bool = False) -> Producer:
        """Start a producer of DESKWIRE_KAFKA; the broker need not be there yet. `strict`: see Producer."""
        from deskwire_common.kafka import Producer  # noqa: PLC0415 (an optional part of this library)

        kafka: str = getattr(self.settings, "kafka")  # noqa: B009 - of the mixin
        producer = Producer(kafka, client_id or self.name, strict=strict)
        await producer.start()
        self.stack.push_async_callback(producer.close)
        return producer

    def channel(self, target: str, *, bare: bool = False) -> grpc.aio.Channel:
        """A channel with a service token of the tenant that is being served (`*` outside of a call)."""
        channel = rpc.make_channel(
            target,
            tls=self.tls,
            token=lambda: self.signer.service_token(rpc.caller_tenant(ANY_TENANT)),
            bare=bare,
        )
        self.stack.push_async_callback(channel.close)
        return channel

    def spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work` beside the service until it stops. When it ends by itself, so does the process."""

        async def supervised() -> None:
            try:
                await work()
                error: Exception = RuntimeError("it returned")
            except asyncio.CancelledError as caught:
                me = asyncio.current_task()
                if me is None or me.cancelling():
                    raise
                # Something that it waited for was cancelled: without this the work would end without a trace.
                error = RuntimeError("what it waited for was cancelled")
                error.__cause__ = caught
            except Exception as caught:  # noqa: BLE001 - the process ends with it
                error = caught
            METRICS.background_crashes.labels(name).inc()
            get_logger().error("background_task_crashed", task=name, exc_info=error)
            if not self.crashed.done():
                self.crashed.set_exception(error)

        task = asyncio.create_task(supervised(), name=name)

        async def cancel() -> None:
            task.cancel()
            # Not a gather: a cancelled gather still waits for a task that doesn't end.
            await asyncio.wait([task])

        self.stack.push_async_callback(cancel)
        return task

    def on_drain(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call this when the process is told to stop, before the server stops."""
        self._drains.append(callback)

    async def serve(
        self,
        table: Table,
        *owners: object,
        forward: Forward | None = None,
        admission: Admission | None = None,
        reuse_port: bool = False,
    ) -> int:
        """Start the gRPC server with the rows of a table; returns its port. Its health is SERVING after `build`.

        `owners` have the use cases, `forward` serves the rows whose key has an owner (see Table.register). `admission`
        tells which verified callers aren't let in. `reuse_port`: other processes of the same
        service listen on the port too.
        """
        self._server = await rpc.start_server(
            listen=self.settings.grpc_listen,
            registrars=[lambda server: table.register(server, owners, forward)],
            services=[service.name for service in table.services],
            authorization=table.authorization,
            verifier=self.verifier,
            validator=self.validator,
            tls=self.tls,
            inline_auth=table.inline,
            access=rpc.Access(
                public=table.public,
                suite=table.suite,
                request_bytes=table.request_bytes,
                admission=admission or Admission(),
            ),
            limits=rpc.ServerLimits(
                connections=self.settings.grpc_max_connections,
                streams=self.settings.grpc_max_streams,
                idle_seconds=self.settings.grpc_idle_seconds,
                compression=self.settings.grpc_compression,
            ),
            reuse_port=reuse_port,
        )
        self.stack.push_async_callback(self._server.stop)
        self.port = self._server.port
        return self.port

    async def _set_serving(self, serving: bool) -> None:
        if self._server is not None:
            await self._server.set_serving(serving)

    async def _drain(self) -> None:
        await self._set_serving(False)
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                for callback in reversed(self._drains):
                    await callback()
        except TimeoutError:
            get_logger().warning("drain_cut_short", seconds=self.settings.drain_seconds)


Build = Callable[[SettingsT, Runtime[SettingsT]], Awaitable[None]]


@asynccontextmanager
async def running(
    name: str, settings: SettingsT, build: Build[SettingsT]
) -> AsyncIterator[Runtime[SettingsT]]:
    """A built and serving service while the block runs; then it drains and closes."""
    async with ClosingStack() as stack:
        telemetry = setup_telemetry(
            name, otlp_endpoint=settings.otlp_endpoint, sample_ratio=settings.trace_sample_ratio
        )
        stack.push_async_callback(telemetry.close)
        runtime = Runtime(name, settings, stack)
        metrics = start_metrics_server(settings.metrics_listen)
        if metrics is not None:
            stack.callback(metrics.close)
        await build(settings, runtime)
        await runtime._set_serving(True)  # noqa: SLF001 - same module
        collector.settle()
        get_logger().info("serving", grpc=runtime.port)
        try:
            yield runtime
        finally:
            await runtime._drain()  # noqa: SLF001 - same module
            if runtime.crashed.done():
                runtime.crashed.exception()  # seen


async def _serve(name: str, settings: SettingsT, build: Build[SettingsT]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(_until(stop, name, settings, build))
    return await starting


async def _until(
    stop: asyncio.Event, name: str, settings: SettingsT, build: Build[SettingsT]
) -> int:
    async with running(name, settings, build) as runtime:
        runtime.spawn("collector", collector.keep_settled)
        stopping = asyncio.create_task(stop.wait())
        either: list[asyncio.Future[Any]] = [stopping, runtime.crashed]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        get_logger().info("stopping", crashed=runtime.crashed.done())
        return FAILED if runtime.crashed.done() else OK


def service_main(
    name: str,
    settings_class: type[SettingsT],
    build: Build[SettingsT],
    *,
    package: str | None = None,
    supervise: Callable[[SettingsT], int | None] = lambda _settings: None,
) -> NoReturn:
    """`serve | migrate | check-config` from the command line. `package`: whose migrations; None: no database.

    `supervise` may serve in other processes and return the exit code; None: serve in this one.
    """
    commands = ["serve", "check-config", *(["migrate"] if package else [])]
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in commands:
        print(f"usage: python -m deskwire_{name} {'|'.join(commands)}", file=sys.stderr)
        sys.exit(USAGE)
    try:
        read: Callable[[], SettingsT] = settings_class  # every field comes from the environment
        settings = read()
    except ValidationError as error:
        for line in config.problems(error):
            print(line, file=sys.stderr)
        sys.exit(USAGE)
    if command == "check-config":
        print(json.dumps(config.redacted(settings), indent=2))
        sys.exit(OK)
    setup_logging(name, settings.log_level)
    collector.look_seldom()
    try:
        if command == "migrate" and package:
            from deskwire_common.migrations import run_migrations  # noqa: PLC0415 (an optional part)

            run_migrations(getattr(settings, "database_url"), package)  # noqa: B009 - of the mixin
            sys.exit(OK)
        supervised = supervise(settings)
        sys.exit(uvloop.run(_serve(name, settings, build)) if supervised is None else supervised)
    except (DeskwireError, OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(FAILED)
