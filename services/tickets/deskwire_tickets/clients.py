"""Outgoing calls: conversations are read from chat."""

from __future__ import annotations

import grpc

from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire.common.v1 import error_reason_pb2
from deskwire_common.auth import TokenSigner
from deskwire_common.errors import NotFound, Unavailable, from_rpc_error

_NOT_THERE = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT})


class ChatClient:
    """Reads conversations for this service. `channel` comes from `rpc.make_channel`."""

    def __init__(
        self, channel: grpc.aio.Channel, signer: TokenSigner, *, deadline: float = 5.0
    ) -> None:
        self._stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        self._signer = signer
        self._deadline = deadline

    async def customer_of(self, tenant: str, conversation_id: str) -> str:
        """Return the customer_id of a conversation of `tenant`.

        Raises NotFound with CONVERSATION_NOT_FOUND, PermissionDenied with TENANT_DISABLED, and Unavailable with
        DEPENDENCY_UNAVAILABLE when chat doesn't answer within the deadline (5 s) or answers anything else.
        """
        request = conversation_service_pb2.GetConversationRequest(conversation_id=conversation_id)
        token = self._signer.service_token(tenant)
        try:
            response = await self._stub.GetConversation(
                request, timeout=self._deadline, metadata=(("authorization", f"Bearer {token}"),)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _NOT_THERE:
                raise NotFound(
                    f"no conversation {conversation_id}",
                    reason=error_reason_pb2.ERROR_REASON_CONVERSATION_NOT_FOUND,
                ) from error
            cause = from_rpc_error(error)
            if cause.reason == error_reason_pb2.ERROR_REASON_TENANT_DISABLED:
                # Chat knew it first. It isn't cured by asking again.
                raise cause from error
            raise Unavailable(
                f"chat doesn't answer: {error.details()}", retry_after=cause.retry_after or 1.0
            ) from error
        return response.conversation.customer_id
