"""The CRM's own SQLite database: customers, their orders, and the events that deskwire pushed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What deskwire's change capture looks for: what is written while a row stands here came from the
#: desk, and is not sent back to it. See `apply`.
MARK = "_deskwire_mark"

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS customers (
    customer_no TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 1,
    updated_at INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (
    order_no TEXT PRIMARY KEY,
    customer_no TEXT NOT NULL REFERENCES customers,
    item TEXT NOT NULL,
    amount_cents INTEGER NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS received_events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    event_type TEXT NOT NULL,
    subject TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    origin TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    traceparent TEXT NOT NULL,
    event TEXT NOT NULL,
    received_at INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS {MARK} (origin TEXT NOT NULL);
"""
CUSTOMERS = (
    ("1001", "Li Na", "li.na@example.com", "+8613900139000"),
    ("1002", "Max Weber", "max.weber@example.com", "+4915112345678"),
    ("1003", "Amina Diallo", "amina.diallo@example.com", "+221771234567"),
)
ORDERS = (
    ("A-5001", "1001", "Standing desk, oak", 48900, "delivered"),
    ("A-5002", "1001", "Desk lamp", 3900, "shipped"),
    ("A-5003", "1002", "Office chair", 25900, "paid"),
    ("A-5004", "1003", "Monitor arm", 8900, "delivered"),
)
#: deskwire's names of what this CRM has a column for.
COLUMNS = {"display_name": "name", "email": "email", "mobile": "phone"}


class UnknownOrderError(LookupError):
    """There is no order of this number."""


@dataclass(frozen=True, slots=True)
class Received:
    """An event as deskwire pushed it; `event` is its JSON form, `traceparent` that of its delivery."""

    event_id: str
    event_type: str
    subject: str
    sequence: int
    origin: str
    trace_id: str
    traceparent: str
    event: str


class UnknownCustomerError(LookupError):
    """There is no customer of this number."""


class CrmDatabase:
    """The database file. Every call opens its own connection, so any thread may make it; all block."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def create(self) -> None:
        """Make the file, its tables and, the first time, its customers and orders."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(SCHEMA)
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM customers").fetchone():
                return
            connection.executemany(
                "INSERT INTO customers (customer_no, name, email, phone, updated_at) "
                "VALUES (?, ?, ?, ?, ?)",
                [(*customer, _now()) for customer in CUSTOMERS],
            )
            connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", ORDERS)

    def customer(self, customer_no: str) -> dict[str, Any]:
        """One customer with their orders. Raises UnknownCustomerError."""
        for customer in self.customers():
            if customer["customer_no"] == customer_no:
                return customer
        raise UnknownCustomerError(f"there is no customer {customer_no}")

    def customers(self) -> list[dict[str, Any]]:
        """All customers with their orders, by number."""
        with self._transaction() as connection:
            customers = _rows(connection, "SELECT * FROM customers ORDER BY customer_no")
            orders = _rows(connection, "SELECT * FROM orders ORDER BY order_no")
        return [
            {
                **customer,
                "orders": [o for o in orders if o["customer_no"] == customer["customer_no"]],
            }
            for customer in customers
        ]

    def set_phone(self, customer_no: str, phone: str) -> dict[str, Any]:
        """What a clerk does: write a new phone number. Raises UnknownCustomerError."""
        with self._transaction() as connection:
            _update(connection, customer_no, {"phone": phone})
        return self.customer(customer_no)

    def set_order_state(self, order_no: str, state: str) -> None:
        """What the warehouse does: an order goes on. Raises UnknownOrderError."""
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE orders SET state = ? WHERE order_no = ?", (state, order_no)
            )
            if not done.rowcount:
                raise UnknownOrderError(f"there is no order {order_no}")

    def received(self) -> list[dict[str, Any]]:
        """The events that deskwire pushed, in the order they came."""
        with self._transaction() as connection:
            return _rows(connection, "SELECT * FROM received_events ORDER BY number")

    def record(
        self, received: Received, customer_no: str = "", fields: Mapping[str, str] | None = None
    ) -> bool:
        """Keep an event and, in the same transaction, write what it changes; False when it was here before.

        `fields` (deskwire's names) are the desk's new values for the customer. They are written under the
        mark, so that change capture doesn't report them to the desk as news of this CRM. What the
        CRM has already is not written again.
        """
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT 1 FROM received_events WHERE event_id = ?", (received.event_id,)
            ).fetchone()
            if known:
                return False
            connection.execute(
                "INSERT INTO received_events (event_id, event_type, subject, sequence, origin, "
                "trace_id, traceparent, event, received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    received.event_id,
                    received.event_type,
                    received.subject,
                    received.sequence,
                    received.origin,
                    received.trace_id,
                    received.traceparent,
                    received.event,
                    _now(),
                ),
            )
            if customer_no and fields:
                connection.execute(f"INSERT INTO {MARK} (origin) VALUES ('deskwire')")  # noqa: S608 - a constant
                values = {COLUMNS[name]: value for name, value in fields.items()}
                # The desk knows people whom this CRM doesn't; the event is kept all the same.
                with suppress(UnknownCustomerError):
                    _update(connection, customer_no, values)
                connection.execute(f"DELETE FROM {MARK}")  # noqa: S608 - a constant
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=5, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _update(connection: sqlite3.Connection, customer_no: str, values: Mapping[str, str]) -> None:
    row = connection.execute(
        "SELECT * FROM customers WHERE customer_no = ?", (customer_no,)
    ).fetchone()
    if row is None:
        raise UnknownCustomerError(f"there is no customer {customer_no}")
    news = {column: value for column, value in values.items() if row[column] != value}
    if not news:
        return
    assignments = ", ".join(f"{column} = ?" for column in news)
    connection.execute(
        f"UPDATE customers SET {assignments}, version = version + 1, updated_at = ? "  # noqa: S608 - our own columns
        "WHERE customer_no = ?",
        (*news.values(), _now(), customer_no),
    )


def _rows(connection: sqlite3.Connection, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query)]


def _now() -> int:
    return time.time_ns() // 1000
