"""An adapter to start from: put your system's API where `Contacts` is, and keep the rest.

Run it: `python my_adapter.py 127.0.0.1:7500`. Its settings are MY_PASSWORD and MY_DATABASE.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any, ClassVar

from deskwire_adapter import (
    DELIVERED,
    DUPLICATE,
    SKIPPED,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    Result,
    Session,
    retry,
    serve,
)


class Contacts:
    """The system: contacts by id, and the ids of the events that it has had."""

    def __init__(self, path: str) -> None:
        self._path = path
        with closing(self._connect()) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS contacts (id PRIMARY KEY, sequence, text)"
            )
            connection.execute("CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY)")

    def write(self, event_id: str, contact: str, sequence: int, text: str) -> bool:
        """Write a contact once for each event; False when the event was here before. One transaction for both."""
        with closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            new = connection.execute("INSERT OR IGNORE INTO events VALUES (?)", (event_id,))
            if not new.rowcount:
                return False
            connection.execute(
                "INSERT INTO contacts VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "sequence = excluded.sequence, text = excluded.text WHERE excluded.sequence > sequence",
                (contact, sequence, text),
            )
        return True

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=5.0, isolation_level=None)


class MyAdapter(AdapterBase):
    """What the hub calls."""

    program = "my-adapter/0.1.0"
    event_types = ("customer_created", "customer_updated")
    config_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"prefix": {"type": "string", "maxLength": 20}},
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self._contacts = Contacts(os.environ.get("MY_DATABASE", "my-adapter.db"))
        self._password = os.environ.get("MY_PASSWORD", "")

    def auth(self, login: Login) -> Session:
        """Who registers the adapter gives the password as a credential."""
        given = login.credentials.get("password", "")
        if not self._password or not hmac.compare_digest(given.encode(), self._password.encode()):
            raise CredentialsRefused("the password is wrong")
        return Session(login)

    def push_one(self, session: Session, event: Incoming) -> Result:
        """Hand one event to the system. The same one may come again, and must do no harm."""
        if event.event_type not in self.event_types:
            return SKIPPED
        contact = session.login.config.get("prefix", "") + event.subject
        try:
            new = self._contacts.write(event.event_id, contact, event.sequence, event.json)
        except sqlite3.OperationalError as error:
            return retry(str(error))
        return DELIVERED if new else DUPLICATE

    def check(self, session: Session) -> str:  # noqa: ARG002 - the same for all
        """What keeps the system from taking events: nothing, once the database could be opened."""
        return ""


if __name__ == "__main__":
    serve(MyAdapter(), sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7500")
