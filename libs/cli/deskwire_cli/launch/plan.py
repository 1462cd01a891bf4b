"""The options of one `deskwire up`, checked against each other and this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from deskwire_cli.machine import kafka
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import Ports
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.progress import say
from deskwire_common.errors import InvalidArgument
from deskwire_common.logging import redact_text

SERVICES: Final = ("chat", "tickets", "events", "cdc", "gateway")
"""In the order of their start; they stop in the reverse order."""
STORES: Final = ("chat", "tickets", "events", "cdc")
"""Those with a database."""


def service_of(process: str) -> str:
    """The service of a process: `chat-1` is the second process of chat."""
    return "chat" if process.startswith("chat-") else process


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of one `deskwire up`. `broker`: kafka, dev, external, or "" (Kafka if it is available)."""

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
    for option in databases:
        service, separator, url = option.partition("=")
        if not separator or service not in STORES:
            raise Problem(
                f"--database {redact_text(option)}: SERVICE=URL, SERVICE one of {', '.join(STORES)}"
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
    """Raise Problem for a URL that can't be a database's."""
    from deskwire_common.db import normalize_url  # noqa: PLC0415 - slow to import, and most commands need none

    try:
        normalize_url(url)
    except InvalidArgument as error:
        raise Problem(f"--database {service}=…: {error.message}") from None
