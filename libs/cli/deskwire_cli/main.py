"""The deskwire command. Results go to stdout, progress to stderr; 0 done, 1 it failed, 2 wrong usage."""

from __future__ import annotations

import sys

import typer

from deskwire_cli.access import agent_app, key_app, tenant_app
from deskwire_cli.adapters import adapter_app
from deskwire_cli.chat import chat
from deskwire_cli.down import down
from deskwire_cli.importing import import_file
from deskwire_cli.machine.problem import Problem
from deskwire_cli.outbox import outbox_app
from deskwire_cli.replay import replay
from deskwire_cli.status import status
from deskwire_cli.tail import tail
from deskwire_cli.token import token
from deskwire_cli.up import up
from deskwire_cli.walk import walk
from deskwire_common.errors import DeskwireError

FAILED = 1

app = typer.Typer(
    name="deskwire",
    help="A customer-service integration suite on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(up)
app.command()(down)
app.command()(status)
app.command()(token)
app.command()(chat)
app.command()(tail)
app.command()(walk)
app.command()(replay)
app.command("import")(import_file)
app.add_typer(tenant_app)
app.add_typer(agent_app)
app.add_typer(key_app)
app.add_typer(adapter_app)
app.add_typer(outbox_app)


def main() -> None:
    """Run the command line; a Problem becomes one line on stderr and exit code 1."""
    try:
        app()
    except (Problem, DeskwireError) as problem:
        print(f"deskwire: {problem}", file=sys.stderr)
        sys.exit(FAILED)
