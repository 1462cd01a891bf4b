"""`deskwire walk`: the walk, printed as it goes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import asdict
from typing import Annotated

import typer

from deskwire_cli.machine.problem import Problem
from deskwire_cli.suite import Suite, load_suite
from deskwire_cli.walk.steps import Walk
from deskwire_cli.walk.timeline import show


async def play(suite: Suite) -> None:
    """The walk, printed as it goes. Raises Problem."""
    if not suite.crm:
        raise Problem("this suite runs without the demo CRM: start it without --no-demo")
    print("   since start    latency  the walk", flush=True)
    played = Walk(suite, show)
    try:
        await played.play()
    except sqlite3.Error as error:
        raise Problem(f"the demo CRM's database: {error}") from None
    print(f"one trace through all of it: {played.trace_id}", flush=True)


def walk(
    as_json: Annotated[
        bool, typer.Option("--json", help="The steps as JSON on stdout, when it is over.")
    ] = False,
) -> None:
    """Play one conversation through all five services and the demo CRM; exit 1 when a step fails."""
    suite = load_suite()
    if not as_json:
        asyncio.run(play(suite))
        return
    played = Walk(suite)
    asyncio.run(played.play())
    print(
        json.dumps(
            {
                "trace_id": played.trace_id,
                "conversation_id": played.conversation_id,
                "customer_id": played.customer_id,
                "ticket_id": played.ticket_id,
                "steps": [asdict(each) for each in played.timeline.steps],
            }
        )
    )
