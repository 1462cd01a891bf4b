"""`deskwire replay FILE`: play recorded dialogues, then prove every turn stored, in order, once.

The file is read to its end first, and what can't be played is reported. Each run has ids, a tenant and agents of its
own, and goes through routing like everybody. Afterwards history is read back over gRPC and the topic from Kafka, and
both are compared with the file. The file is read once for each of these steps, so its texts are never all in memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.progress import Progress

from deskwire_cli.plain import plain
from deskwire_cli.recorded.dialogues import Rules, Speaker
from deskwire_cli.recorded.options import (
    LEFT_OUT,
    AsOption,
    DryRunOption,
    HomeOption,
    JsonOption,
    StrictOption,
    progress_bar,
    read_first,
    who_is_who,
)
from deskwire_cli.recorded.recording import Recording
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

_ALLOWED: Final = {each.value: each for each in (Speaker.CUSTOMER, Speaker.AGENT, Speaker.SYSTEM)}
_KNOWN: Final = {**_ALLOWED, "visitor": Speaker.CUSTOMER, "user": Speaker.CUSTOMER}


async def run(
    suite: Suite, recording: Recording, progress: Progress, *, pairs: int, rate: float
) -> Outcome:
    """Play everything that isn't left out, then prove it."""
    ids = RunIds(suite.keys_file)
    balance = recording.balance
    outcome = Outcome(balance)
    operator = ids.token(Role.OPERATOR, "replay")
    reader = Reader(suite.kafka, [topics.MESSAGES.name], start="latest")
    if not suite.development_broker:
        await reader.start()
    channel = make_channel(suite.chat, token=lambda: operator)
    pairs = min(pairs, balance.dialogues_played)
    stage = Stage(suite.websocket, ids, outcome, progress, pairs=pairs, rate=rate)
    try:
        await stage.connect_agents(channel)
        started = time.perf_counter()
        await stage.play(channel, recording)
        outcome.seconds = time.perf_counter() - started
        proof = Proof(ids, outcome, progress)
        await proof.read_history(channel, recording)
        if not suite.development_broker:
            await proof.read_topic(reader)
    finally:
        await stage.close()
        await channel.close()
        await reader.close()
    return outcome


def replay(
    file: Annotated[
        Path,
        typer.Argument(help="JSON lines {id, turns: [{from, text}]}, plain or gzip."),
    ],
    pairs: Annotated[int, typer.Option(min=1, max=5_000, help="Visitors and agents at once.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0, help="Turns a second at the most; 0: as fast as it goes.")
    ] = 0,
    as_: AsOption = None,
    strict: StrictOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Play recorded dialogues and prove that each turn is stored and published once, in order.

    The whole file is read first; turns and dialogues that can't be played are left out and reported, by kind and place,
    without their texts. --as says who other speakers are: --as bot=agent.

    Exit 0: it is so. 1: something is missing, twice or out of order. 3: all is stored, but the development broker
    can't prove the topic. 4: it is so of what was played, and something was left out.
    """
    rules = Rules(who_is_who(_KNOWN, _ALLOWED, as_), customer_begins=True)
    with progress_bar() as progress:
        balance = read_first(file, rules, progress, strict=strict)
        outcome = Outcome(balance)
        if balance.played and not dry_run:
            recording = Recording(file, rules, balance)
            suite = load_suite(home)
            outcome = uvloop.run(run(suite, recording, progress, pairs=pairs, rate=rate))
    for failure in outcome.failures:
        print(f"failed: {plain(failure)}", file=sys.stderr)
    if as_json:
        print(json.dumps(balance.report() if dry_run else outcome.report()))
    else:
        show(outcome, dry_run=dry_run)
    if dry_run or not balance.played:
        raise typer.Exit(0 if balance.is_whole else LEFT_OUT)
    if not outcome.whole or outcome.failed:
        raise typer.Exit(1)
    if outcome.on_kafka is None:
        print(
            "stored once and in order; the development broker can't prove the topic",
            file=sys.stderr,
        )
    if not balance.is_whole:
        raise typer.Exit(LEFT_OUT)
    if outcome.on_kafka is None:
        raise typer.Exit(KAFKA_UNPROVED)
