"""Changes of messages in one transaction: edits, redactions, and the attachments that messages carry or lose."""

from __future__ import annotations

from collections.abc import Iterable

from deskwire_chat import domain, views
from deskwire_chat.domain.attachments import Attachment
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.log.commands import Accept, Grouped, Put
from deskwire_chat.store import attachments, messages
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Unavailable


class Changes:
    """The changes of one transaction. Call `load` before the other methods, and `flush` before the commit."""

    def __init__(self, now: int) -> None:
        """`now` in microseconds."""
        self._now = now
        self._targets: dict[tuple[str, int], Message] = {}
        self._changed: dict[tuple[str, int], Message] = {}
        self._attachments: dict[str, Attachment] = {}
        self._carried: list[Attachment] = []
        self._discarded: list[tuple[str, int]] = []

    async def load(self, uow: UnitOfWork, commands: Iterable[Grouped | Accept]) -> None:
        """Read the messages that edits and redactions change, and the attachments that are sent."""
        special = [each for each in commands if isinstance(each, Put) and each.kind != Kind.TEXT]
        if not special:
            return
        places = {(each.conversation_id, each.target_seq) for each in special if each.target_seq}
        if places:
            self._targets = await messages.at(uow.connection, sorted(places))
        files = {
            views.content.reference_of(each.body).attachment_id
            for each in special
            if each.kind == Kind.ATTACHMENT
        }
        if files:
            self._attachments = await attachments.get_many(uow.connection, sorted(files))

    def attachment_of(self, command: Put) -> Attachment:
        """Return the attachment that a message wants to carry. Raises the domain's refusals."""
        reference = views.content.reference_of(command.body)
        return domain.attachments.check_may_send(
            self._attachments.get(reference.attachment_id),
            reference,
            command.conversation_id,
            command.who,
        )

    def carry(self, item: Attachment, seq: int) -> None:
        """Mark an attachment as carried by a message of this transaction."""
        sent = domain.attachments.sent(item, seq)
        self._attachments[sent.attachment_id] = sent
        self._carried.append(sent)

    def target_of(self, command: Put, fresh: Iterable[Message]) -> Message:
        """Return the message that an edit or a redaction changes. `fresh`: the messages of this transaction.

        Raises the domain's refusals.
        """
        place = command.conversation_id, command.target_seq
        found = self._targets.get(place) or next(
            (each for each in fresh if (each.conversation_id, each.seq) == place), None
        )
        return domain.messages.check_may_change(
            found, command.kind, command.target_seq, command.who
        )

    def change(self, target: Message, command: Put, fresh: Iterable[Message]) -> None:
        """Change a stored message, as history shows its present state; a redaction wipes its edits, too."""
        place = target.conversation_id, target.seq
        target.changed_at = self._now
        if command.kind == Kind.EDIT:
            target.body = views.content.edited(command.body)
        else:
            if target.kind == Kind.ATTACHMENT:
                self._discarded.append(place)
            self._redact(target)
            for each in fresh:
                if each.kind == Kind.EDIT and (each.conversation_id, each.target_seq) == place:
                    self._redact(each)
        if place in self._targets:
            self._changed[place] = target

    def _redact(self, item: Message) -> None:
        item.body, item.kind = views.content.REDACTED, Kind.REDACTED
        item.changed_at = self._now

    async def flush(self, uow: UnitOfWork) -> None:
        """Write changed messages and carried or discarded attachments. Raises Unavailable when somebody was faster."""
        if self._changed:
            await messages.change(uow, list(self._changed.values()))
            for each in self._changed.values():
                if each.kind == Kind.REDACTED:
                    await messages.wipe_edits(uow, each)
        if self._carried and not await attachments.sent(uow, self._carried):
            raise Unavailable("an attachment was removed meanwhile")
        if self._discarded:
            await attachments.discard(uow, self._discarded, now=self._now)
