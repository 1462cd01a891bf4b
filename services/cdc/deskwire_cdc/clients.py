"""Outgoing calls: what a customer row says goes to chat, signed as the source's own system."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from deskwire.chat.v1 import customer_pb2, customer_service_pb2, customer_service_pb2_grpc
from deskwire_cdc.domain.customers import CUSTOMER_FIELDS, CustomerCall
from deskwire_cdc.domain.sources import SUBJECT, Source
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import (
    AlreadyExists,
    DeskwireError,
    FailedPrecondition,
    InvalidArgument,
    RequestIdReused,
    Unavailable,
    from_rpc_error,
)


class CustomerRefused(Exception):
    """Chat will never take what the row says; the message says why, `fields` of the customer what.

    No `fields`: it is the whole row.
    """

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class CustomerClient:
    """Writes customers for sources. `channel` comes from the runtime."""

    def __init__(
        self, channel: grpc.aio.Channel, signer: TokenSigner, *, deadline: float = 5.0
    ) -> None:
        self._stub = customer_service_pb2_grpc.CustomerServiceStub(channel)
        self._signer = signer
        self._deadline = deadline

    async def upsert(self, source: Source, call: CustomerCall) -> Mapping[str, str]:
        """Write what the row says; return the customer's fields afterwards.

        The same request_id twice has the effect of one. Raises Unavailable when it is worth another try,
        CustomerRefused when it isn't.
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
            source_writer=source.incarnation,
        )
        for name in call.mask:
            setattr(request.customer, name, call.values[name])
        token = self._signer.reused_token(
            tenant=source.tenant_id,
            role=Role.INTEGRATION,
            subject=SUBJECT,
            system=source.system_id,
        )
        metadata = (("authorization", f"Bearer {token}"),)
        try:
            response = await self._stub.UpsertCustomer(
                request, timeout=self._deadline, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _outcome(from_rpc_error(error)) from error
        return {name: getattr(response.customer, name) for name in CUSTOMER_FIELDS}


def _outcome(error: DeskwireError) -> Exception:
    if isinstance(error, AlreadyExists) and error.reason == RequestIdReused.default_reason:
        # The same call was made before, when the customer looked otherwise: a second call fills other gaps.
        return CustomerRefused("")
    if isinstance(error, InvalidArgument | FailedPrecondition | AlreadyExists):
        broken = [field.removeprefix("customer.") for field, _ in error.violations]
        fields = tuple(name for name in CUSTOMER_FIELDS if name in broken)
        whole = not fields or len(fields) < len(broken)
        return CustomerRefused(f"{error.reason_name}: {error.message}", () if whole else fields)
    return Unavailable(
        f"chat doesn't take customers: {error.reason_name}: {error.message}",
        retry_after=error.retry_after,
    )
