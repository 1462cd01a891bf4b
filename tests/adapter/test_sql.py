"""The SQL adapter, on the three databases: the same event is one row, and an older one never wins."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from deskwire.events.v1.event_pb2 import Event
from deskwire_adapter import CredentialsRefused, Incoming, Login, serving
from deskwire_adapter.conformance import Grade, Subject, examine
from deskwire_adapter.service import AdapterService
from deskwire_adapter.shipped.sql import SqlAdapter
from deskwire_common.db import normalize_url
from deskwire_common.db.engines import make_engine
from deskwire_common.targets import Targets, parse_rules

META = sa.MetaData()
LOG = sa.Table(
    "log",
    META,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(64)),
    sa.Column("amount", sa.Numeric(20, 2)),
    sa.Column("happened", sa.DateTime),
    sa.Column("note", sa.String(100)),
)
CUSTOMERS = sa.Table(
    "customers",
    META,
    sa.Column("number", sa.String(80), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("email", sa.String(100)),
    sa.Column("tags", sa.Text),
)
PICK = {"email": "data.email", "tags": "data.tags"}


class Place:
    """A database, how the adapter is told of it, and what is in it."""

    def __init__(self, url: str, root: Path) -> None:
        found = make_url(url)
        self.sqlite = found.get_backend_name() == "sqlite"
        self.credentials = {"password": found.password} if found.password else {}
        (root / "shop").mkdir(parents=True)
        if self.sqlite:
            url = f"sqlite:///{root / 'shop' / 'shop.db'}"
            self.told = "sqlite:///shop.db"
        else:
            self.told = found._replace(password=None).render_as_string(hide_password=False)
        self.engine: AsyncEngine = make_engine(
            normalize_url(url), statement_timeout=10, lock_timeout=5
        )

    def login(self, **config: Any) -> Login:
        return Login("shop", {"url": self.told, **config}, self.credentials)

    async def rows(self, table: sa.Table) -> list[Mapping[str, Any]]:
        query = sa.select(table).order_by(*table.primary_key)
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]


@pytest.fixture
async def place(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    monkeypatch.setenv("DESKWIRE_ADAPTER_ROOT", str(tmp_path / "files"))
    monkeypatch.setenv("DESKWIRE_ADAPTER_TARGETS", "127.0.0.0/8:*")
    found = Place(database_url, tmp_path / "files")
    async with found.engine.begin() as connection:
        await connection.run_sync(META.create_all)
    yield found
    await found.engine.dispose()


def event(number: int, subject: str = "c-1", sequence: int = 1, **data: Any) -> Incoming:
    text = json.dumps({"event_type": "customer_updated", "data": data})
    return Incoming(Event(event_id=f"e-{number}", subject=subject, sequence=sequence), text)


async def push(place: Place, login: Login, *events: Incoming) -> list[str]:
    """The outcomes, and why, as the library makes results of what the adapter raises."""
    adapter = SqlAdapter()
    session = await adapter.auth(login)
    results = await AdapterService(adapter)._push(session, events)
    await session.close()
    return [f"{each.outcome.name} {each.detail}".strip() for each in results]


async def test_each_event_is_a_row_once(place: Place) -> None:
    login = place.login(
        table="log", event_id="id",
        columns={"kind": "event_type", "amount": "data.amount", "happened": "data.at", "note": {"value": "desk"}},
    )  # fmt: skip
    first = event(1, amount=1.10, at="2026-11-28T04:00:00+01:00")
    assert await push(place, login, first, event(2), first) == [
        "DELIVERED",
        "DELIVERED",
        "DUPLICATE",
    ]
    rows = await place.rows(LOG)
    assert [(row["id"], row["kind"], row["note"]) for row in rows] == [
        ("e-1", "customer_updated", "desk"), ("e-2", "customer_updated", "desk")
    ]  # fmt: skip
    assert Decimal(str(rows[0]["amount"])).quantize(Decimal("0.01")) == Decimal("1.10")
    assert str(rows[0]["happened"]) == "2026-11-28 03:00:00"
    [told] = await push(place, login, event(3, at="yesterday"))
    assert told == "REJECTED happened: 'yesterday' is no time"
    if not place.sqlite:
        long = await push(place, login, event(4, amount="x" * 40))
        assert long[0].startswith("REJECTED the row isn't taken: ")


async def test_an_older_event_never_wins(place: Place) -> None:
    login = place.login(table="customers", key="number", sequence="version", columns=PICK)
    events = [
        event(1, sequence=2, email="new@example.com", tags=["a", 1]),
        event(2, sequence=1, email="old@example.com"),
        event(1, sequence=2, email="new@example.com", tags=["a", 1]),
        event(3, sequence=3, email="newest@example.com"),
        event(4, subject="c-2"),
    ]
    told = await push(place, login, *events)
    assert told == ["DELIVERED", "DUPLICATE", "DUPLICATE", "DELIVERED", "DELIVERED"]
    rows = [tuple(row.values()) for row in await place.rows(CUSTOMERS)]
    # What an event doesn't say stays.
    assert rows == [("c-1", 3, "newest@example.com", '["a",1]'), ("c-2", 1, None, None)]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"table": "nothing", "event_id": "id"}, "there is no table nothing"),
        ({"table": "log", "event_id": "id", "columns": {"x": "data.x"}}, "has no column x"),
        ({"table": "log", "event_id": "note"}, "column note needs a unique key"),
        ({"table": "log", "event_id": "id", "url": "oracle://h/x"}, "unknown database 'oracle'"),
        ({"table": "log", "event_id": "id", "url": "sqlite:////etc/passwd"}, "no plain file name"),
        ({"table": "log", "event_id": "id", "url": "sqlite:///../shop.db"}, "no plain file name"),
        ({"table": "log", "event_id": "id", "url": "mysql://a:b@127.0.0.1/x"}, "into the credential"),
        ({"table": "log", "event_id": "id", "url": "mysql://127.0.0.1/x?unix_socket=/x"}, "no parameters"),
        ({"table": "log", "event_id": "id", "url": "postgresql://[::1]/x"}, "may call"),
        ({"table": "log", "event_id": "id", "url": "postgresql:///x"}, "may call"),
    ],
)  # fmt: skip
async def test_what_can_not_be_used_is_refused(place: Place, config: Any, why: str) -> None:
    with pytest.raises(CredentialsRefused, match=why):
        await SqlAdapter().auth(place.login(**{"columns": {"kind": "event_type"}, **config}))


async def test_a_name_is_dialled_as_it_was_checked(place: Place) -> None:
    if place.sqlite:
        pytest.skip("a file has no name to resolve")
    answers = iter([["127.0.0.1"], ["::1"]])
    url = make_url(place.told).set(host="db.example.org").render_as_string(hide_password=False)
    login = place.login(table="log", event_id="id", url=url, columns={"kind": "event_type"})
    adapter = SqlAdapter(Targets(parse_rules("127.0.0.0/8:*"), lambda _host: next(answers)))
    session = await adapter.auth(login)
    assert await adapter.check(session) == ""
    await session.close()
    with pytest.raises(CredentialsRefused, match="may call"):
        await adapter.auth(login)


async def test_it_conforms(place: Place) -> None:
    login = place.login(table="customers", key="number", sequence="version", columns=PICK)
    async with serving(SqlAdapter(), "127.0.0.1:0") as port:
        subject = Subject(
            f"127.0.0.1:{port}",
            tenant_id="shop",
            config=json.dumps(login.config),
            # The test server of PostgreSQL trusts everybody, with a wrong password too.
            credentials={} if login.config["url"].startswith("postgres") else login.credentials,
        )
        report = await examine(subject)
    failed = {each.trial: each.text for each in report.findings if each.grade is Grade.FAILED}
    assert failed == {}
