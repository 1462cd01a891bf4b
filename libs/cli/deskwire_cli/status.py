"""`deskwire status`: every process and data store of the suite, and whether it serves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as installed_version
from typing import Annotated, Any
from urllib.parse import urlsplit

import grpc
import psutil
import typer
from rich.console import Console

from deskwire_cli.launch import SERVICES, service_of
from deskwire_cli.machine import kafka, valkey
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import HOST, answers
from deskwire_cli.machine.tables import print_table
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import redact_text, setup_logging
from deskwire_common.probe import ask as ask_health

SERVING, NOT_SERVING, DOWN = "SERVING", "NOT_SERVING", "DOWN"


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every process, address, health, version and data store; exit 0 only when everything serves."""
    setup_logging("deskwire", "ERROR")
    found = inspect_suite(Home.find())
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    raise typer.Exit(0 if found["healthy"] else 1)


def inspect_suite(home: Home) -> dict[str, Any]:
    """What `status --json` prints. Blocks for some seconds at most."""
    state = home.read_state()
    runs = home.is_locked()
    if not state:
        return {
            "home": str(home.root),
            "healthy": False,
            "phase": "stopped",
            "processes": [],
            "stores": [],
        }
    entries = [*state["processes"]]
    names = {entry["name"] for entry in entries}
    # What the suite uses but did not start.
    if state["broker"] == "external":
        entries.append(
            {"name": "kafka", "pid": None, "address": state["kafka"], "metrics": "", "log": ""}
        )
    if state["redis"] and "valkey" not in names:
        entries.append(
            {"name": "redis", "pid": None, "address": state["redis"], "metrics": "", "log": ""}
        )
    with ThreadPoolExecutor(max_workers=4) as threads:
        processes = list(threads.map(inspect_process, entries))
        stores = list(threads.map(inspect_store, state["databases"].items()))
    missing = {*SERVICES} - names
    healthy = (
        runs
        and state["phase"] == "ready"
        and not missing
        and all(each["health"] == SERVING for each in (*processes, *stores))
    )
    return {
        "home": str(home.root),
        "healthy": healthy,
        "phase": state["phase"] if runs else "stopped",
        "problem": state["problem"],
        "walk": state["walk"],
        "pid": state["pid"] if runs else None,
        "started_at": state["started_at"],
        "version": state["version"],
        "port_base": state["port_base"],
        "broker": state["broker"],
        "websocket": state["websocket"],
        "processes": processes,
        "stores": stores,
    }


def inspect_process(entry: Mapping[str, Any]) -> dict[str, Any]:
    name, pid, address = entry["name"], entry["pid"], entry["address"]
    health = DOWN
    if pid is None or psutil.pid_exists(pid):
        health = health_of(name, address)
    return {
        "name": name,
        "health": health,
        "pid": pid if health != DOWN else None,
        "address": redact_text(address),
        "metrics": entry["metrics"],
        "version": version_of(name, address) if health != DOWN else "",
        "log": entry["log"],
    }


def health_of(name: str, address: str) -> str:
    if service_of(name) in {*SERVICES, "crm"}:
        return grpc_health(address) if name != "crm" else (SERVING if answers(address) else DOWN)
    if name in {"kafka", "devbroker"}:
        return DOWN if kafka.probe(address)() else SERVING
    host, port = redis_address(address)
    return DOWN if valkey.probe(host, port)() else SERVING


def grpc_health(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = ask_health(channel)
        except grpc.RpcError:
            return DOWN
    return SERVING if answer.status == answer.SERVING else NOT_SERVING


def version_of(name: str, address: str) -> str:
    """Return the program's version; "" when it can't be asked."""
    if service_of(name) in SERVICES:
        return installed_version(f"deskwire-{service_of(name)}")
    if name == "crm":
        return installed_version("deskwire-demo-crm")
    if name == "devbroker":
        return "librdkafka"
    if name == "kafka":
        return kafka.VERSION
    return valkey_version(*redis_address(address))


def valkey_version(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), 1.0) as connection:
            connection.sendall(b"INFO server\r\n")
            lines = connection.recv(4096).decode(errors="replace").splitlines()
    except OSError:
        return ""
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return facts.get("valkey_version") or facts.get("redis_version") or ""


def redis_address(text: str) -> tuple[str, int]:
    parts = urlsplit(text if "//" in text else f"//{text}")
    return parts.hostname or HOST, parts.port or 6379


def inspect_store(item: tuple[str, str]) -> dict[str, Any]:
    service, url = item
    schema, problem = asyncio.run(schema_of(service, url))
    return {
        "name": service,
        "kind": urlsplit(url).scheme.partition("+")[0],
        "url": redact_text(url),
        "health": DOWN if problem else SERVING,
        "schema": schema,
        "problem": problem,
    }


async def schema_of(service: str, url: str) -> tuple[str, str]:
    """Return "current" when the database answers with this program's schema, else "" and what is wrong."""
    from deskwire_common.db import Database  # noqa: PLC0415 - slow to import
    from deskwire_common.migrations import check_schema  # noqa: PLC0415

    try:
        db = await Database.open(url, pool_size=1)
        try:
            await check_schema(db, f"deskwire_{service}")
        finally:
            await db.close()
    except (DeskwireError, OSError) as error:
        return "", str(error)
    return "current", ""


def show(found: Mapping[str, Any]) -> None:
    """Print it for people."""
    console = Console(highlight=False, soft_wrap=True)
    if not found["processes"]:
        console.print(f"no suite runs in {found['home']}: start one with `deskwire up`")
        return
    print_table(
        ("process", "health", "address", "pid", "version"),
        [
            (
                each["name"],
                coloured(each["health"]),
                each["address"],
                str(each["pid"] or ""),
                each["version"],
            )
            for each in found["processes"]
        ],
        markup=True,
    )
    console.print()
    print_table(
        ("store", "health", "url"),
        [
            (each["name"], coloured(each["health"]), each["problem"] or each["url"])
            for each in found["stores"]
        ],
        markup=True,
    )
    console.print()
    console.print(f"phase {found['phase']}, {found['websocket']}, home {found['home']}")
    if found["problem"]:
        console.print(found["problem"])


def coloured(health: str) -> str:
    return f"[green]{health}[/green]" if health == SERVING else f"[red]{health}[/red]"
