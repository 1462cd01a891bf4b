"""`deskwire outbox`: events that Kafka refuses, in the databases of the suite or of one service anywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from deskwire_cli.machine.home import Home
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.tables import print_table
from deskwire_cli.plain import plain
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import redact_text, setup_logging

if TYPE_CHECKING:
    from deskwire_common.outbox import Parking

T = TypeVar("T")

outbox_app = typer.Typer(
    name="outbox", help="Events that Kafka refuses, and what to do with them.", no_args_is_help=True
)
DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database", help="URL of one service's database; default: those of the suite here."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON array.")]


def databases(url: str) -> Mapping[str, str]:
    """URLs by what they are called. Raises Problem when no suite was started here."""
    if url:
        return {redact_text(url): url}
    state = Home.find().read_state()
    if not state:
        raise Problem("no suite was started here: name a database with --database")
    return dict(state["databases"])


def on_each(url: str, do: Callable[[Parking], Awaitable[T]]) -> dict[str, T]:
    """Do something with the parked events of each database. Raises Problem. Blocks."""
    setup_logging("deskwire", "ERROR")
    return {
        name: asyncio.run(_with_parking(name, each, do)) for name, each in databases(url).items()
    }


async def _with_parking(name: str, url: str, do: Callable[[Parking], Awaitable[T]]) -> T:
    from deskwire_common.db import Database  # noqa: PLC0415 - slow to import
    from deskwire_common.db import metadata as new_metadata  # noqa: PLC0415 - the same
    from deskwire_common.outbox import Outbox, Parking  # noqa: PLC0415 - the same

    try:
        db = await Database.open(url, pool_size=1)
        try:
            return await do(Parking(db, Outbox(new_metadata())))
        finally:
            await db.close()
    except (DeskwireError, OSError) as error:
        raise Problem(f"the database of {name} doesn't answer: {error}") from None


@outbox_app.command("list")
def list_parked(database: DatabaseOption = "", as_json: JsonOption = False) -> None:
    """Show the events that Kafka refused, why, and how many later ones of their keys wait behind them."""
    found = on_each(database, lambda parking: parking.refused())
    rows = [{"database": name, **asdict(row)} for name, rows in found.items() for row in rows]
    if as_json:
        print(json.dumps(rows, indent=2, default=lambda time: time.isoformat()))
        return
    print_table(
        ("database", "event", "topic", "key", "reason", "bytes", "behind", "since"),
        [
            [
                plain(cell)
                for cell in (
                    row["database"],
                    row["event_id"],
                    row["topic"],
                    row["key"],
                    row["reason"],
                    row["size"],
                    row["behind"],
                    row["parked_at"].isoformat(" ", "seconds"),
                )
            ]
            for row in rows
        ],
    )


@outbox_app.command("redrive")
def redrive(
    event_id: Annotated[str, typer.Argument(help="One event; its whole key goes on.")] = "",
    topic: Annotated[str, typer.Option("--topic", help="All of a topic.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    database: DatabaseOption = "",
) -> None:
    """Send parked events again, in their old order; what Kafka still refuses is parked again."""
    if [bool(event_id), bool(topic), everything].count(True) != 1:
        raise typer.BadParameter("name an event, or --topic, or --all")
    counts = on_each(database, lambda parking: parking.redrive(topic=topic, event_id=event_id))
    if event_id and not sum(counts.values()):
        raise Problem(f"no parked event has the id {event_id}")
    print(f"{sum(counts.values())} events go on")


@outbox_app.command("drop")
def drop(
    event_id: Annotated[str, typer.Argument(help="The event; nobody will ever get it.")],
    database: DatabaseOption = "",
) -> None:
    """Delete one parked event for good; later ones of its key go on, and readers see a hole in its sequence."""
    if not any(on_each(database, lambda parking: parking.drop(event_id)).values()):
        raise Problem(f"no parked event has the id {event_id}")
    print(f"{event_id} is gone")
