"""`deskwire replay FILE`: play recorded dialogues, then prove every turn stored, in order, once.

Each run has ids, a tenant and agents of its own, and goes through routing like everybody. Afterwards history is read
back over gRPC and the topic from Kafka, and both are compared with the file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deskwire_cli.plain import plain
from deskwire_cli.replay.dialogues import Dialogue, load
from deskwire_cli.replay.outcome import Outcome, show
from deskwire_cli.replay.proof import Proof
from deskwire_cli.replay.run_ids import RunIds
from deskwire_cli.replay.stage import Stage
from deskwire_cli.suite import Suite, load_suite
from deskwire_common import topics
from deskwire_common.auth import Role
from deskwire_common.kafka import Reader
from deskwire_common.rpc import make_channel

KAFKA_UNPROVED: Final = 3
"""Exit code: all is stored, but the development broker can't prove the topic."""


async def run(
    suite: Suite, dialogues: Sequence[Dialogue], progress: Progress, *, pairs: int, rate: float
) -> Outcome:
    """Play everything, then prove it."""
    ids = RunIds(suite.keys_file)
    outcome = Outcome(len(dialogues), sum(len(each.turns) for each in dialogues))
    operator = ids.token(Role.OPERATOR, "replay")
    reader = Reader(suite.kafka, [topics.MESSAGES.name], start="latest")
    if not suite.development_broker:
        await reader.start()
    channel = make_channel(suite.chat, token=lambda: operator)
    pairs = min(pairs, len(dialogues))
    stage = Stage(suite.websocket, ids, outcome, progress, pairs=pairs, rate=rate)
    try:
        await stage.connect_agents(channel)
        started = time.perf_counter()
        await stage.play(channel, dialogues)
        outcome.seconds = time.perf_counter() - started
        proof = Proof(ids, dialogues, outcome, progress)
        await proof.read_history(channel)
        if not suite.development_broker:
            await proof.read_topic(reader)
    finally:
        await stage.close()
        await channel.close()
        await reader.close()
    return outcome


def replay(
    file: Annotated[
        Path, typer.Argument(help="JSON lines {id, topics, turns: [{from, text}]}, plain or .gz.")
    ],
    pairs: Annotated[int, typer.Option(min=1, max=5_000, help="Visitors and agents at once.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0, help="Turns a second at the most; 0: as fast as it goes.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
    home: Annotated[
        Path | None, typer.Option(help="The suite's home; default $DESKWIRE_HOME.")
    ] = None,
) -> None:
    """Play recorded dialogues and prove that each turn is stored and published once, in order.

    Exit 0: it is so. 1: something is missing, twice or out of order. 3: all is stored, but the development broker
    can't prove the topic.
    """
    suite = load_suite(home)
    dialogues = load(file)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        outcome = uvloop.run(run(suite, dialogues, progress, pairs=pairs, rate=rate))
    for failure in outcome.failures[:10]:
        print(f"failed: {plain(failure)}", file=sys.stderr)
    if as_json:
        print(json.dumps(outcome.report()))
    else:
        show(outcome)
    if not outcome.whole or outcome.failures:
        raise typer.Exit(1)
    if outcome.on_kafka is None:
        print(
            "stored once and in order; the development broker can't prove the topic",
            file=sys.stderr,
        )
        raise typer.Exit(KAFKA_UNPROVED)
