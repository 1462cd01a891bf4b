"""The use cases of attachments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from deskwire.chat.v1 import attachment_service_pb2 as attachments_pb
from deskwire_chat import domain, views
from deskwire_chat.actions.tools import Tools
from deskwire_chat.attachments.base import AttachmentStore
from deskwire_chat.config import Settings
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.attachments import Attachment, AttachmentState
from deskwire_chat.store import attachments, conversations
from deskwire_common.auth import current_principal
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import DeskwireError, FailedPrecondition, NotFound

ATTACHMENTS: Final = "deskwire.chat.v1.AttachmentService"


@dataclass(frozen=True, slots=True)
class Limits:
    """Which files are taken, and how long their URLs are valid."""

    attachments_max_bytes: int
    attachments_types: tuple[str, ...]
    attachments_max_unsent: int
    attachments_upload_seconds: int
    attachments_download_seconds: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Take them from the settings."""
        types = (name.strip() for name in settings.attachments_types.split(","))
        return cls(
            settings.attachments_max_bytes,
            tuple(name for name in types if name),
            settings.attachments_max_unsent,
            settings.attachments_upload_seconds,
            settings.attachments_download_seconds,
        )


@dataclass(frozen=True, slots=True)
class AttachmentActions:
    """The use cases of attachments, for the current principal and in its tenant."""

    tools: Tools
    files: AttachmentStore | None
    limits: Limits

    async def create(
        self, request: attachments_pb.CreateAttachmentRequest
    ) -> attachments_pb.CreateAttachmentResponse:
        """Declare a file, and return where its bytes go.

        Raises NotFound, PermissionDenied, FailedPrecondition (CONVERSATION_CLOSED, INVALID_STATE), InvalidArgument,
        ResourceExhausted (RATE_LIMITED), RequestIdReused, Unavailable.
        """
        files = self._store()
        who = Actor.of(current_principal())
        file_name = domain.attachments.checked_name(
            request.file_name,
            request.content_type,
            request.size_bytes,
            allowed=self.limits.attachments_types,
            max_bytes=self.limits.attachments_max_bytes,
        )
        conversation_id = request.conversation_id.lower()

        async def work(uow: UnitOfWork) -> attachments_pb.CreateAttachmentResponse:
            found = await conversations.get_many(uow.connection, [conversation_id])
            if found:
                domain.conversations.check_may_write(found[0], who)
            elif who.role != ActorRole.VISITOR:
                raise domain.conversations.conversation_not_found(conversation_id)
            domain.attachments.check_unsent(
                await attachments.count_unsent(uow.connection, who),
                self.limits.attachments_max_unsent,
            )
            now = self.tools.now()
            item = Attachment(
                attachment_id=self.tools.ids.uuid7(),
                tenant=who.tenant,
                conversation_id=conversation_id,
                uploader_role=int(who.role),
                uploader_id=who.subject,
                uploader_name=who.name,
                file_name=file_name,
                content_type=request.content_type,
                size_bytes=request.size_bytes,
                sha256=request.sha256,
                state=AttachmentState.PENDING,
                seq=0,
                created_at=now,
                remove_at=now + domain.attachments.UNSENT_SECONDS * 1_000_000,
            )
            await attachments.add(uow.connection, item)
            return attachments_pb.CreateAttachmentResponse(
                attachment=views.messages.attachment(item)
            )

        response = await self.tools.once(f"{ATTACHMENTS}/CreateAttachment", request, work)
        # The URL isn't kept with the answer for the request_id: it is as good as a password, and soon expires.
        seconds = self.limits.attachments_upload_seconds
        signed = await files.upload(
            response.attachment.attachment_id,
            content_type=request.content_type,
            size=request.size_bytes,
            sha256=request.sha256,
            seconds=seconds,
        )
        response.upload.CopyFrom(
            views.messages.signed_url(signed, self.tools.now() + seconds * 1_000_000)
        )
        return response

    async def complete(
        self, request: attachments_pb.CompleteAttachmentRequest
    ) -> attachments_pb.CompleteAttachmentResponse:
        """Check the bytes, and let messages carry the attachment.

        Raises NotFound, FailedPrecondition (ATTACHMENT_NOT_READY, INVALID_STATE), RequestIdReused, Unavailable.
        """
        files = self._store()
        who = Actor.of(current_principal())
        attachment_id = request.attachment_id.lower()
        async with self.tools.db.read() as c:
            item = await attachments.get(c, who.tenant, attachment_id)
        # Outside of the transaction, as others wait for that; a refusal is raised inside, after request_id was checked.
        refusal: DeskwireError | None = None
        waits = item is not None and item.is_of(who) and item.state == AttachmentState.PENDING
        if item is not None and waits:
            try:
                await files.promote(item)
            except DeskwireError as error:
                refusal = error

        async def work(uow: UnitOfWork) -> attachments_pb.CompleteAttachmentResponse:
            found = await attachments.lock(uow.connection, who.tenant, attachment_id)
            if found is None or not found.is_of(who) or found.state == AttachmentState.REMOVED:
                raise domain.attachments.not_found(request.attachment_id)
            if found.state == AttachmentState.PENDING:
                if refusal is not None:
                    raise refusal
                found = replace(found, state=AttachmentState.READY)
                await attachments.ready(uow.connection, found)
            return attachments_pb.CompleteAttachmentResponse(
                attachment=views.messages.attachment(found)
            )

        try:
            return await self.tools.once(f"{ATTACHMENTS}/CompleteAttachment", request, work)
        except NotFound:
            # The attachment was removed just now: without this the promoted bytes would stay for ever.
            if item is not None and waits:
                await files.remove(item)
            raise

    async def get(
        self, request: attachments_pb.GetAttachmentRequest
    ) -> attachments_pb.GetAttachmentResponse:
        """Return an attachment, and where its bytes are. Raises NotFound (ATTACHMENT_NOT_FOUND), Unavailable."""
        who = Actor.of(current_principal())
        async with self.tools.db.read() as c:
            item = await attachments.get(c, who.tenant, request.attachment_id.lower())
            conversation = (
                await conversations.get(c, who.tenant, item.conversation_id) if item else None
            )
        if item is None or not domain.attachments.is_visible(item, conversation, who):
            raise domain.attachments.not_found(request.attachment_id)
        response = attachments_pb.GetAttachmentResponse(attachment=views.messages.attachment(item))
        if item.state != AttachmentState.PENDING:
            seconds = self.limits.attachments_download_seconds
            signed = await self._store().download(item, seconds=seconds)
            response.download.CopyFrom(
                views.messages.signed_url(signed, self.tools.now() + seconds * 1_000_000)
            )
        return response

    def _store(self) -> AttachmentStore:
        if self.files is None:
            raise FailedPrecondition(
                "this server has no store for attachments: set DESKWIRE_ATTACHMENTS_URL",
                metadata={"state": "NO_STORE"},
            )
        return self.files
