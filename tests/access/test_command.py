"""`deskwire tenant`, `agent` and `key` against a chat that runs in a home."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from typer.testing import CliRunner

import deskwire_chat.app
from deskwire.chat.v1 import integration_key_service_pb2 as keys_pb
from deskwire.chat.v1 import integration_key_service_pb2_grpc
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import Ports
from deskwire_cli.main import app
from deskwire_common.auth import KeySet, Role, TokenVerifier
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from support.command import Command
from support.ports import free_base
from support.suite import chat_settings

Run = Callable[..., Awaitable["CompletedProcess[str]"]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With nothing running in it."""
    found = Home(tmp_path / "home")
    found.prepare()
    return found


@pytest.fixture
def base() -> int:
    return free_base()


@pytest.fixture
def run(home: Home, base: int) -> Run:
    """`await run("tenant", "list")`, while this process serves."""
    command = Command(home.root, base)

    async def ran(*arguments: str) -> CompletedProcess[str]:
        return await asyncio.to_thread(command, *arguments)

    return ran


@pytest.fixture
async def chat(home: Home, base: int, kafka: str) -> AsyncIterator[str]:
    """Chat's address, in a home that looks like a running suite's."""
    url, address = home.database_url("chat"), Ports(base).address("chat")
    await migrate(url, "deskwire_chat")
    settings = chat_settings(url, kafka, home.keys_file, grpc_listen=address)
    home.write_state(
        {"port_base": base, "websocket": "", "kafka": kafka, "broker": "kafka", "demo": False}
    )
    with home.locked():
        async with running("chat", settings, deskwire_chat.app.build):
            yield address


def rows(done: CompletedProcess[str]) -> list[list[str]]:
    """The cells of a table without its titles."""
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:]]


async def test_tenants_and_agents(run: Run, chat: str) -> None:
    (made,) = rows(await run("tenant", "create", "acme", "--name", "Acme"))
    assert made[:3] == ["acme", "Acme", "enabled"]
    (shut,) = rows(await run("tenant", "disable", "acme"))
    assert shut[:3] == ["acme", "Acme", "disabled"]
    listed = json.loads((await run("tenant", "list", "--json")).stdout)
    assert [(each["tenant_id"], each["disabled"], each["version"]) for each in listed] == [
        ("acme", True, 2)
    ]
    refused = await run("agent", "list", "--tenant", "acme")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "deskwire: tenant acme is disabled\n"
    assert rows(await run("tenant", "enable", "acme"))[0][2] == "enabled"

    mine = ("--tenant", "acme")
    made, *_ = rows(await run("agent", "create", "bob", "--name", "Bob", "--capacity", "3", *mine))
    assert made == ["bob", "Bob", "enabled", "away", "no", "0/3"]
    assert rows(await run("agent", "disable", "bob", *mine))[0][2] == "disabled"
    again = await run("agent", "disable", "bob", *mine)
    assert (again.returncode, again.stderr) == (1, "deskwire: it is disabled already\n")
    assert rows(await run("agent", "enable", "bob", *mine))[0][2] == "enabled"
    (shown,) = json.loads((await run("agent", "list", "--json", *mine)).stdout)
    assert (shown["agent_id"], shown["capacity"], shown["disabled"]) == ("bob", 3, False)


async def test_keys(run: Run, chat: str, home: Home) -> None:
    made = await run("key", "create", "--system", "crm:x", "--tenant", "acme", "--name", "CRM")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    (listed,) = json.loads((await run("key", "list", "--json", "--tenant", "acme")).stdout)
    assert listed["key_id"] in made.stderr
    assert secret.rpartition("_")[2] not in json.dumps(listed) + made.stderr

    channel = make_channel(chat)
    stub = integration_key_service_pb2_grpc.IntegrationKeyServiceStub(channel)
    request = keys_pb.ExchangeIntegrationKeyRequest(secret=secret)
    token = (await stub.ExchangeIntegrationKey(request)).token
    await channel.close()
    assert TokenVerifier(KeySet.load(home.keys_file)).verify(token).tenant == "acme"

    (row,) = rows(await run("key", "revoke", listed["key_id"], "--tenant", "acme"))
    assert row[:4] == [listed["key_id"], "crm:x", "CRM", "revoked"]
    missing = await run("key", "revoke", listed["key_id"])  # of the tenant demo
    assert missing.returncode == 1
    assert missing.stderr == f"deskwire: no integration key {listed['key_id']}\n"


async def test_without_a_suite_it_is_one_line(run: Run, home: Home) -> None:
    done = await run("tenant", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"deskwire: no suite runs in {home.root}: start one with `deskwire up`\n"
    )


@pytest.mark.parametrize(
    "arguments", ["tenant", "tenant create", "agent create bob --capacity 0", "key create"]
)
def test_wrong_usage(arguments: str) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


async def test_a_token_for_an_operator_of_the_suite(run: Run, home: Home) -> None:
    verifier = TokenVerifier(KeySet.load(home.keys_file))
    done = await run("token", "--role", "operator", "--tenant", "*", "--subject", "root")
    principal = verifier.verify(done.stdout.strip())
    assert (principal.role, principal.tenant) == (Role.OPERATOR, "*")
