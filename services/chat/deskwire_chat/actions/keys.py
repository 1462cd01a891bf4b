"""The use cases of integration keys, and the exchange of their secrets for tokens."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from deskwire.chat.v1 import integration_key_service_pb2 as keys_pb
from deskwire_chat import domain, events, views
from deskwire_chat.actions.tools import Tools
from deskwire_chat.domain.access import IntegrationKey
from deskwire_chat.domain.actors import Actor
from deskwire_chat.store import keys, tenants
from deskwire_common import texts
from deskwire_common.auth import (
    Guesses,
    Role,
    TokenSigner,
    current_peer,
    current_principal,
    tenant_disabled,
)
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Unauthenticated
from deskwire_common.logging import get_logger
from deskwire_common.pagination import page

KEYS: Final = "deskwire.chat.v1.IntegrationKeyService"

TOKEN_SECONDS: Final = 590.0
"""How long the token for a secret is valid: less than ten minutes, even with the leeway for clocks."""


@dataclass(frozen=True, slots=True)
class IntegrationKeyActions:
    """The use cases of integration keys, for the current principal and in its tenant; `exchange` is for anyone."""

    tools: Tools
    signer: TokenSigner
    guesses: Guesses

    async def create(
        self, request: keys_pb.CreateIntegrationKeyRequest
    ) -> keys_pb.CreateIntegrationKeyResponse:
        """Create a key and return its secret, only this once. Raises InvalidArgument, RequestIdReused."""
        who = Actor.of(current_principal())
        display_name = texts.line(request.display_name, "display_name")
        secret = secrets.token_bytes(domain.access.SECRET_BYTES)
        on = self.tools.occasion(who)
        key = IntegrationKey(
            key_id=self.tools.ids.uuid7(),
            tenant=who.tenant,
            system_id=request.system_id,
            display_name=display_name,
            secret_hash=domain.access.secret_hash(secret),
            revoked=False,
            version=1,
            created_at=on.now,
            updated_at=on.now,
        )

        async def work(uow: UnitOfWork) -> keys_pb.CreateIntegrationKeyResponse:
            await keys.add(uow.connection, key)
            await self.tools.outbox.add(uow, [events.integration_key_created(on, key)])
            # This answer is stored for duplicates of the request: the secret isn't in it.
            return keys_pb.CreateIntegrationKeyResponse(key=views.messages.integration_key(key))

        response = await self.tools.once(f"{KEYS}/CreateIntegrationKey", request, work)
        if response.key.key_id == key.key_id:
            response.secret = domain.access.secret_text(key.key_id, secret)
        return response

    async def list(
        self, request: keys_pb.ListIntegrationKeysRequest
    ) -> keys_pb.ListIntegrationKeysResponse:
        """Return a page of the tenant's keys, oldest first. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        tenant = current_principal().tenant
        async with self.tools.db.read() as c:
            found, token = await page(
                request,
                "ListIntegrationKeys",
                {"tenant": tenant},
                shape=(str,),
                read=lambda key, limit: keys.page(
                    c, tenant, after=str(key[0]) if key else None, limit=limit
                ),
                key=lambda item: (item.key_id,),
                view=views.messages.integration_key,
            )
        return keys_pb.ListIntegrationKeysResponse(keys=found, next_page_token=token)

    async def revoke(
        self, request: keys_pb.RevokeIntegrationKeyRequest
    ) -> keys_pb.RevokeIntegrationKeyResponse:
        """End a key for ever. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        who = Actor.of(current_principal())

        async def work(uow: UnitOfWork) -> keys_pb.RevokeIntegrationKeyResponse:
            before = await keys.lock(uow.connection, who.tenant, request.key_id)
            if before is None:
                raise domain.access.key_not_found(request.key_id)
            on = self.tools.occasion(who)
            after, changes = domain.access.revoked(
                before, expected_version=request.expected_version, now=on.now
            )
            await keys.save(uow.connection, after)
            await self.tools.outbox.add(uow, [events.integration_key_revoked(on, after, changes)])
            return keys_pb.RevokeIntegrationKeyResponse(key=views.messages.integration_key(after))

        return await self.tools.once(f"{KEYS}/RevokeIntegrationKey", request, work)

    async def exchange(
        self, request: keys_pb.ExchangeIntegrationKeyRequest
    ) -> keys_pb.ExchangeIntegrationKeyResponse:
        """Return a token for a secret.

        Raises Unauthenticated (INTEGRATION_KEY_INVALID), PermissionDenied (TENANT_DISABLED), ResourceExhausted
        (RATE_LIMITED).
        """
        # A text of another form is refused like a wrong secret, after the same work.
        key_id, secret = domain.access.read_secret(request.secret) or ("", b"")
        with self.guesses.one(key_id, current_peer(), secret):
            key = await self._opened(key_id, secret)
        response = keys_pb.ExchangeIntegrationKeyResponse(
            tenant_id=key.tenant, system_id=key.system_id
        )
        response.expire_time.FromSeconds(int(self.tools.now() / 1e6 + TOKEN_SECONDS))
        # The system is the subject: a request that it repeats with another key is still its own.
        response.token = self.signer.mint(
            tenant=key.tenant,
            role=Role.INTEGRATION,
            subject=key.system_id,
            system=key.system_id,
            name=key.display_name,
            ttl=TOKEN_SECONDS,
        )
        get_logger().info("integration_key_exchanged", key_id=key_id)
        return response

    async def _opened(self, key_id: str, secret: bytes) -> IntegrationKey:
        async with self.tools.db.read() as c:
            found = await keys.get(c, key_id)
            tenant = await tenants.get(c, found.tenant if found else "")
        try:
            key = domain.access.opened(found, secret)
        except Unauthenticated:
            get_logger().warning("integration_key_refused", key_id=key_id)
            raise
        if tenant is not None and tenant.disabled:
            raise tenant_disabled(key.tenant)
        return key
