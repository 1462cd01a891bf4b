"""`deskwire up`: starts the suite, plays the walk, stays up; with -d in the background."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from deskwire_cli import walk
from deskwire_cli.launch import Launch, Plan, make_plan
from deskwire_cli.machine.home import Home, project_root
from deskwire_cli.machine.ports import BASE, CHAT_SHARDS
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.progress import say
from deskwire_cli.suite import TENANT, load_suite
from deskwire_common.logging import setup_logging

OK, FAILED = 0, 1
BACKGROUND_SECONDS: Final = 600.0
"""Seconds that `up -d` waits for the background process: a first start fetches Kafka."""


def up(
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Run in the background.")] = False,
    no_demo: Annotated[bool, typer.Option("--no-demo", help="No demo CRM and no walk.")] = False,
    port_base: Annotated[
        int, typer.Option(help="The first of the ports (docs/operations/install.md).")
    ] = BASE,
    kafka: Annotated[str, typer.Option(metavar="HOST:PORT", help="Use this Kafka.")] = "",
    redis: Annotated[str, typer.Option(metavar="URL", help="Use this Redis or Valkey.")] = "",
    database: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE=URL", help="A service's database; may be repeated."),
    ] = None,
    broker: Annotated[
        str,
        typer.Option(
            metavar="kafka|dev", help="Apache Kafka (the default where it can be had) or in-memory."
        ),
    ] = "",
    gateway_workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes of the gateway, on one address.")
    ] = 1,
    chat_shards: Annotated[
        int,
        typer.Option(
            min=1,
            max=CHAT_SHARDS,
            help="Processes of chat, which share the conversations; not with SQLite.",
        ),
    ] = 1,
) -> None:
    """Start the whole suite on this machine."""
    home = Home.find()
    if detach:
        raise typer.Exit(in_background(home))
    setup_logging("deskwire", "WARNING")
    home.prepare()
    with home.locked():
        plan = make_plan(
            home,
            port_base=port_base,
            demo=not no_demo,
            broker=broker,
            kafka_address=kafka,
            redis=redis,
            databases=database or [],
            gateway_workers=gateway_workers,
            chat_shards=chat_shards,
        )
        plan.ports.require_free(plan.parts())
        raise typer.Exit(asyncio.run(run(plan)))


async def run(plan: Plan) -> int:
    """Start, play, stay, stop; returns the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    launch = Launch(plan)
    begun = time.monotonic()
    say(f"starting deskwire in {plan.home.root}")
    code = OK
    try:
        if not await run_until_stopped(stop, launch.start):
            return OK
        launch.write_state(phase="ready", walk="playing" if plan.demo else "")
        say(f"ready in {time.monotonic() - begun:.1f} s")
        watching = asyncio.create_task(launch.watch())
        if plan.demo:
            if not await run_until_stopped(stop, lambda: play(launch)):
                return OK
            code = OK if launch.walk == "played" else FAILED
        say(what_next(plan, launch))
        await stop.wait()
        watching.cancel()
    except Problem as problem:
        launch.write_state(phase="failed", problem=str(problem))
        raise
    finally:
        await launch.stop()
        say("stopped")
    return code


async def run_until_stopped(stop: asyncio.Event, work: Callable[[], Awaitable[None]]) -> bool:
    """Do the work until `stop` is set; return whether it was done. Raises what the work raises."""
    doing = asyncio.ensure_future(work())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            await doing
            return True
        return False
    finally:
        stopping.cancel()
        if not doing.done():
            doing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Problem):
                await doing


async def play(launch: Launch) -> None:
    """Play the walk through all five services against the running suite; its outcome goes into the state."""
    try:
        await walk.play(load_suite(launch.plan.home))
    except Problem as problem:
        launch.write_state(walk="failed", problem=str(problem))
        say(f"{problem}\nthe suite stays up")
        return
    launch.write_state(walk="played")


def what_next(plan: Plan, launch: Launch) -> str:
    """Print what a person can try now."""
    command = command_name()
    address = plan.ports.address
    token = (
        f'"authorization: Bearer $({command} token --role operator --tenant {TENANT} --subject me)"'
    )
    lines = [
        "",
        f"  WebSocket   ws://{address('websocket')}/ws",
        "  gRPC        "
        + "  ".join(
            f"{name} {address(name)}" for name in ("gateway", "chat", "tickets", "events", "cdc")
        ),
        f"  Kafka       {launch.kafka}{' (development broker)' if plan.broker == 'dev' else ''}",
        f"  logs        {plan.home.logs}",
        "",
        "try next, in another terminal:",
        f"  {command} status",
        f"  {command} chat --as agent",
        f"  {command} chat",
        f"  {command} tail --from 10m",
        f"  kcat -b {launch.kafka} -C -o beginning -t deskwire.tickets",
        f"  grpcurl -plaintext -H {token} {address('tickets')} list",
        "",
        f"Ctrl-C stops everything (or: {command} down)",
    ]
    return "\n".join(lines)


def command_name() -> str:
    """Return the shortest command that runs this program."""
    program = Path(sys.executable).with_name("deskwire")
    if not program.exists():
        return "deskwire"
    with contextlib.suppress(ValueError, OSError):
        return str(program.relative_to(Path.cwd()))
    return str(program)


def in_background(home: Home) -> int:
    """Start `deskwire up` as a process of its own and wait until it is ready (and the walk was played)."""
    home.prepare()
    if home.is_locked():
        with home.locked():  # raises Problem when another runs
            pass
    arguments = [each for each in sys.argv[1:] if each not in {"-d", "--detach"}]
    log = home.log("up")
    with log.open("ab") as output:
        start = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "deskwire_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=project_root() if not Path.cwd().exists() else None,
            start_new_session=True,
        )
    deadline = time.monotonic() + BACKGROUND_SECONDS
    shown = start
    try:
        while True:
            ended = child.poll()
            state = home.read_state()
            shown = show(log, shown)
            if ended is not None:
                return ended or FAILED
            if state.get("pid") == child.pid and state.get("phase") == "ready":
                walk = state.get("walk")
                if walk != "playing":
                    show(log, shown)
                    return FAILED if walk == "failed" else OK
            if time.monotonic() > deadline:
                child.terminate()
                raise Problem(f"not ready after {BACKGROUND_SECONDS:g} s (log: {log})")
            time.sleep(0.1)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        show(log, shown)
        return FAILED


def show(log: Path, start: int) -> int:
    """Copy the new output of the background process; return where it ended."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read()
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()
        return file.tell()
