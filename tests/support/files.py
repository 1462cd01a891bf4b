"""Uploads to and downloads from a desk, over HTTP as any client does them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from deskwire.chat.v1 import attachment_service_pb2 as pb
from deskwire.chat.v1 import attachment_service_pb2_grpc, conversation_pb2
from deskwire_common.auth import Role
from support.suite import Desk, new_id

PICTURE = bytes(range(256)) * 4_000  # a megabyte, in several chunks


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes
    headers: Mapping[str, str]


async def http(
    method: str, url: str, data: Any = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Make one request, with exactly these headers."""
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        aiohttp.ClientSession(timeout=timeout, skip_auto_headers=["Content-Type"]) as session,
        session.request(
            method, aiohttp.client.URL(url, encoded=True), data=data, headers=headers
        ) as response,
    ):
        return Answer(response.status, await response.read(), dict(response.headers))


async def signed(url: pb.SignedUrl, data: bytes | None = None) -> Answer:
    """Make the request that a SignedUrl describes."""
    headers = {header.name: header.value for header in url.headers}
    return await http(url.method, url.url, data, headers)


class Files:
    """One user's attachments."""

    def __init__(self, d: Desk, role: Role, subject: str, **more: Any) -> None:
        self._stub = attachment_service_pb2_grpc.AttachmentServiceStub(
            d.channel(role, subject, **more)
        )

    async def create(
        self, conversation: str, data: bytes = PICTURE, **more: Any
    ) -> pb.CreateAttachmentResponse:
        request = {
            "request_id": new_id(),
            "conversation_id": conversation,
            "file_name": "cat.png",
            "content_type": "image/png",
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            **more,
        }
        return await self._stub.CreateAttachment(pb.CreateAttachmentRequest(**request))

    async def complete(self, attachment_id: str, request_id: str = "") -> Any:
        response = await self._stub.CompleteAttachment(
            pb.CompleteAttachmentRequest(
                request_id=request_id or new_id(), attachment_id=attachment_id
            )
        )
        return response.attachment

    async def get(self, attachment_id: str) -> pb.GetAttachmentResponse:
        return await self._stub.GetAttachment(pb.GetAttachmentRequest(attachment_id=attachment_id))

    async def ready(
        self, conversation: str, data: bytes = PICTURE, **more: Any
    ) -> conversation_pb2.AttachmentReference:
        """Upload a file; return the reference for a message that carries it."""
        made = await self.create(conversation, data, **more)
        assert (await signed(made.upload, data)).status == 200
        return reference(await self.complete(made.attachment.attachment_id))


def reference(item: Any) -> conversation_pb2.AttachmentReference:
    """Return the reference for a message that carries an attachment."""
    return conversation_pb2.AttachmentReference(
        attachment_id=item.attachment_id,
        file_name=item.file_name,
        content_type=item.content_type,
        size_bytes=item.size_bytes,
    )
