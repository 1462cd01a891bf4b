"""Recorded dialogues as requests of HistoryService: who the customer is, who wrote each turn, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from deskwire.chat.v1 import conversation_pb2, customer_pb2, history_service_pb2
from deskwire.common.v1 import actor_pb2
from deskwire_cli.recorded.dialogues import Dialogue, LeftOut, Speaker, Turn
from deskwire_cli.recorded.oddities import Kind
from deskwire_common import texts
from deskwire_common.auth import email_fault, id_fault, is_subject, mobile_fault, name_fault
from deskwire_common.clock import to_micros

REQUEST_BYTES: Final = 1_000_000
"""The most bytes of a request; the service takes 1 MiB."""
REQUEST_MESSAGES: Final = 2_000
"""The most messages of a request, as in history_service.proto."""

_ROLES: Final = {
    Speaker.CUSTOMER: actor_pb2.ROLE_VISITOR,
    Speaker.AGENT: actor_pb2.ROLE_AGENT,
    Speaker.BOT: actor_pb2.ROLE_BOT,
    Speaker.NOTE: actor_pb2.ROLE_AGENT,
}
_FIELDS: Final = (
    ("display_name", "name", name_fault, texts.trimmed),
    ("email", "email", email_fault, texts.trimmed),
    ("mobile", "mobile", mobile_fault, texts.unwrapped),
)
VISITOR: Final = "visitor"
"""The namespace of visitors' ids, which are those of their tokens."""
_IDENTITIES: Final = 16
_TURN_ID: Final = 64
_FRAMING: Final = 8
"""Bytes around a message in a request, at the most."""

Fields = list[tuple[Kind, int]]
"""Fields that are left out: their kind, and the turn or 0."""


@dataclass(frozen=True, slots=True)
class Form:
    """How dialogues become requests: where they come from, and when turns without a time were written (0: unknown).

    `now` is the latest time that a turn may have. Both are microseconds since 1970.
    """

    source: str
    sent_at: int
    now: int

    def check(self, dialogue: Dialogue) -> Fields:
        """Return the fields that are left out. Raises LeftOut."""
        fields: Fields = []
        self._customer(dialogue, fields)
        self._messages(dialogue, fields)
        return fields

    def requests(
        self, dialogue: Dialogue
    ) -> Iterator[history_service_pb2.ImportConversationRequest]:
        """Yield the requests of a dialogue that `check` lets pass, in the order in which they must be sent."""
        customer = self._customer(dialogue, [])
        empty = history_service_pb2.ImportConversationRequest(
            source=self.source, external_id=dialogue.dialogue_id, customer=customer
        )
        beginning = size = empty.ByteSize()
        batch: list[history_service_pb2.ImportedMessage] = []
        for message in self._messages(dialogue, []):
            length = message.ByteSize() + _FRAMING
            if batch and (size + length > REQUEST_BYTES or len(batch) == REQUEST_MESSAGES):
                yield _filled(empty, batch)
                batch, size = [], beginning
            batch.append(message)
            size += length
        yield _filled(empty, batch)

    # ------------------------------------------------------------------------------------ customer

    def _customer(self, dialogue: Dialogue, fields: Fields) -> customer_pb2.Customer:
        """Return the dialogue's customer. One who has no id of their own is known by the dialogue's."""
        raw = dialogue.raw.get("customer")
        told = raw if isinstance(raw, dict) else {"id": raw} if raw is not None else {}
        customer = customer_pb2.Customer()
        if told.get("id") is not None:
            customer.identities.add(
                namespace=self.source, value=_customer_id(self.source, told["id"])
            )
        else:
            customer.identities.add(
                namespace=f"{self.source}:conversation", value=dialogue.dialogue_id
            )
        for name, key, fault, clean in _FIELDS:
            if told.get(key) is None:
                continue
            kept = _kept(told[key], fault, clean)
            if kept is None:
                fields.append((Kind.CUSTOMER_FIELD, 0))
            setattr(customer, name, kept or "")
        _add_identities(told, customer, fields)
        return customer

    # ------------------------------------------------------------------------------------ messages

    def _messages(
        self, dialogue: Dialogue, fields: Fields
    ) -> list[history_service_pb2.ImportedMessage]:
        seen: set[str] = set()
        found = []
        for turn in dialogue.turns:
            external_id = _turn_id(turn)
            if external_id in seen:
                raise LeftOut(Kind.TURN_ID_TWICE, turn.number)
            seen.add(external_id)
            found.append(self._message(turn, external_id, fields))
        return found

    def _message(
        self, turn: Turn, external_id: str, fields: Fields
    ) -> history_service_pb2.ImportedMessage:
        message = history_service_pb2.ImportedMessage(
            external_id=external_id, sender_role=_ROLES[turn.speaker], content=_content(turn)
        )
        by, name = turn.raw.get("by"), turn.raw.get("name")
        if by is not None and turn.speaker is not Speaker.CUSTOMER:
            text = _id_text(by)
            if is_subject(text):
                message.sender_id = text
            else:
                fields.append((Kind.SPEAKER_FIELD, turn.number))
        if name is not None:
            kept = _kept(name, name_fault)
            if kept is None:
                fields.append((Kind.SPEAKER_FIELD, turn.number))
            message.sender_name = kept or ""
        micros = self._time(turn)
        message.sent_time.FromMicroseconds(micros)
        return message

    def _time(self, turn: Turn) -> int:
        given = turn.raw.get("at")
        if given is None:
            if not self.sent_at:
                raise LeftOut(Kind.NO_TIME, turn.number)
            return self.sent_at
        try:
            micros = time_of(given)
        except ValueError:
            raise LeftOut(Kind.BAD_TIME, turn.number) from None
        if not 0 <= micros <= self.now:
            raise LeftOut(Kind.TIME_OUT_OF_RANGE, turn.number)
        return micros


def time_of(given: object) -> int:
    """Return a time in microseconds since 1970: ISO 8601 with a zone, or seconds since 1970. Raises ValueError."""
    if isinstance(given, str):
        try:
            moment = datetime.fromisoformat(given)
            if moment.tzinfo is None:
                raise ValueError("a time needs its zone")
            return to_micros(moment)
        except OverflowError:
            raise ValueError("no such time") from None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError("a time is a text or a number")  # noqa: TRY004 - as every wrong time
    if isinstance(given, int):
        return given * 1_000_000
    if not math.isfinite(given):
        raise ValueError("a time is a finite number")
    return round(given * 1_000_000)


def _filled(
    empty: history_service_pb2.ImportConversationRequest,
    batch: list[history_service_pb2.ImportedMessage],
) -> history_service_pb2.ImportConversationRequest:
    request = history_service_pb2.ImportConversationRequest()
    request.CopyFrom(empty)
    request.messages.extend(batch)
    return request


def _content(turn: Turn) -> conversation_pb2.Content:
    if turn.speaker is Speaker.NOTE:
        return conversation_pb2.Content(note=conversation_pb2.Note(text=turn.text))
    return conversation_pb2.Content(text=turn.text)


def _add_identities(
    told: Mapping[str, Any], customer: customer_pb2.Customer, fields: Fields
) -> None:
    """Add who the customer is in other systems, and as a visitor."""
    ids = told.get("ids", {})
    others: list[tuple[object, object]] = (
        list(ids.items()) if isinstance(ids, dict) else [(None, ids)]
    )
    if told.get("visitor") is not None:
        others.append((VISITOR, told["visitor"]))
    for namespace, value in others:
        text = _id_text(value)
        if (
            not isinstance(namespace, str)
            or (not is_subject(text) if namespace == VISITOR else id_fault(namespace, text))
            or len(customer.identities) == _IDENTITIES
        ):
            fields.append((Kind.CUSTOMER_FIELD, 0))
            continue
        customer.identities.add(namespace=namespace, value=text)


def _customer_id(source: str, raw: object) -> str:
    text = _id_text(raw)
    if id_fault(source, text):
        raise LeftOut(Kind.BAD_CUSTOMER)
    return text


def _kept(
    raw: object, fault: Callable[[str], str], clean: Callable[[str], str] = texts.trimmed
) -> str | None:
    """Return a name, an address or a number as it is kept; None when it can't be kept."""
    if not isinstance(raw, str):
        return None
    kept = clean(raw)
    return None if fault(kept) else kept


def _turn_id(turn: Turn) -> str:
    """Return a turn's id; one that has none is known by its number."""
    raw = turn.raw.get("id")
    if raw is None:
        return str(turn.number)
    text = _id_text(raw)
    if (
        not (texts.has_seen(text) and texts.is_line(text) and len(text) <= _TURN_ID)
        # A blank at the end would be the same as none to MariaDB.
        or text.endswith(" ")
    ):
        raise LeftOut(Kind.BAD_TURN_ID, turn.number)
    return text


def _id_text(raw: object) -> str:
    """Return an id as text; "" when it is no text and no whole number."""
    return str(raw) if isinstance(raw, str | int) and not isinstance(raw, bool) else ""
