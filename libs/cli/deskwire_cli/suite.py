"""A running suite as commands see it: the addresses of its parts, and tokens for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import Ports
from deskwire_cli.machine.problem import Problem
from deskwire_common.auth import KeySet, Role, TokenSigner

TENANT = "demo"  # the tenant of the demo CRM, the walk and the commands, unless they name another
SECONDS = 10.0  # deadline of a call


@dataclass(frozen=True, slots=True)
class Suite:
    """Addresses of one running suite: host:port, the WebSocket as a URL."""

    websocket: str
    gateway: str
    chat: str
    tickets: str
    events: str
    cdc: str
    kafka: str
    keys_file: Path
    # Whether the broker is in memory: its offsets begin at 0 at each of its starts.
    development_broker: bool = False
    # The demo CRM's adapter and its database; "" without it.
    crm: str = ""
    crm_database: str = ""

    def token(
        self,
        role: Role,
        subject: str,
        *,
        tenant: str = TENANT,
        name: str = "",
        system: str = "",
        seconds: float = 3600.0,
    ) -> str:
        """A token signed with the suite's key. Raises KeysError when the file can't be used."""
        signer = TokenSigner(KeySet.load(self.keys_file))
        return signer.mint(
            tenant=tenant, role=role, subject=subject, name=name, system=system, ttl=seconds
        )


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata with the token."""
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def open_channel(target: str) -> AsyncIterator[grpc.aio.Channel]:
    """A plain channel to one service of this machine; each call has its own token and deadline."""
    async with grpc.aio.insecure_channel(target) as channel:
        yield channel


def crm_database(home: Home) -> Path:
    """The demo CRM's database file, in a folder of its own: change capture may read what is in it."""
    return home.crm / "crm.db"


def load_suite(home: Home | Path | str | None = None) -> Suite:
    """The suite that runs in this home (default: $DESKWIRE_HOME). Raises Problem when none does."""
    place = home if isinstance(home, Home) else Home.find(home)
    state = place.read_state()
    if not state or not place.is_locked():
        raise Problem(f"no suite runs in {place.root}: start one with `deskwire up`")
    ports = Ports(int(state["port_base"]))
    return Suite(
        websocket=str(state["websocket"]),
        gateway=ports.address("gateway"),
        chat=ports.address("chat"),
        tickets=ports.address("tickets"),
        events=ports.address("events"),
        cdc=ports.address("cdc"),
        kafka=str(state["kafka"]),
        keys_file=place.keys_file,
        development_broker=state["broker"] == "dev",
        crm=ports.address("crm") if state["demo"] else "",
        crm_database=str(crm_database(place)) if state["demo"] else "",
    )
