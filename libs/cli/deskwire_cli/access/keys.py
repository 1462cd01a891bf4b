"""`deskwire key`: integration keys of a tenant, as the running suite has them, and signing keys of the keys file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deskwire.chat.v1 import integration_key_service_pb2, integration_key_service_pb2_grpc
from deskwire_cli.access import signing_keys
from deskwire_cli.machine.problem import Problem
from deskwire_cli.operator import (
    JsonOption,
    NameOption,
    Operator,
    TenantOption,
    format_time,
    new_request_id,
    show,
)
from deskwire_cli.suite import TENANT

key_app = typer.Typer(
    name="key",
    help="Integration keys (create, list, revoke) and signing keys (add, change, remove, rotate, new).",
    no_args_is_help=True,
)
key_app.command("add")(signing_keys.add_key)
key_app.command("change")(signing_keys.change_key)
key_app.command("remove")(signing_keys.remove_key)
key_app.command("rotate")(signing_keys.rotate_key)
key_app.command("new")(signing_keys.new_key)


def keys(tenant: str) -> Operator:
    """Return an operator of the tenant for calls about its keys."""
    return Operator(integration_key_service_pb2_grpc.IntegrationKeyServiceStub, tenant)


def show_keys(found: Sequence[Any], *, as_json: bool = False) -> None:
    show(
        found,
        ("key", "system", "name", "state", "created"),
        lambda each: (
            each.key_id,
            each.system_id,
            each.display_name,
            "revoked" if each.revoked else "valid",
            format_time(each.create_time),
        ),
        as_json=as_json,
    )


@key_app.command("create")
def create_key(
    system: Annotated[str, typer.Option(help="The system's id, such as crm:main.")],
    tenant: TenantOption = TENANT,
    name: NameOption = "",
) -> None:
    """Print the secret of a new integration key: this once, it can't be read again."""
    request = integration_key_service_pb2.CreateIntegrationKeyRequest(
        request_id=new_request_id(), system_id=system, display_name=name
    )
    response = keys(tenant).call("CreateIntegrationKey", request)
    if not response.secret:
        # The call was repeated because its answer was lost, and with it the secret.
        raise Problem(f"the secret of key {response.key.key_id} was lost: revoke it, try again")
    print(
        f"key {response.key.key_id} of {system} in tenant {tenant}; its secret is shown this once:",
        file=sys.stderr,
    )
    print(response.secret)


@key_app.command("list")
def list_keys(
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
    signing: Annotated[
        bool, typer.Option("--signing", help="Those of the keys file, and what each may sign.")
    ] = False,
    keys_file: signing_keys.KeysFileOption = None,
) -> None:
    """Show the integration keys of a tenant, never their secrets."""
    if signing:
        signing_keys.show_signing_keys(keys_file, as_json=as_json)
        return
    request = integration_key_service_pb2.ListIntegrationKeysRequest()
    pages = keys(tenant).pages("ListIntegrationKeys", request)
    show_keys([each for page in pages for each in page.keys], as_json=as_json)


@key_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, as `list` shows it.")],
    tenant: TenantOption = TENANT,
) -> None:
    """End an integration key for ever; its last token lapses within ten minutes."""
    request = integration_key_service_pb2.RevokeIntegrationKeyRequest(
        request_id=new_request_id(), key_id=key
    )
    show_keys([keys(tenant).call("RevokeIntegrationKey", request).key])
