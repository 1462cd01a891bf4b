"""The whole suite on this machine: which processes, with which settings, in which order."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version as installed_version
from typing import Final
from urllib.parse import urlsplit

import grpc

from deskwire_cli.machine import devbroker, kafka, valkey
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import HOST, Ports, answers
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Probe, Process, python_environment
from deskwire_cli.suite import crm_database, load_suite
from deskwire_common.auth import Role
from deskwire_common.errors import DeskwireError, InvalidArgument
from deskwire_common.logging import redact_text
from deskwire_common.probe import ask as ask_health

#: In the order of their start; they stop in the reverse order.
SERVICES: Final = ("chat", "tickets", "events", "cdc", "gateway")
#: Those with a database.
STORES: Final = ("chat", "tickets", "events", "cdc")
SERVICE_SECONDS: Final = 60.0
DRAIN_SECONDS: Final = 20.0


def say(line: str = "") -> None:
    """Progress goes to stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one `deskwire up` was asked for. `broker`: kafka, dev, external, or "" (Kafka if it can be had)."""

    home: Home
    ports: Ports
    demo: bool = True
    broker: str = ""
    kafka: str = ""
    redis: str = ""
    databases: Mapping[str, str] = field(default_factory=dict)
    gateway_workers: int = 1
    chat_shards: int = 1

    def services(self) -> list[str]:
        """The names of the services' processes, in the order of their start."""
        more = [f"chat-{number}" for number in range(1, self.chat_shards)]
        return ["chat", *more, *SERVICES[1:]]

    def database(self, service: str) -> str:
        return self.databases.get(service) or self.home.database_url(service)

    def parts(self) -> list[str]:
        """The names of the ports that this plan listens on."""
        services = self.services()
        names = ["websocket", *services, *(f"{service}-metrics" for service in services)]
        names += [f"{each}-files" for each in services if service_of(each) == "chat"]
        if self.demo:
            names.append("crm")
        if not self.redis:
            names.append("valkey")
        if self.broker == "kafka":
            names += ["kafka", "kafka-controller"]
        return names


def make_plan(
    home: Home,
    *,
    port_base: int,
    demo: bool,
    broker: str,
    kafka_address: str,
    redis: str,
    databases: Sequence[str],
    gateway_workers: int = 1,
    chat_shards: int = 1,
) -> Plan:
    """Check the options against each other and this machine. Raises Problem, one line."""
    chosen: dict[str, str] = {}
    for each in databases:
        service, separator, url = each.partition("=")
        if not separator or service not in STORES:
            raise Problem(
                f"--database {redact_text(each)}: SERVICE=URL, SERVICE one of {', '.join(STORES)}"
            )
        check_database(service, url)
        chosen[service] = url
    broker = choose_broker(broker, kafka_address)
    if redis and (urlsplit(redis).scheme not in {"redis", "rediss", "unix"}):
        raise Problem(f"--redis {redact_text(redis)}: redis://HOST:PORT/0")
    plan = Plan(
        home,
        Ports(port_base),
        demo,
        broker,
        kafka_address,
        redis,
        chosen,
        gateway_workers,
        chat_shards,
    )
    if chat_shards > 1 and urlsplit(plan.database("chat")).scheme.startswith("sqlite"):
        raise Problem(
            f"--chat-shards {chat_shards}: a SQLite file has one writer; add --database chat=postgresql://…"
        )
    return plan


def choose_broker(broker: str, kafka_address: str) -> str:
    """kafka, dev or external. Raises Problem."""
    if broker not in {"", "kafka", "dev"}:
        raise Problem(f"--broker {broker}: kafka or dev")
    if kafka_address:
        if broker:
            raise Problem("--kafka uses a broker that exists: leave --broker out")
        host, _, port = kafka_address.split(",", maxsplit=1)[0].rpartition(":")
        if not host or not port.isdigit():
            raise Problem(f"--kafka {kafka_address}: HOST:PORT")
        return "external"
    if broker != "dev":
        why = kafka.available()
        if why and broker == "kafka":
            raise Problem(why)
        broker = "dev" if why else "kafka"
        if why:
            say(why)
    return broker


def check_database(service: str, url: str) -> None:
    """Raise Problem for a URL that can't be one."""
    from deskwire_common.db import normalize_url  # noqa: PLC0415 - slow to import, and most commands need none

    try:
        normalize_url(url)
    except InvalidArgument as error:
        raise Problem(f"--database {service}=…: {error.message}") from None


class Launch:
    """One running suite: starts its processes in order, watches them, stops them in the reverse order."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kafka = plan.kafka
        self.redis = plan.redis
        self.processes: list[tuple[Process, str]] = []  # with the address
        self.phase = "starting"
        self.walk = ""
        self.problem = ""
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    # -- what others see ------------------------------------------------------------------------------------

    def write_state(self, **changes: str) -> None:
        """Say in run/state.json how far it is."""
        for name, value in changes.items():
            setattr(self, name, value)
        plan = self.plan
        plan.home.write_state(
            {
                "phase": self.phase,
                "problem": self.problem,
                "walk": self.walk,
                "pid": os.getpid(),
                "started_at": self._started,
                "version": installed_version("deskwire-cli"),
                "port_base": plan.ports.base,
                "broker": plan.broker,
                "kafka": self.kafka,
                "redis": self.redis,
                "demo": plan.demo,
                "websocket": f"ws://{plan.ports.address('websocket')}/ws",
                "databases": {service: plan.database(service) for service in STORES},
                "processes": [
                    {
                        "name": process.name,
                        "pid": process.pid,
                        "address": address,
                        "metrics": plan.ports.address(f"{process.name}-metrics")
                        if service_of(process.name) in SERVICES
                        else "",
                        "log": str(process.log),
                    }
                    for process, address in self.processes
                ],
            }
        )

    # -- start ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up to "all serve". Raises Problem."""
        plan = self.plan
        self.write_state()
        migrations = asyncio.create_task(migrate(plan))
        try:
            await self._start_valkey()
            await self._start_broker()
            await migrations
        finally:
            migrations.cancel()
            await asyncio.gather(migrations, return_exceptions=True)
        begun = time.monotonic()
        services = [self._service(name) for name in plan.services()]
        for process in services:
            self._begin(process, plan.ports.address(process.name))
        for process in services:
            address = plan.ports.address(process.name)
            await process.ready(serving(address), timeout=SERVICE_SECONDS)
            say(f"{process.name:<10} serves at {address} ({time.monotonic() - begun:.1f} s)")
        if plan.demo:
            await self._start_crm()
        self.write_state()

    def _begin(self, process: Process, address: str) -> None:
        process.start()
        self.processes.append((process, address))
        self.write_state()

    async def _start_valkey(self) -> None:
        plan = self.plan
        if plan.redis:
            parts = urlsplit(plan.redis)
            probe = valkey.probe(parts.hostname or HOST, parts.port or 6379)
            if parts.scheme != "unix" and (missing := await asyncio.to_thread(probe)):
                raise Problem(f"--redis {redact_text(plan.redis)}: {missing}")
            return
        port = plan.ports.port("valkey")
        process = valkey.process(
            plan.home.valkey,
            port=port,
            log=plan.home.log("valkey"),
            pid_file=plan.home.pid_file("valkey"),
        )
        self._begin(process, plan.ports.address("valkey"))
        await process.ready(valkey.probe(HOST, port), timeout=15.0)
        self.redis = f"redis://{HOST}:{port}/0"
        say(f"{'valkey':<10} serves at {HOST}:{port}")

    async def _start_broker(self) -> None:
        plan = self.plan
        begun = time.monotonic()
        if plan.broker == "external":
            probe = kafka.probe(plan.kafka)
            for _ in range(5):
                missing = await asyncio.to_thread(probe)
                if not missing:
                    return
            raise Problem(f"--kafka {plan.kafka}: {missing}")
        if plan.broker == "dev":
            say(devbroker.LIMITS)
            file = plan.home.run / "devbroker.address"
            process = devbroker.process(
                file, log=plan.home.log("devbroker"), pid_file=plan.home.pid_file("devbroker")
            )
            self._begin(process, "")
            await process.ready(devbroker.probe(file), timeout=15.0)
            self.kafka = devbroker.address(file)
            self.processes[-1] = (process, self.kafka)
        else:
            self.kafka = plan.ports.address("kafka")
            # Its start is made here, in the main thread; the rest (a fetch, a format) may take its time.
            process = await asyncio.to_thread(
                kafka.process,
                plan.home.kafka,
                port=plan.ports.port("kafka"),
                controller_port=plan.ports.port("kafka-controller"),
                log=plan.home.log("kafka"),
                pid_file=plan.home.pid_file("kafka"),
                say=say,
            )
            self._begin(process, self.kafka)
            await process.ready(kafka.probe(self.kafka), timeout=kafka.READY_SECONDS)
        name = process.name
        say(f"{name:<10} serves at {self.kafka} ({time.monotonic() - begun:.1f} s)")

    def _service(self, name: str) -> Process:
        return Process(
            name=name,
            command=[sys.executable, "-m", f"deskwire_{service_of(name)}", "serve"],
            log=self.plan.home.log(name),
            env=self.environment(name),
            pid_file=self.plan.home.pid_file(name),
            grace=DRAIN_SECONDS,
        )

    def environment(self, name: str) -> dict[str, str]:
        """A process's settings. What the caller's environment says of others (OTLP, TLS …) stays."""
        plan = self.plan
        service = service_of(name)
        settings = {
            **python_environment(),
            "DESKWIRE_GRPC_LISTEN": plan.ports.address(name),
            "DESKWIRE_METRICS_LISTEN": plan.ports.address(f"{name}-metrics"),
            "DESKWIRE_KEYS_FILE": str(plan.home.keys_file),
            "DESKWIRE_KAFKA": self.kafka,
            "DESKWIRE_REDIS_URL": self.redis,
            "DESKWIRE_CHAT_TARGET": plan.ports.address("chat"),
            "DESKWIRE_WS_LISTEN": plan.ports.address("websocket"),
        }
        if plan.broker == "dev":
            # It doesn't know the group protocol of KIP-848.
            settings["DESKWIRE_KAFKA_GROUP_PROTOCOL"] = "classic"
            # It forgets with its end what was published: the databases keep it as long as topics would.
            settings["DESKWIRE_OUTBOX_KEEP_SECONDS"] = str(7 * 86_400)
        if service == "gateway":
            settings["DESKWIRE_WORKERS"] = str(plan.gateway_workers)
        if service == "chat":
            # Not the host's name: these are several on one.
            settings["DESKWIRE_SHARD_NAME"] = "chat-0" if name == "chat" else name
            # All of them see the folder. Whoever wants a bucket says so in the environment.
            if not os.environ.get("DESKWIRE_ATTACHMENTS_URL"):
                settings["DESKWIRE_ATTACHMENTS_URL"] = plan.home.attachments.as_uri()
            settings["DESKWIRE_ATTACHMENTS_LISTEN"] = plan.ports.address(f"{name}-files")
        if service in STORES:
            settings["DESKWIRE_DATABASE_URL"] = plan.database(service)
        return settings

    async def _start_crm(self) -> None:
        plan = self.plan
        address = plan.ports.address("crm")
        secret = crm_secret(plan.home)
        settings = {
            **python_environment(),
            "DEMO_CRM_DATABASE": str(crm_database(plan.home)),
            "DEMO_CRM_LISTEN": address,
            "DEMO_CRM_SECRET": secret,
            "DEMO_CRM_OTLP_ENDPOINT": os.environ.get("DESKWIRE_OTLP_ENDPOINT", ""),
        }
        process = Process(
            name="crm",
            command=[sys.executable, "-m", "demo_crm", "serve"],
            log=plan.home.log("crm"),
            env=settings,
            pid_file=plan.home.pid_file("crm"),
        )
        self._begin(process, address)
        await process.ready(listening(address), timeout=SERVICE_SECONDS)
        suite = load_suite(plan.home)
        connect = import_module("demo_crm.connect").connect
        try:
            await asyncio.to_thread(
                connect,
                cdc=suite.cdc,
                events=suite.events,
                token=suite.token(Role.OPERATOR, "deskwire-up"),
                database=crm_database(plan.home),
                target=address,
                secret=secret,
            )
        except grpc.RpcError as error:
            raise Problem(f"the demo CRM can't be connected: {words(error)}") from None
        say(f"{'crm':<10} serves at {address} (demo)")

    # -- while it runs, and the end ---------------------------------------------------------------------------

    async def watch(self) -> None:
        """Say of each process that ends that it has; never returns."""
        await asyncio.gather(*(self._watch(process) for process, _ in self.processes))
        await asyncio.Event().wait()

    async def _watch(self, process: Process) -> None:
        await process.ended()
        self.problem = process.how_it_ended()
        say(f"\n{self.problem}\nthe rest goes on; `deskwire down` and `deskwire up` start it again")
        self.write_state()

    async def stop(self) -> None:
        """Stop everything, last one first."""
        self.write_state(phase="stopping")
        for process, _ in reversed(self.processes):
            if process.running:
                say(f"stopping {process.name}")
            await process.stopped()
        self.write_state(phase="failed" if self.phase == "failed" else "stopped")


def service_of(process: str) -> str:
    """Which service a process is of: `chat-1` is the second one of chat."""
    return "chat" if process.startswith("chat-") else process


def crm_secret(home: Home) -> str:
    """What the hub says to the demo CRM; made once, since the hub keeps it too."""
    file = home.root / "crm.secret"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text()


async def migrate(plan: Plan) -> None:
    """Bring every database to this program's schema. Raises Problem."""
    from deskwire_common.migrations import migrate as migrate_one  # noqa: PLC0415 - slow to import

    for service in STORES:
        try:
            applied = await migrate_one(plan.database(service), f"deskwire_{service}")
        except (DeskwireError, OSError) as error:
            raise Problem(f"the database of {service} can't be migrated: {error}") from None
        if applied:
            say(f"{service:<10} database at schema {applied[-1]}")


def words(error: grpc.RpcError) -> str:
    """Its code and text, if it has them."""
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name}: {details()}" if callable(code) and callable(details) else str(error)


def serving(address: str) -> Probe:
    """Ready when grpc.health.v1 says SERVING."""

    def ask() -> str:
        with grpc.insecure_channel(address) as channel:
            try:
                answer = ask_health(channel)
            except grpc.RpcError as error:
                return f"{address} doesn't answer ({words(error)})"
        return "" if answer.status == answer.SERVING else f"{address} is not serving yet"

    return ask


def listening(address: str) -> Probe:
    """Ready when it accepts connections."""
    return lambda: "" if answers(address) else f"no answer at {address}"
