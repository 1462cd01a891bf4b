"""The rules of chat: conversations, customers, agents, and which partition a conversation is in.

Pure: no I/O, no protobuf, no clock reads. Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import phonenumbers

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_common.auth import Principal, Profile, Role
from deskwire_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    VersionMismatch,
)

PARTITIONS: Final = 16
"""How many partitions there are, for ever: a conversation's partition is part of what is stored."""

VISITOR_NAMESPACE: Final = "visitor"
"""The identity namespace of visitor tokens' subjects."""

HOME_ORIGIN: Final = "deskwire"
"""The origin of what begins here."""

DEFAULT_CAPACITY: Final = 5
"""How many conversations a new agent takes at once, unless they say otherwise."""

SECRET_BYTES: Final = 32
"""How much chance is in the secret of an integration key."""

_SECRET: Final = re.compile(rf"dwk_([0-9a-f]{{32}})_([0-9a-f]{{{2 * SECRET_BYTES}}})")

MAX_IDENTITIES: Final = 16
"""How many identities a customer may have, as the contract says."""

CUSTOMER_FIELDS: Final = ("display_name", "email", "mobile")
"""The fields of a customer that an update_mask may name."""


class State(IntEnum):
    """Where a conversation is in its life; the numbers are the contract's and the database's."""

    QUEUED = 1
    ACTIVE = 2
    CLOSED = 3


class Kind(IntEnum):
    """What an entry of a conversation is; the numbers are those of Content's kinds, and the database's."""

    TEXT = 1
    EDIT = 2
    REDACTION = 3
    NOTE = 4
    REDACTED = 6
    ATTACHMENT = 7


class Status(IntEnum):
    """What an agent says of themselves; the numbers are the contract's and the database's."""

    AVAILABLE = 1
    AWAY = 2


class OfferEnd(IntEnum):
    """How an offer ended; the numbers are the contract's."""

    ACCEPTED = 1
    EXPIRED = 2
    DECLINED = 3
    WITHDRAWN = 4


class ActorRole(IntEnum):
    """Who writes messages; the numbers are the contract's and the database's."""

    VISITOR = 1
    AGENT = 2
    BOT = 3
    INTEGRATION = 4
    OPERATOR = 5
    SERVICE = 6
    SYSTEM = 7


_ROLES: Final = {
    Role.VISITOR: ActorRole.VISITOR,
    Role.AGENT: ActorRole.AGENT,
    Role.BOT: ActorRole.BOT,
    Role.INTEGRATION: ActorRole.INTEGRATION,
    Role.OPERATOR: ActorRole.OPERATOR,
    Role.SERVICE: ActorRole.SERVICE,
}


@dataclass(frozen=True, slots=True)
class Writer:
    """Who causes a change: the tenant, role, subject, name, origin and profile of a verified token."""

    tenant: str
    role: ActorRole
    subject: str
    name: str = ""
    origin: str = HOME_ORIGIN
    profile: Profile | None = None

    @classmethod
    def of(cls, principal: Principal) -> Writer:
        """Take it from a token. Origin is the system of an integration's token, never of a request."""
        return cls(
            tenant=principal.tenant,
            role=_ROLES[principal.role],
            subject=principal.subject,
            name=principal.name,
            origin=principal.system or HOME_ORIGIN,
            profile=principal.profile,
        )

    @classmethod
    def system(cls, tenant: str) -> Writer:
        """Return deskwire itself, for the greeting and routing's decisions."""
        return cls(tenant=tenant, role=ActorRole.SYSTEM, subject=HOME_ORIGIN, name=HOME_ORIGIN)


@dataclass(slots=True)
class Conversation:
    """One customer's talk with the desk."""

    conversation_id: str
    tenant: str
    state: State
    customer_id: str
    visitor_id: str
    agent_id: str
    epoch: int
    head_seq: int
    version: int
    created_at: int
    assigned_at: int
    closed_at: int
    traceparent: str = ""
    agent_is_bot: bool = False
    human_wanted: bool = False
    """Whether it was handed off: from the queue only people take it."""

    @property
    def partition(self) -> int:
        """The partition it is in, for ever."""
        return partition_of(self.conversation_id)

    @property
    def agent_role(self) -> ActorRole:
        """What the one who has it is; say it only while somebody has."""
        return ActorRole.BOT if self.agent_is_bot else ActorRole.AGENT

    def copy(self) -> Conversation:
        """Return a copy; dataclasses.replace takes four times as long, and this is on the path of every message."""
        return Conversation(
            self.conversation_id,
            self.tenant,
            self.state,
            self.customer_id,
            self.visitor_id,
            self.agent_id,
            self.epoch,
            self.head_seq,
            self.version,
            self.created_at,
            self.assigned_at,
            self.closed_at,
            self.traceparent,
            self.agent_is_bot,
            self.human_wanted,
        )


class Waiting(NamedTuple):
    """A conversation in the queue, as routing knows it."""

    tenant: str
    conversation_id: str
    created_at: int
    human_wanted: bool = False


@dataclass(slots=True)
class Message:
    """One committed message and its place in its conversation and its partition."""

    message_id: str
    conversation_id: str
    tenant: str
    seq: int
    position: int
    role: int
    subject: str
    name: str
    origin: str
    client_msg_id: str
    body: bytes
    created_at: int
    traceparent: str = ""
    kind: int = Kind.TEXT
    target_seq: int = 0
    """Of an edit or a redaction: which message."""
    changed_at: int = 0
    """When it was edited or redacted last; 0: never."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """How far somebody has got in a conversation; it never goes back."""

    conversation_id: str
    role: int
    subject: str
    delivered_seq: int
    read_seq: int


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who a customer is in one system."""

    namespace: str
    value: str


@dataclass(frozen=True, slots=True)
class Customer:
    """One person, whatever the number of systems that know them."""

    customer_id: str
    tenant: str
    display_name: str = ""
    email: str = ""
    mobile: str = ""
    identities: tuple[Identity, ...] = ()
    version: int = 1
    created_at: int = 0
    updated_at: int = 0

    @property
    def user_id(self) -> str:
        """The id in the visitor's system when there is one, else customer_id."""
        for identity in self.identities:
            if identity.namespace == VISITOR_NAMESPACE:
                return identity.value
        return self.customer_id


@dataclass(frozen=True, slots=True)
class Agent:
    """One person at the desk, or a bot: which of them is never changed."""

    tenant: str
    agent_id: str
    display_name: str
    status: Status
    capacity: int
    active: int
    idle_since: int
    version: int
    disabled: bool = False
    bot: bool = False


@dataclass(frozen=True, slots=True)
class Tenant:
    """One desk with everything that belongs to it, as far as it was created."""

    tenant_id: str
    display_name: str
    disabled: bool
    version: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class IntegrationKey:
    """What lets a system outside have tokens."""

    key_id: str
    tenant: str
    system_id: str
    display_name: str
    secret_hash: bytes = field(repr=False)
    revoked: bool
    version: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Change:
    """One field's way from one value to another; None is no value."""

    before: Any
    after: Any


@dataclass(slots=True)
class Changed:
    """A thing after a change, and what changed; nothing when the change had no effect."""

    fields: dict[str, Change] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything really changed."""
        return bool(self.fields)


@lru_cache(65_536)  # asked several times per message
def partition_of(conversation_id: str) -> int:
    """Return the partition, 0 to PARTITIONS-1, of a conversation."""
    return zlib.crc32(conversation_id.encode()) % PARTITIONS


# ------------------------------------------------------------------------------------- conversations


def conversation_not_found(conversation_id: str) -> NotFound:
    """Return the error for ids that the caller's tenant, or the visitor, doesn't have."""
    return NotFound(
        f"no conversation {conversation_id} that you can see",
        reason=reasons.ERROR_REASON_CONVERSATION_NOT_FOUND,
    )


def not_a_participant() -> PermissionDenied:
    """Return the error for agents who do what only the conversation's agent may."""
    return PermissionDenied(
        "the conversation is not assigned to you",
        reason=reasons.ERROR_REASON_NOT_A_PARTICIPANT,
    )


def may_see(conversation: Conversation, who: Writer) -> bool:
    """Whether `who` may read the conversation: a visitor their own, the others all of their tenant."""
    if conversation.tenant != who.tenant:
        return False
    return who.role != ActorRole.VISITOR or conversation.visitor_id == who.subject


def takes_part(conversation: Conversation, who: Writer) -> bool:
    """Whether `who` is one of those that talk: the visitor, and the agent or bot that has it."""
    if conversation.tenant != who.tenant:
        return False
    if who.role == ActorRole.VISITOR:
        return conversation.visitor_id == who.subject
    return conversation.agent_id == who.subject != "" and who.role == conversation.agent_role


def check_may_write(conversation: Conversation, who: Writer) -> None:
    """Raise unless `who` may add a message to the conversation.

    NotFound for what `who` can't see, PermissionDenied (NOT_A_PARTICIPANT) for an agent or bot that isn't the
    conversation's, FailedPrecondition (CONVERSATION_CLOSED) when it is over.
    """
    if not may_see(conversation, who):
        raise conversation_not_found(conversation.conversation_id)
    if who.role in {ActorRole.AGENT, ActorRole.BOT} and not takes_part(conversation, who):
        raise not_a_participant()
    if conversation.state == State.CLOSED:
        raise FailedPrecondition(
            "the conversation is closed; open another one with a new conversation_id",
            reason=reasons.ERROR_REASON_CONVERSATION_CLOSED,
        )


def check_may_alter(conversation: Conversation, who: Writer) -> None:
    """Raise unless `who` may close or transfer the conversation: a bot only its own (NOT_A_PARTICIPANT)."""
    if not may_see(conversation, who):
        raise conversation_not_found(conversation.conversation_id)
    if who.role == ActorRole.BOT and not takes_part(conversation, who):
        raise not_a_participant()


def check_kind(kind: int, who: Writer) -> None:
    """Raise PermissionDenied for what `who` may not write: notes are the desk's."""
    if kind == Kind.NOTE and who.role == ActorRole.VISITOR:
        raise PermissionDenied(
            "notes are for the desk", reason=reasons.ERROR_REASON_ROLE_NOT_ALLOWED
        )


def check_may_change(target: Message | None, kind: int, seq: int, who: Writer) -> Message:
    """Return the message that an edit or a redaction changes.

    Raises NotFound (MESSAGE_NOT_FOUND), FailedPrecondition (MESSAGE_UNCHANGEABLE), and PermissionDenied
    (NOT_A_PARTICIPANT) for who isn't its sender; agents and bots may redact what others said.
    """
    if target is None or (who.role == ActorRole.VISITOR and target.kind == Kind.NOTE):
        raise NotFound(
            f"no message {seq} in the conversation", reason=reasons.ERROR_REASON_MESSAGE_NOT_FOUND
        )
    can_be = {Kind.TEXT} if kind == Kind.EDIT else {Kind.TEXT, Kind.NOTE, Kind.ATTACHMENT}
    if target.kind not in can_be or target.role == ActorRole.SYSTEM:
        raise FailedPrecondition(
            f"message {seq} can't be changed: it is redacted, or no message of that kind",
            reason=reasons.ERROR_REASON_MESSAGE_UNCHANGEABLE,
        )
    own = (target.role, target.subject) == (int(who.role), who.subject)
    if not own and (kind == Kind.EDIT or who.role not in {ActorRole.AGENT, ActorRole.BOT}):
        raise PermissionDenied(
            "the message is somebody else's", reason=reasons.ERROR_REASON_NOT_A_PARTICIPANT
        )
    return target


def close(conversation: Conversation, *, expected_version: int, now: int) -> dict[str, Change]:
    """Close the conversation in place and return what changed.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is closed already.
    """
    check_version(conversation.version, expected_version)
    if conversation.state == State.CLOSED:
        raise FailedPrecondition(
            "the conversation is closed already",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": "CLOSED"},
        )
    before = conversation.state
    conversation.state = State.CLOSED
    conversation.closed_at = now
    conversation.version += 1
    return {"state": Change(state_name(before), state_name(State.CLOSED))}


def assign(conversation: Conversation, *, agent_id: str, bot: bool, now: int) -> dict[str, Change]:
    """Give a QUEUED conversation to an agent or a bot, in place, and return what changed."""
    before = conversation.state
    conversation.state = State.ACTIVE
    conversation.agent_id = agent_id
    conversation.agent_is_bot = bot
    conversation.assigned_at = now
    conversation.version += 1
    return {
        "state": Change(state_name(before), state_name(State.ACTIVE)),
        "agent_id": Change(None, agent_id),
        "agent_role": Change(None, _role_name(conversation)),
    }


def transfer(
    conversation: Conversation, *, agent_id: str, bot: bool = False, expected_version: int, now: int
) -> dict[str, Change]:
    """Give an open conversation to another agent or a `bot` (empty: to the queue), in place; return what changed.

    What goes to the queue waits for a person, as somebody wasn't enough; who gives it to a bot doesn't want one now.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is closed or there already.
    """
    check_version(conversation.version, expected_version)
    if conversation.state == State.CLOSED or conversation.agent_id == agent_id:
        raise FailedPrecondition(
            "the conversation is closed, or already where it should go",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": conversation.state.name},
        )
    before = conversation.copy()
    changes = {"agent_id": Change(conversation.agent_id or None, agent_id or None)}
    conversation.state = State.ACTIVE if agent_id else State.QUEUED
    conversation.agent_id = agent_id
    conversation.agent_is_bot = bot
    if bot or not agent_id:
        conversation.human_wanted = not agent_id
    if conversation.state != before.state:
        changes["state"] = Change(state_name(before.state), state_name(conversation.state))
    if _role_name(conversation) != _role_name(before):
        changes["agent_role"] = Change(_role_name(before), _role_name(conversation))
    if conversation.human_wanted != before.human_wanted:
        changes["human_wanted"] = Change(before.human_wanted, conversation.human_wanted)
    conversation.assigned_at = now if agent_id else 0
    conversation.version += 1
    return changes


def _role_name(conversation: Conversation) -> str | None:
    return f"ROLE_{conversation.agent_role.name}" if conversation.agent_id else None


def state_name(state: State) -> str:
    """Return the name as the JSON form of events has it."""
    return f"CONVERSATION_STATE_{state.name}"


def status_name(status: Status) -> str:
    """Return the name as the JSON form of events has it."""
    return f"AGENT_STATUS_{status.name}"


def greeting(agent_name: str) -> str:
    """Return what deskwire says when an agent takes a conversation."""
    return f"{agent_name} is here to help you."


def check_version(current: int, expected: int) -> None:
    """Raise VersionMismatch unless `expected` is 0 or the current version."""
    if expected and expected != current:
        raise VersionMismatch(current=current, expected=expected)


# ----------------------------------------------------------------------------------------- customers


def normalise_mobile(text: str, *, default_region: str = "") -> str:
    """Return a mobile number as E.164 where it can be read as one, else as given without outer blanks.

    `default_region` (`CN`, `DE`, …) is how numbers without a leading + are read; empty: they stay.
    """
    given = text.strip()
    if not given or (not given.startswith("+") and not default_region):
        return given
    try:
        number = phonenumbers.parse(given, default_region or None)
    except phonenumbers.NumberParseException:
        return given
    if not phonenumbers.is_possible_number(number):
        return given
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def check_mask(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the fields that an update_mask names, in the order of CUSTOMER_FIELDS.

    Raises InvalidArgument (INVALID_UPDATE_MASK) for an empty mask, or a field that can't be written.
    """
    asked = set(paths)
    unknown = sorted(asked.difference(CUSTOMER_FIELDS))
    if unknown or not asked:
        what = f"can't write {', '.join(unknown)}" if unknown else "names no field"
        raise InvalidArgument(
            f"update_mask {what}; it may name {', '.join(CUSTOMER_FIELDS)}",
            reason=reasons.ERROR_REASON_INVALID_UPDATE_MASK,
            field="update_mask",
        )
    return tuple(name for name in CUSTOMER_FIELDS if name in asked)


def changed_customer(
    customer: Customer,
    values: Mapping[str, str],
    *,
    add_identities: Iterable[Identity] = (),
    now: int,
) -> tuple[Customer, dict[str, Change]]:
    """Return the customer with `values` and more identities, and what that changes.

    An empty dict of changes means that nothing really changed: the customer is returned as it was.
    """
    changes = {
        name: Change(getattr(customer, name) or None, value or None)
        for name, value in values.items()
        if getattr(customer, name) != value
    }
    identities = tuple(sorted({*customer.identities, *add_identities}))
    if identities != tuple(sorted(customer.identities)):
        changes["identities"] = Change(
            [_identity_value(item) for item in sorted(customer.identities)],
            [_identity_value(item) for item in identities],
        )
    if not changes:
        return customer, {}
    after = replace(
        with_values(customer, values),
        identities=identities,
        version=customer.version + 1,
        updated_at=now,
    )
    return after, changes


def with_values(customer: Customer, values: Mapping[str, str]) -> Customer:
    """Return the customer with new values of some CUSTOMER_FIELDS."""
    return replace(
        customer,
        display_name=values.get("display_name", customer.display_name),
        email=values.get("email", customer.email),
        mobile=values.get("mobile", customer.mobile),
    )


def identities_of(visitor: Writer) -> list[Identity]:
    """Return who the visitor is by their token: the subject first, which counts most."""
    ids = visitor.profile.ids if visitor.profile else ()
    return [Identity(VISITOR_NAMESPACE, visitor.subject), *(Identity(*each) for each in ids)]


def filled(customer: Customer, visitor: Writer, *, default_region: str) -> dict[str, str]:
    """Return the fields that are empty and that the visitor's token can fill."""
    profile = visitor.profile or Profile()
    offered = {
        "display_name": visitor.name,
        "email": profile.email.strip(),
        "mobile": normalise_mobile(profile.mobile, default_region=default_region),
    }
    return {name: value for name, value in offered.items() if value and not getattr(customer, name)}


def _identity_value(identity: Identity) -> dict[str, str]:
    return {"namespace": identity.namespace, "value": identity.value}


def customer_not_found(what: str) -> NotFound:
    """Return the error for a customer that the caller's tenant doesn't have."""
    return NotFound(f"no customer {what}", reason=reasons.ERROR_REASON_CUSTOMER_NOT_FOUND)


def identity_conflict(first: str, second: str) -> FailedPrecondition:
    """Return the error for identities that belong to two customers."""
    return FailedPrecondition(
        f"the identities belong to two customers, {first} and {second}; nothing was changed",
        reason=reasons.ERROR_REASON_IDENTITY_CONFLICT,
        metadata={"customer_id": first, "other_customer_id": second},
    )


# -------------------------------------------------------------------------------------------- agents


def agent_not_found(agent_id: str) -> NotFound:
    """Return the error for an agent that the caller's tenant doesn't have."""
    return NotFound(f"no agent {agent_id}", reason=reasons.ERROR_REASON_AGENT_NOT_FOUND)


def agent_has_no_room(agent_id: str) -> FailedPrecondition:
    """Return the error for an agent who is away, disabled or has all the conversations that they take."""
    return FailedPrecondition(
        f"agent {agent_id} is away, disabled or has no room",
        reason=reasons.ERROR_REASON_AGENT_UNAVAILABLE,
    )


def offer_not_found(conversation_id: str) -> NotFound:
    """Return the error for an offer that is over, or was never made to the caller."""
    return NotFound(
        f"conversation {conversation_id} isn't offered to you now",
        reason=reasons.ERROR_REASON_OFFER_NOT_FOUND,
    )


def check_is(agent: Agent, who: Writer) -> None:
    """Raise AlreadyExists for a bot that has the id of a person at the desk, and the other way round."""
    if who.role in {ActorRole.AGENT, ActorRole.BOT} and agent.bot != (who.role == ActorRole.BOT):
        what = "a bot" if agent.bot else "a person"
        raise AlreadyExists(
            f"{agent.agent_id} is {what} of this desk: agents and bots need ids of their own"
        )


def changed_agent(
    agent: Agent, *, status: Status, capacity: int, display_name: str
) -> tuple[Agent, dict[str, Change]]:
    """Return the agent after they spoke, and what that changes; 0 and "" mean "as before"."""
    after = replace(
        agent,
        status=status,
        capacity=capacity or agent.capacity,
        display_name=display_name or agent.display_name,
    )
    changes: dict[str, Change] = {}
    if after.status != agent.status:
        changes["status"] = Change(status_name(agent.status), status_name(after.status))
    if after.capacity != agent.capacity:
        changes["capacity"] = Change(agent.capacity, after.capacity)
    if after.display_name != agent.display_name:
        changes["display_name"] = Change(agent.display_name or None, after.display_name or None)
    if not changes:
        return agent, {}
    return replace(after, version=agent.version + 1), changes


# -------------------------------------------------------------------------------------------- access

SwitchedT = TypeVar("SwitchedT", Agent, Tenant)


def switched(
    thing: SwitchedT, *, disabled: bool, expected_version: int
) -> tuple[SwitchedT, dict[str, Change]]:
    """Return an agent or a tenant after it was disabled or enabled, and what that changes.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is so already.
    """
    check_version(thing.version, expected_version)
    if thing.disabled is disabled:
        state = "DISABLED" if disabled else "ENABLED"
        raise FailedPrecondition(
            f"it is {state.lower()} already",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": state},
        )
    after = replace(thing, disabled=disabled, version=thing.version + 1)
    return after, {"disabled": Change(not disabled, disabled)}


def tenant_not_found(tenant_id: str) -> NotFound:
    """Return the error for a tenant that was never created."""
    return NotFound(
        f"no tenant {tenant_id} was created", reason=reasons.ERROR_REASON_TENANT_NOT_FOUND
    )


def tenant_disabled(tenant_id: str) -> PermissionDenied:
    """Return the error for everybody of a disabled tenant."""
    return PermissionDenied(
        f"tenant {tenant_id} is disabled", reason=reasons.ERROR_REASON_TENANT_DISABLED
    )


def agent_disabled(agent_id: str) -> PermissionDenied:
    """Return the error for a disabled agent."""
    return PermissionDenied(
        f"agent {agent_id} is disabled", reason=reasons.ERROR_REASON_AGENT_DISABLED
    )


def secret_text(key_id: str, secret: bytes) -> str:
    """Return the secret of a key as its system keeps it: `dwk_<key>_<secret>`, both in hex."""
    return f"dwk_{key_id.replace('-', '')}_{secret.hex()}"


def read_secret(text: str) -> tuple[str, bytes] | None:
    """Return key_id and secret of a text that `secret_text` made; None for any other."""
    match = _SECRET.fullmatch(text)
    if match is None:
        return None
    digits = match[1]
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(parts), bytes.fromhex(match[2])


def secret_hash(secret: bytes) -> bytes:
    """Return what is stored of a secret. A plain hash is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(secret).digest()


def opened(key: IntegrationKey | None, secret: bytes) -> IntegrationKey:
    """Return the key if `secret` is its own and it isn't revoked; the time tells nothing of the hash.

    Raises Unauthenticated (INTEGRATION_KEY_INVALID), the same one whatever is wrong.
    """
    wanted = key.secret_hash if key is not None else bytes(SECRET_BYTES)
    fits = hmac.compare_digest(wanted, secret_hash(secret))
    if key is None or key.revoked or not fits:
        raise Unauthenticated(
            "the secret isn't that of an integration key, or the key is revoked",
            reason=reasons.ERROR_REASON_INTEGRATION_KEY_INVALID,
        )
    return key


def key_not_found(key_id: str) -> NotFound:
    """Return the error for a key that the caller's tenant doesn't have."""
    return NotFound(
        f"no integration key {key_id}", reason=reasons.ERROR_REASON_INTEGRATION_KEY_NOT_FOUND
    )


def revoked(
    key: IntegrationKey, *, expected_version: int, now: int
) -> tuple[IntegrationKey, dict[str, Change]]:
    """Return the key after it was revoked, and what that changes.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is revoked already.
    """
    check_version(key.version, expected_version)
    if key.revoked:
        raise FailedPrecondition(
            "the key is revoked already",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": "REVOKED"},
        )
    after = replace(key, revoked=True, version=key.version + 1, updated_at=now)
    return after, {"revoked": Change(False, True)}
