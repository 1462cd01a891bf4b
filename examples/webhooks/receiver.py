"""Receives deskwire's webhooks with nothing but Python: a start for your own.

WEBHOOK_SECRETS=whsec_… python receiver.py 8088

WEBHOOK_SECRETS has the secret, or two with a blank between them while you change over. Put it behind your TLS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOLERANCE = 300
"""Seconds that a request may be old, or ahead of this clock: a copy of an old one is worth nothing."""
MAX_BODY = 4 << 20


def verify(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether deskwire sent this: one of the signatures is right, and the request is fresh."""
    sent = headers.get("webhook-timestamp", "")
    if not sent.isdecimal() or abs(now - int(sent)) > TOLERANCE:
        return False
    signed = f"{headers.get('webhook-id', '')}.{sent}.".encode() + body
    given = headers.get("webhook-signature", "").split()
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        right = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        if any(hmac.compare_digest(right.encode(), each.encode()) for each in given):
            return True
    return False


def handle(event: Mapping[str, Any]) -> None:
    """Your part: write down what happened, in the transaction that notes the event's id."""
    print(event["event_type"], event["subject"], json.dumps(event["data"]), flush=True)


class Receiver(BaseHTTPRequestHandler):
    """One request is one event."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self) -> None:
        """Take an event; the status is the answer."""
        length = int(self.headers.get("content-length", 0))
        if length > MAX_BODY:
            self.close_connection = True
            self._answer(413)
            return
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        secrets = os.environ["WEBHOOK_SECRETS"].split()
        if not verify(secrets, headers, body, time.time()):
            self._answer(401)
            return
        with sqlite3.connect(os.environ.get("WEBHOOK_DATABASE", "received.db")) as database:
            database.execute("CREATE TABLE IF NOT EXISTS received (event_id TEXT PRIMARY KEY)")
            fresh = database.execute(
                "INSERT OR IGNORE INTO received VALUES (?)", [headers["webhook-id"]]
            ).rowcount
            # The same event may come again: after a restart of the hub, or when this answer is lost.
            if fresh:
                handle(json.loads(body))
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing: `handle` says what came."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
