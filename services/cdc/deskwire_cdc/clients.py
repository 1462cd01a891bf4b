"""Outgoing calls: what a customer row says goes to chat, signed as the source's own system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from deskwire.chat.v1 import customer_pb2, customer_service_pb2, customer_service_pb2_grpc
from deskwire_cdc.domain.customers import CUSTOMER_FIELDS, CustomerCall
from deskwire_cdc.domain.sources import SUBJECT, Source
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.clock import Clock
from deskwire_common.errors import (
    AlreadyExists,
    DeskwireError,
    FailedPrecondition,
    InvalidArgument,
    RequestIdReused,
    Unavailable,
    from_rpc_error,
)

# Seconds that a token is good for, and after which a new one is signed.
_TTL: Final = 600.0
_RENEW: Final = 300.0


class CustomerRefused(Exception):
    """Chat will never take what the row says; the message says why."""


class CustomerClient:
    """Writes customers for sources. `channel` comes from the runtime."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        keys: KeySet,
        signer: TokenSigner,
        clock: Clock,
        *,
        deadline: float = 5.0,
    ) -> None:
        self._stub = customer_service_pb2_grpc.CustomerServiceStub(channel)
        self._keys = keys
        self._signer = signer
        self._clock = clock
        self._deadline = deadline
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}

    async def upsert(self, source: Source, call: CustomerCall) -> Mapping[str, str]:
        """Say what the row says; returns the customer's fields afterwards.

        The same request_id twice is as good as once. Raises Unavailable when it is worth another
        try, CustomerRefused when it is not.
        """
        request = customer_service_pb2.UpsertCustomerRequest(
            request_id=call.request_id,
            customer=customer_pb2.Customer(
                identities=[
                    customer_pb2.Identity(namespace=namespace, value=value)
                    for namespace, value in call.identities
                ],
            ),
            update_mask=FieldMask(paths=call.mask),
            source_version=call.source_version,
        )
        for name in call.mask:
            setattr(request.customer, name, call.values[name])
        metadata = (("authorization", f"Bearer {self._token(source)}"),)
        try:
            response = await self._stub.UpsertCustomer(
                request, timeout=self._deadline, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _outcome(from_rpc_error(error)) from error
        return {name: getattr(response.customer, name) for name in CUSTOMER_FIELDS}

    def _token(self, source: Source) -> str:
        key = (source.tenant_id, source.system_id)
        token, until = self._tokens.get(key, ("", 0.0))
        now = self._clock.monotonic()
        if not token or now >= until:
            self._keys.refresh()
            token = self._signer.mint(
                tenant=source.tenant_id,
                role=Role.INTEGRATION,
                subject=SUBJECT,
                system=source.system_id,
                ttl=_TTL,
            )
            self._tokens[key] = (token, now + _RENEW)
        return token


def _outcome(error: DeskwireError) -> Exception:
    if isinstance(error, AlreadyExists) and error.reason == RequestIdReused.default_reason:
        # It was said before, when the customer looked otherwise: a second call fills other gaps.
        return CustomerRefused("")
    if isinstance(error, InvalidArgument | FailedPrecondition | AlreadyExists):
        return CustomerRefused(f"{error.reason_name}: {error.message}")
    return Unavailable(
        f"chat doesn't take customers: {error.reason_name}: {error.message}",
        retry_after=error.retry_after,
    )
