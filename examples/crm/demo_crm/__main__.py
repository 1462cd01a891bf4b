"""`python -m demo_crm serve|connect|customers|received|set-phone|set-order`. Settings come from DEMO_CRM_*."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from typing import Any

import grpc

from demo_crm.adapter import serve
from demo_crm.connect import SYSTEM_ID, connect
from demo_crm.store import CrmDatabase, UnknownCustomerError, UnknownOrderError
from demo_crm.tracing import Tracing

FAILED, USAGE = 1, 2
_GRACE = 2.0

SETTINGS = """settings (environment):
  DEMO_CRM_DATABASE       the SQLite file (demo-crm.db)
  DEMO_CRM_LISTEN         host:port of the adapter (127.0.0.1:7410); plaintext, so keep it on loopback
  DEMO_CRM_SECRET         what deskwire's hub must say in Auth (serve and connect need it)
  DEMO_CRM_SYSTEM         this CRM's system id in deskwire (crm:main)
  DEMO_CRM_OTLP_ENDPOINT  an OpenTelemetry collector's gRPC address; empty: no traces
  DEMO_CRM_TOKEN          a deskwire token of role operator, or integration with this system id (connect)
"""


def setting(name: str, default: str | None = None) -> str:
    """DEMO_CRM_<name>; without a default it must be set."""
    value = os.environ.get(f"DEMO_CRM_{name}") or default
    if value is None:
        print(f"demo_crm: set DEMO_CRM_{name}", file=sys.stderr)
        sys.exit(USAGE)
    return value


def _database() -> CrmDatabase:
    database = CrmDatabase(setting("DATABASE", "demo-crm.db"))
    database.create()
    return database


def _serve(_arguments: argparse.Namespace) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    tracing = Tracing(setting("OTLP_ENDPOINT", ""))
    server, port = serve(
        _database(),
        listen=setting("LISTEN", "127.0.0.1:7410"),
        secret=setting("SECRET"),
        system_id=setting("SYSTEM", SYSTEM_ID),
        tracing=tracing,
    )
    print(json.dumps({"event": "serving", "port": port}), file=sys.stderr, flush=True)
    stop.wait()
    server.stop(_GRACE).wait()
    tracing.close()


def _connect(arguments: argparse.Namespace) -> None:
    _print(
        connect(
            cdc=arguments.cdc,
            events=arguments.events,
            token=setting("TOKEN"),
            database=_database().path,
            target=arguments.target or setting("LISTEN", "127.0.0.1:7410"),
            secret=setting("SECRET"),
            system_id=setting("SYSTEM", SYSTEM_ID),
        )
    )


def _set_phone(arguments: argparse.Namespace) -> None:
    _print(_database().set_phone(arguments.customer_no, arguments.phone))


def _set_order(arguments: argparse.Namespace) -> None:
    _database().set_order_state(arguments.order_no, arguments.state)


def _customers(arguments: argparse.Namespace) -> None:
    customers = _database().customers()
    if arguments.json:
        _print(customers)
        return
    for each in customers:
        print(f"{each['customer_no']}  {each['name']:<16} {each['phone']:<16} {each['email']}")


def _received(arguments: argparse.Namespace) -> None:
    received = _database().received()
    if arguments.json:
        _print([{**each, "event": json.loads(each["event"])} for each in received])
        return
    for each in received:
        print(
            f"{each['number']:>4}  {each['event_type']:<20} {each['origin']:<10} {each['subject']}"
        )


def _said(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="demo_crm",
        description="A demo CRM, connected to deskwire.",
        epilog=SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    each = commands.add_parser("serve", help="serve deskwire's SystemAdapterService")
    each.set_defaults(run=_serve)
    each = commands.add_parser("connect", help="make this CRM known to deskwire; prints JSON")
    each.add_argument("--cdc", required=True, metavar="HOST:PORT", help="deskwire's cdc service")
    each.add_argument("--events", required=True, metavar="HOST:PORT", help="deskwire's event hub")
    each.add_argument("--target", metavar="HOST:PORT", help="where the hub reaches this program")
    each.set_defaults(run=_connect)
    each = commands.add_parser("set-phone", help="change a customer's phone, as a clerk would")
    each.add_argument("customer_no")
    each.add_argument("phone")
    each.set_defaults(run=_set_phone)
    each = commands.add_parser("set-order", help="change an order's state, as the warehouse would")
    each.add_argument("order_no")
    each.add_argument("state")
    each.set_defaults(run=_set_order)
    for name, run, text in (
        ("customers", _customers, "list the customers"),
        ("received", _received, "list the events that deskwire pushed"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("--json", action="store_true")
        each.set_defaults(run=run)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exit 1 with one line when it fails, 2 when a setting is missing."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except grpc.RpcError as error:
        print(f"demo_crm: {_said(error)}", file=sys.stderr)
        sys.exit(FAILED)
    except (OSError, UnknownCustomerError, UnknownOrderError) as error:
        print(f"demo_crm: {error}", file=sys.stderr)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
