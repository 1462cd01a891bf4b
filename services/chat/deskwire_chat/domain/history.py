"""The rules of imported history: which messages are new, and what the closed conversation that holds them is."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import ActorRole
from deskwire_chat.domain.conversations import Conversation, State
from deskwire_chat.domain.customers import VISITOR_NAMESPACE, Customer
from deskwire_chat.domain.messages import Kind, Message
from deskwire_common.auth import is_subject
from deskwire_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument

_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "deskwire:history")
_DESK: Final = frozenset({ActorRole.AGENT, ActorRole.BOT})


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an imported conversation comes from."""

    source: str
    external_id: str


@dataclass(frozen=True, slots=True)
class PastMessage:
    """A message of another system; `sent_at` in microseconds, `body` an encoded Content."""

    external_id: str
    role: ActorRole
    subject: str
    name: str
    kind: Kind
    body: bytes
    sent_at: int


def conversation_id_of(tenant: str, came_from: Provenance) -> str:
    """Return the id that a conversation of another system has in deskwire, always the same one."""
    name = f"{tenant}\0{came_from.source}\0{came_from.external_id}"
    return str(uuid.uuid5(_NAMESPACE, name))


def visitor_of(customer: Customer) -> str:
    """Return the subject of the visitor that a customer is; "" when they are none."""
    for identity in customer.identities:
        if identity.namespace == VISITOR_NAMESPACE and is_subject(identity.value):
            return identity.value
    return ""


def check_times(past: Iterable[PastMessage], now: int) -> None:
    """Raise InvalidArgument that names the first message from before 1970, or from the future."""
    for place, each in enumerate(past):
        if not 0 <= each.sent_at <= now:
            raise InvalidArgument(
                "a message is from 1970 to now, by the server's clock",
                field=f"messages[{place}].sent_time",
            )


def check_once(past: Iterable[PastMessage]) -> None:
    """Raise InvalidArgument that names the first message whose external_id an earlier one has."""
    seen: set[str] = set()
    for place, each in enumerate(past):
        if each.external_id in seen:
            raise InvalidArgument(
                "two messages have this external_id", field=f"messages[{place}].external_id"
            )
        seen.add(each.external_id)


def new_of(past: Sequence[PastMessage], known: Mapping[str, Message]) -> Sequence[PastMessage]:
    """Return the messages that aren't stored yet; `known` are the stored ones by external_id.

    Raises AlreadyExists (CLIENT_MSG_ID_REUSED) for one that is stored otherwise, FailedPrecondition (INVALID_STATE) for
    a new one before a stored one, as it can't get its place any more.
    """
    first_new = next(
        (place for place, each in enumerate(past) if each.external_id not in known), len(past)
    )
    for place, each in enumerate(past):
        stored = known.get(each.external_id)
        if stored is None:
            continue
        if place > first_new:
            raise FailedPrecondition(
                f"message {past[first_new].external_id!r} isn't there yet, but {each.external_id!r} after it is: "
                "its place is taken, so it can't be imported any more",
                reason=reasons.ERROR_REASON_INVALID_STATE,
                metadata={"state": "CLOSED", "external_id": past[first_new].external_id},
                field=f"messages[{first_new}]",
            )
        if not _is_same(stored, each):
            raise AlreadyExists(
                f"message {each.external_id!r} is there with another text, sender's role or time",
                reason=reasons.ERROR_REASON_CLIENT_MSG_ID_REUSED,
                metadata={"external_id": each.external_id},
                field=f"messages[{place}]",
            )
    return past[first_new:]


def _is_same(stored: Message, past: PastMessage) -> bool:
    """Whether a stored message is this one; one that was changed since can't be compared with its text."""
    return (
        stored.role == int(past.role)
        and stored.created_at == past.sent_at
        and (stored.body == past.body or bool(stored.changed_at))
    )


def conversation_of(
    conversation_id: str,
    tenant: str,
    customer: Customer,
    past: Sequence[PastMessage],
    traceparent: str,
) -> Conversation:
    """Return the conversation that its first messages make, without them: closed, with the times it had."""
    times = [each.sent_at for each in past]
    item = Conversation(
        conversation_id=conversation_id,
        tenant=tenant,
        state=State.CLOSED,
        customer_id=customer.customer_id,
        visitor_id=visitor_of(customer),
        agent_id="",
        epoch=1,
        head_seq=0,
        version=1,
        created_at=min(times),
        assigned_at=0,
        closed_at=max(times),
        traceparent=traceparent,
    )
    _take(item, past)
    return item


def grow(item: Conversation, past: Sequence[PastMessage]) -> None:
    """Change a conversation, in place, as more of its messages make it."""
    item.version += 1
    _take(item, past)


def _take(item: Conversation, past: Sequence[PastMessage]) -> None:
    item.closed_at = max(item.closed_at, *(each.sent_at for each in past))
    for each in past:
        if each.role in _DESK and each.subject and each.kind == Kind.TEXT:
            item.assigned_at = item.assigned_at or each.sent_at
            item.agent_id, item.agent_is_bot = each.subject, each.role == ActorRole.BOT


def not_imported(conversation_id: str) -> AlreadyExists:
    """Return the error for an id that a conversation has which wasn't imported."""
    return AlreadyExists(
        f"conversation {conversation_id} is one that wasn't imported",
        reason=reasons.ERROR_REASON_ALREADY_EXISTS,
        metadata={"conversation_id": conversation_id},
    )
