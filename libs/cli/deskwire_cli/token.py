"""`deskwire token`: one token for any client, signed with the key of $DESKWIRE_HOME."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from deskwire_cli.machine.home import Home
from deskwire_cli.machine.problem import Problem
from deskwire_cli.suite import TENANT
from deskwire_common.auth import MAX_LIFETIME, KeysError, KeySet, Profile, Role, TokenSigner


class TokenRole(StrEnum):
    """The roles that can get a token here; services make their own."""

    VISITOR = "visitor"
    AGENT = "agent"
    BOT = "bot"
    INTEGRATION = "integration"
    OPERATOR = "operator"


def token(
    role: Annotated[TokenRole, typer.Option(help="What its holder is.")],
    subject: Annotated[str, typer.Option(help="Who: a visitor's, agent's or program's id.")],
    tenant: Annotated[str, typer.Option(help="Whose data.")] = TENANT,
    name: Annotated[str, typer.Option(help="A name that others see.")] = "",
    system: Annotated[
        str, typer.Option(help="The system id of an integration, such as crm:main.")
    ] = "",
    email: Annotated[str, typer.Option(help="A visitor's e-mail address.")] = "",
    phone_number: Annotated[str, typer.Option(help="A visitor's mobile number.")] = "",
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id", metavar="SYSTEM=ID", help="A visitor's id elsewhere, such as crm:main=4711."
        ),
    ] = None,
    ttl: Annotated[
        float, typer.Option(min=1, max=MAX_LIFETIME, help="Seconds that it is good for.")
    ] = 3600.0,
) -> None:
    """Print one token."""
    home = Home.find()
    home.prepare()
    profile = Profile(email, phone_number, tuple(_pair(each) for each in ids or ()))
    try:
        minted = TokenSigner(KeySet.load(home.keys_file)).mint(
            tenant=tenant,
            role=Role(role.value),
            subject=subject,
            system=system,
            name=name,
            profile=profile if profile != Profile() else None,
            ttl=ttl,
        )
    except (ValueError, KeysError) as error:
        raise Problem(str(error)) from None
    print(minted)


def _pair(text: str) -> tuple[str, str]:
    system, equals, value = text.partition("=")
    if not equals:
        raise Problem(f"--id {text} is not SYSTEM=ID, such as crm:main=4711")
    return system, value
