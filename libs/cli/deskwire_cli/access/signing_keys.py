"""`deskwire key add`, `change`, `remove`, `rotate` and `new`: the keys file, and what each key of it may sign."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from deskwire_cli.machine.home import Home, os_error, write_atomically
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.tables import print_table
from deskwire_common.auth import (
    ALGORITHM,
    ANY_TENANT,
    LIFETIME_MEMBER,
    ROLES_MEMBER,
    TENANTS_MEMBER,
    KeysError,
    KeySet,
    Role,
    VerifyingKey,
)
from deskwire_common.auth.foreign import PUBLIC_MEMBERS, public_jwk

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

KeysFileOption = Annotated[
    Path | None,
    typer.Option(
        "--keys-file",
        envvar="DESKWIRE_KEYS_FILE",
        help="The keys file of the services; the home's when not given.",
    ),
]
RolesOption = Annotated[
    list[str] | None,
    typer.Option("--role", "--roles", help="What it may sign: visitor, agent, … Repeat, or a,b."),
]
TenantsOption = Annotated[
    list[str] | None,
    typer.Option("--tenant", "--tenants", help="Whose. Repeat, or a,b; * is all of them."),
]
LifetimeOption = Annotated[
    str, typer.Option("--max-lifetime", help="How long its tokens may live: 90s, 15m, 1h, 30d.")
]
KidArgument = Annotated[str, typer.Argument(help="The key's id, as `list --signing` shows it.")]
NewKid = Annotated[str, typer.Option("--kid", help="An id for it, which its tokens carry.")]


def add_key(
    source: Annotated[
        str,
        typer.Argument(
            help="Its public key: a file with a JWK or PEM, the JWK itself, - is stdin."
        ),
    ],
    tenant: TenantsOption = None,
    role: RolesOption = None,
    max_lifetime: LifetimeOption = "",
    kid: NewKid = "",
    keys_file: KeysFileOption = None,
) -> None:
    """Let somebody outside sign tokens; without --role visitors, without --max-lifetime for a day at most."""
    if not tenant:
        raise typer.BadParameter("say whose tokens it signs: --tenant demo")
    limits = _limits(role, tenant, max_lifetime)
    try:
        entry = public_jwk(_text_of(source), kid)
    except KeysError as error:
        raise Problem(str(error)) from None

    def added(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for other in entries:
            if other["kid"] == entry["kid"]:
                raise Problem(
                    f"there is a key {other['kid']} already: `deskwire key change` changes what it may sign, "
                    "--kid gives this one another id"
                )
            if other.get("x") == entry["x"]:
                raise Problem(f"this is key {other['kid']}, which is there already")
        return [*entries, {**entry, "alg": ALGORITHM, "use": "sig", **limits}]

    _show_one(_rewrite(keys_file, added), entry["kid"])


def change_key(
    kid: KidArgument,
    tenant: TenantsOption = None,
    role: RolesOption = None,
    max_lifetime: LifetimeOption = "",
    keys_file: KeysFileOption = None,
) -> None:
    """Change what a key may sign; what isn't named stays. Tokens that it may no longer sign end."""
    limits = _limits(role, tenant, max_lifetime)
    if not limits:
        raise typer.BadParameter("nothing to change: name --tenant, --role or --max-lifetime")

    def changed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        _require(entries, kid)
        return [{**each, **limits} if each["kid"] == kid else each for each in entries]

    _show_one(_rewrite(keys_file, changed), kid)


def remove_key(kid: KidArgument, keys_file: KeysFileOption = None) -> None:
    """Take a key out of the keys file: within a second no token that it signed is taken any more."""

    def removed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        _require(entries, kid)
        left = [each for each in entries if each["kid"] != kid]
        if not any(each.get("d") for each in left):
            raise Problem(
                f"{kid} is the only key that the services can sign with: `deskwire key rotate` first"
            )
        return left

    _rewrite(keys_file, removed)
    print(f"key {kid} is out", file=sys.stderr)


def rotate_key(keys_file: KeysFileOption = None) -> None:
    """Let the services sign with a new key, and print its id; makes the keys file if there is none."""
    file = _file(keys_file)
    if not file.exists():
        with _problems(file):
            KeySet.generate().save(file)
        print(KeySet.load(file).signing_key().kid)
        return
    with _problems(file), _locked(file):
        before = KeySet.load(file)
        old = before.signing_key()
        after = before.rotated()
        after.save(file)
    print(after.signing_key().kid)
    print(
        f"key {old.kid} still verifies: `deskwire key remove {old.kid}` when its tokens have ended, "
        f"in {_duration(old.grant.max_lifetime)} at the latest",
        file=sys.stderr,
    )


def new_key(
    file: Annotated[Path, typer.Argument(help="Where its private JWK goes; must not exist.")],
    kid: NewKid = "",
) -> None:
    """Make a key for somebody outside: the private JWK goes to FILE, the public one to stdout, for `key add`."""
    if file.exists():
        raise Problem(f"{file} exists: a key is never overwritten")
    (entry,) = KeySet.generate().entries
    entry["kid"] = kid or entry["kid"]
    with _problems(file):
        write_atomically(file, json.dumps(entry, indent=2) + "\n")
    print(json.dumps({name: entry[name] for name in PUBLIC_MEMBERS}))


def show_signing_keys(keys_file: Path | None, *, as_json: bool) -> None:
    """Print the keys of the keys file and what each may sign, never a private part."""
    file = _file(keys_file)
    with _problems(file):
        _show(KeySet.load(file).verifying_keys, as_json=as_json)


# ---------------------------------------------------------------------------------------- the file


def _file(given: Path | None) -> Path:
    return given if given is not None else Home.find().keys_file


def _rewrite(
    given: Path | None, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> KeySet:
    file = _file(given)
    with _problems(file), _locked(file):
        before = KeySet.load(file)
        after = before.with_entries(change(before.entries))
        after.save(file)
    return after


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock the file while it is changed: it is replaced whole, so a second writer would undo the first one's change."""
    folder = os.open(Path(os.path.realpath(file)).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def _problems(file: Path) -> Iterator[None]:
    try:
        yield
    except KeysError as error:
        raise Problem(str(error)) from None
    except OSError as error:
        raise Problem(f"can't use {file}: {os_error(error)}") from None


def _require(entries: list[dict[str, Any]], kid: str) -> None:
    if all(each["kid"] != kid for each in entries):
        raise Problem(f"no key {kid} in the keys file: `deskwire key list --signing` shows them")


# --------------------------------------------------------------------------------------- options


def _text_of(source: str) -> str:
    if source.lstrip().startswith("{"):
        return source
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text()
    except OSError as error:
        raise Problem(f"can't read the key {source}: {os_error(error)}") from None
    except UnicodeDecodeError:
        raise Problem(f"the key {source} is neither a JWK (JSON) nor PEM") from None


def _limits(
    roles: list[str] | None, tenants: list[str] | None, max_lifetime: str
) -> dict[str, Any]:
    """Return the members of the JWK that the options give."""
    limits: dict[str, Any] = {}
    if roles:
        limits[ROLES_MEMBER] = _split(roles)
        if unknown := set(limits[ROLES_MEMBER]) - {role.value for role in Role}:
            raise typer.BadParameter(f"--role {min(unknown)}: one of {', '.join(Role)}")
    if tenants:
        limits[TENANTS_MEMBER] = _split(tenants)
    if max_lifetime:
        found = re.fullmatch(r"(\d{1,9})([smhd]?)", max_lifetime)
        if found is None:
            raise typer.BadParameter(f"--max-lifetime {max_lifetime}: such as 90s, 15m, 1h or 30d")
        limits[LIFETIME_MEMBER] = int(found[1]) * _SECONDS[found[2]]
    return limits


def _split(values: Iterable[str]) -> list[str]:
    names = [name.strip() for value in values for name in value.split(",")]
    return list(dict.fromkeys(name for name in names if name))


# ------------------------------------------------------------------------------------------ showing


def _show_one(keys: KeySet, kid: str) -> None:
    key = keys.verifying(kid)
    assert key is not None  # noqa: S101 - it was just written
    _show([key], as_json=False)
    if ANY_TENANT in key.grant.tenants and key.grant.roles & {Role.OPERATOR, Role.SERVICE}:
        print(f"whoever has the private part of {kid} runs the whole suite", file=sys.stderr)


def _show(keys: Sequence[VerifyingKey], *, as_json: bool) -> None:
    if as_json:
        form = [
            {
                "kid": key.kid,
                "roles": sorted(key.grant.roles),
                "tenants": sorted(key.grant.tenants),
                "max_lifetime": key.grant.max_lifetime,
                "private": key.private is not None,
            }
            for key in keys
        ]
        print(json.dumps(form, indent=2))
        return
    print_table(("key", "roles", "tenants", "lifetime", "private", ""), [_row(key) for key in keys])


def _row(key: VerifyingKey) -> tuple[str, ...]:
    why = key.grant.signs_nothing()
    return (
        key.kid,
        ",".join(sorted(key.grant.roles)),
        ",".join(sorted(key.grant.tenants)),
        _duration(key.grant.max_lifetime),
        "yes" if key.private is not None else "no",
        f"signs nothing: {why}" if why else "",
    )


def _duration(seconds: int) -> str:
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _SECONDS[unit] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"
