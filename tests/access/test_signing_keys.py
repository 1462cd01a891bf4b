"""`deskwire key add` and its kin: who may sign tokens, and that running services keep to it."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import grpc
import jwt
import pytest

from deskwire.chat.v1 import (
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2
from deskwire_cli.machine.home import Home
from deskwire_cli.main import main
from deskwire_common.auth import ANY_TENANT, KeySet, Role, TokenSigner
from deskwire_common.errors import from_rpc_error
from deskwire_common.rpc import make_channel
from support import eventually
from support.command import Command
from support.suite import Desk, desk
from support.wire import reason, wire

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.prepare()
    return found


@pytest.fixture
def run(home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("key", "list")`: the whole command, in this process, as Python takes 2 s to import it."""
    monkeypatch.setenv("DESKWIRE_HOME", str(home.root))

    def ran(*arguments: str) -> CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.argv", ["deskwire", *arguments])
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
            raise SystemExit
        code = int(ended.value.code or 0)
        return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return ran


@pytest.fixture
def command(home: Home) -> Command:
    """The same as a process of its own."""
    return Command(home.root, 0)


@pytest.fixture
def website(run: Run, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """A website's private JWK, and the public one as the command printed it."""
    made = run("key", "new", str(tmp_path / "website.jwk"), "--kid", "web")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "website.jwk").stat().st_mode & 0o077 == 0
    assert "d" not in json.loads(made.stdout)
    return json.loads((tmp_path / "website.jwk").read_text()), made.stdout


def signed(jwk: dict[str, Any], role: Role, tenant: str, lifetime: float = 60) -> str:
    """A token as a backend makes it, whatever it may."""
    now = int(time.time())
    claims = {
        "iss": "deskwire",
        "aud": "deskwire",
        "sub": "me",
        "tid": tenant,
        "role": role.value,
        "iat": now,
        "exp": now + lifetime,
    }
    if role is Role.INTEGRATION:
        claims["sys"] = "crm:main"
    key: Any = jwt.algorithms.OKPAlgorithm.from_jwk(json.dumps(jwk))
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": jwk["kid"]})


def listed(run: Run) -> dict[str, dict[str, Any]]:
    done = run("key", "list", "--signing", "--json")
    assert done.returncode == 0, done.stderr
    return {each["kid"]: each for each in json.loads(done.stdout)}


def failed(done: CompletedProcess[str]) -> str:
    """The one line that a person gets."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_website_is_given_visitors_of_a_tenant(
    run: Run, home: Home, website: tuple[dict[str, Any], str]
) -> None:
    done = run("key", "add", website[1], "--tenant", "demo", "--max-lifetime", "1h")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:4] == ["web", "visitor", "demo", "1h"]
    assert home.keys_file.stat().st_mode & 0o077 == 0
    keys = KeySet.load(home.keys_file)
    assert keys.signing_key().kid != "web"
    assert "d" not in keys.entries[1]
    assert listed(run)["web"] == {
        "kid": "web",
        "roles": ["visitor"],
        "tenants": ["demo"],
        "max_lifetime": 3600,
        "private": False,
    }
    assert "key web already" in failed(run("key", "add", website[1], "--tenant", "a"))
    twin = run("key", "add", website[1], "--tenant", "a", "--kid", "other")
    assert "this is key web" in failed(twin)


def test_limits_are_changed_one_by_one(
    run: Run, home: Home, website: tuple[dict[str, Any], str]
) -> None:
    suite = KeySet.load(home.keys_file).signing_key().kid
    assert run("key", "add", website[1], "--tenants", "a,b", "--role", "agent").returncode == 0
    done = run("key", "change", "web", "--roles", "visitor,bot", "--role", "operator")
    assert done.returncode == 0, done.stderr
    assert (listed(run)["web"]["roles"], listed(run)["web"]["tenants"]) == (
        ["bot", "operator", "visitor"],
        ["a", "b"],
    )
    table = run("key", "list", "--signing").stdout.splitlines()
    assert table[1].split() == [suite, ",".join(sorted(Role)), "*", "30d", "yes"]
    done = run("key", "change", "web", "--tenant", "*")
    assert "runs the whole suite" in done.stderr
    assert "no key nobody" in failed(run("key", "change", "nobody", "--tenant", "a"))
    assert "from 1 to 2592000" in failed(run("key", "change", "web", "--max-lifetime", "31d"))

    assert "only key that the services can sign with" in failed(run("key", "remove", suite))
    fresh = run("key", "rotate").stdout.strip()
    assert KeySet.load(home.keys_file).signing_key().kid == fresh
    assert set(listed(run)) == {fresh, suite, "web"}
    assert run("key", "remove", suite).returncode == 0
    assert run("key", "remove", "web").returncode == 0
    assert set(listed(run)) == {fresh}
    assert "no key web" in failed(run("key", "remove", "web"))


def test_keys_as_others_bring_them(run: Run, tmp_path: Path, website: Any) -> None:
    pem, private = tmp_path / "a.pem", tmp_path / "private.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", pem], check=True)
    assert run("key", "add", str(pem), "--tenant", "a", "--kid", "pem").returncode == 0
    # A whole JWK: only its public part is taken.
    assert run("key", "add", str(tmp_path / "website.jwk"), "--tenant", "a").returncode == 0
    assert {kid for kid, each in listed(run).items() if not each["private"]} == {"pem", "web"}

    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", tmp_path / "rsa", "-pubout", "-out", rsa],
        check=True,
        capture_output=True,
    )
    wrong = {
        str(private): "private key, which stays with its owner",
        str(rsa): "only Ed25519 keys",
        str(tmp_path / "nothing"): "can't read the key",
        "{": "neither a JWK (JSON) nor PEM",
        '{"kty": "OKP"}': "only Ed25519 keys",
        '{"kty": "OKP", "crv": "Ed25519", "x": "!"}': "key ",
        '{"keys": []}': "a JWK set of 0 keys",
    }
    for source, told in wrong.items():
        assert told in failed(run("key", "add", source, "--tenant", "a", "--kid", "wrong"))
    unencodable = r'{"kty": "OKP", "crv": "Ed25519", "x": "\ud800"}'
    assert "key " in failed(run("key", "add", unencodable, "--tenant", "a"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "{}"),
        ("add", "{}", "--tenant", "a", "--role", "root"),
        ("add", "{}", "--tenant", "a", "--max-lifetime", "soon"),
        ("change", "web"),
    ],
)
def test_wrong_usage_of_signing_keys(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("key", *arguments).returncode == 2


def test_a_keys_file_of_services_elsewhere(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.json"
    first = run("key", "rotate", "--keys-file", str(file)).stdout.strip()
    assert file.stat().st_mode & 0o077 == 0
    second = run("key", "rotate", "--keys-file", str(file)).stdout.strip()
    assert [key.kid for key in KeySet.load(file).verifying_keys] == [second, first]
    missing = run("key", "list", "--signing", "--keys-file", str(tmp_path / "none.json"))
    assert "can't read the keys file" in failed(missing)


def test_a_link_to_the_keys_file_is_followed(run: Run, tmp_path: Path, home: Home) -> None:
    file, link = home.root / "shared.json", tmp_path / "link.json"
    first = run("key", "rotate", "--keys-file", str(file)).stdout.strip()
    link.symlink_to(file)
    second = run("key", "rotate", "--keys-file", str(link)).stdout.strip()
    assert link.is_symlink()
    assert [key.kid for key in KeySet.load(file).verifying_keys] == [second, first]


def test_what_only_verifies_is_not_made_to_sign(run: Run, home: Home) -> None:
    (entry,) = KeySet.generate().entries
    del entry["d"]
    KeySet({"keys": [entry]}).save(home.root / "keys.json")
    assert "has no private key" in failed(run("key", "rotate"))
    assert KeySet.load(home.root / "keys.json").entries == [entry]


async def welcomed(d: Desk, token: str) -> str:
    """Nothing when a WebSocket is welcomed, else the reason."""
    async with wire(d) as w:
        await w.say(hello=frame_pb2.Hello(token=token))
        answer = await w.hear_one_of("welcome", "error")
        return "" if isinstance(answer, frame_pb2.Welcome) else reason(answer.reason)


async def answered(d: Desk, token: str) -> str:
    """Nothing when chat lists conversations, or tenants for all of them, else the reason."""
    async with make_channel(f"127.0.0.1:{d.chat.port}", token=lambda: token) as channel:
        try:
            if jwt.decode(token, options={"verify_signature": False})["tid"] == ANY_TENANT:
                tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
                await tenants.ListTenants(tenant_service_pb2.ListTenantsRequest())
            else:
                stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
                request = conversation_service_pb2.ListConversationsRequest()
                await stub.ListConversations(request)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason_name
    return ""


async def test_services_take_from_a_key_what_it_was_given(
    command: Command, home: Home, website: tuple[dict[str, Any], str], kafka: str, valkey: str
) -> None:
    web, public = website
    done = command("key", "add", public, "--tenant", "a", "--max-lifetime", "1h")
    assert done.returncode == 0, done.stderr
    signer = TokenSigner(KeySet.load(home.keys_file))
    url = home.database_url("chat")
    async with desk(url, kafka, valkey, home.keys_file, signer) as d:
        for role, tenant in itertools.product(Role, ("a", "b", ANY_TENANT)):
            text = signed(web, role, tenant)
            good = role is Role.VISITOR and tenant == "a"
            assert await answered(d, text) == ("" if good else "TOKEN_INVALID")
            assert await welcomed(d, text) == ("" if good else "TOKEN_INVALID")
        for lifetime in (3601, 10**9, 10**18, 10**900, math.inf, math.nan):
            text = signed(web, Role.VISITOR, "a", lifetime)
            assert await answered(d, text) == "TOKEN_INVALID"
            assert await welcomed(d, text) == "TOKEN_INVALID"
        suite = signer.mint(tenant=ANY_TENANT, role=Role.OPERATOR, subject="root")
        assert await answered(d, suite) == ""

        # The services follow: what the key may no longer sign ends, and what it now may is taken.
        before, after = signed(web, Role.VISITOR, "a"), signed(web, Role.AGENT, "b")
        assert await answered(d, before) == ""
        done = await asyncio.to_thread(
            command, "key", "change", "web", "--role", "agent", "--tenant", "b"
        )
        assert done.returncode == 0, done.stderr

        async def followed() -> bool:
            told = [await answered(d, text) for text in (before, after)]
            told += [await welcomed(d, text) for text in (before, after)]
            return told == ["TOKEN_INVALID", "", "TOKEN_INVALID", ""]

        await eventually(followed)
