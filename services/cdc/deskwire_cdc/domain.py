"""Sources, changes and what follows from them: pure rules, no I/O."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import FailedPrecondition, InvalidArgument

#: Who carries row changes over, in this service's tokens and in its events.
SUBJECT: Final = "cdc"

Json: TypeAlias = str | int | float | bool | None
"""A column value as events carry it; see `sources/values.py` for how each SQL type is written."""
Row: TypeAlias = Mapping[str, Json]

VISITOR_NAMESPACE = "visitor"
CUSTOMER_FIELDS = ("display_name", "email", "mobile")
# Positions of one incarnation count up from its creation, in seconds since this date, in the
# upper half of 64 bits:
# so a source that was deleted and created again is newer than all it said before. Good until 2088
# in a signed BIGINT.
VERSION_EPOCH_SECONDS = 1_577_836_800  # 2020-01-01 UTC
MAX_KEY_TEXT = 128
EVENT_NAMESPACE = uuid.UUID("6f1b6d52-6f0c-5d3e-9c55-0d9f3a1c7c11")


class Kind(StrEnum):
    """How changes are read."""

    MARIADB = "mariadb"
    SQLITE = "sqlite"


class State(StrEnum):
    """How a source is doing."""

    SNAPSHOT = "snapshot"
    STREAMING = "streaming"
    RETRYING = "retrying"
    REFUSED = "refused"


class Operation(StrEnum):
    """What happened to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    SNAPSHOT = "snapshot"


class SourceUnusable(FailedPrecondition):
    """The external database can't be captured without losing changes silently.

    `setting` says what to change; `detail` is for the operator's log, never for the tenant.
    """

    def __init__(self, setting: str, message: str, *, detail: str = "") -> None:
        super().__init__(
            message,
            reason=error_reason_pb2.ERROR_REASON_SOURCE_UNUSABLE,
            metadata={"setting": setting},
        )
        self.setting = setting
        self.detail = detail


class SourceUnreachable(SourceUnusable):
    """The external database doesn't answer now; worth another try."""


@dataclass(frozen=True, slots=True)
class CustomerRule:
    """Which columns of a table are a customer's."""

    table: str
    id_column: str
    columns: Mapping[str, str]
    visitor_column: str = ""
    version_column: str = ""

    def named_columns(self) -> tuple[str, ...]:
        """All columns that the rule reads."""
        names = (self.id_column, self.visitor_column, self.version_column, *self.columns.values())
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, slots=True)
class Source:
    """An external database as it is set up. `url` has the password.

    Never into logs, answers or events.
    """

    tenant_id: str
    source_id: str
    incarnation: str
    """UUIDv7 of this creation: a source that is deleted and created again starts new event ids."""
    kind: Kind
    url: str
    system_id: str
    tables: tuple[str, ...]
    customer_rule: CustomerRule | None
    snapshot: bool
    created_at: int
    """Microseconds."""
    version: int
    state: State = State.STREAMING
    position: str = ""
    last_error: str = ""
    change_count: int = 0
    """Row changes carried over."""
    read_count: int = 0
    """Row changes read, the dropped ones too: what makes positions comparable."""
    last_change_at: int = 0
    snapshot_cursor: str = ""
    """MariaDB: JSON of the snapshot's progress; empty: none to take, or done."""
    term: int = 0
    """Grows with every change of the owner; saves are fenced by it."""

    @property
    def aggregate_id(self) -> str:
        """Subject and Kafka key of the source's own events."""
        return f"{self.tenant_id}/{self.source_id}"

    def masked(self) -> Source:
        """The same without the password."""
        return replace(self, url=mask_url(self.url))


@dataclass(frozen=True, slots=True)
class Change:
    """One row's change as a source says it."""

    table: str
    operation: Operation
    key: Row
    before: Row | None
    after: Row | None
    position: str
    """Unique and stable within an incarnation: the event id is derived from it."""
    committed_at: int
    """Microseconds."""
    read_at: int
    """Microseconds, when change capture had it in hand."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in log order, and where to start again once they are delivered."""

    changes: Sequence[Change]
    position: str
    read_count: int
    """Rows read for it, the dropped ones too."""
    snapshot: bool = False
    """Whether the source still reads rows that were there before."""
    notice: str = ""
    """What an operator should know, such as a TRUNCATE; empty: nothing."""


@dataclass(frozen=True, slots=True)
class NumberedChange:
    """A change with the number that its subject gives it."""

    change: Change
    event_id: str
    subject: str
    sequence: int
    source_version: int
    """Monotonic over the source: what UpsertCustomer gets when the rule has no version column."""


@dataclass(frozen=True, slots=True)
class CustomerCall:
    """What UpsertCustomer is told about a row."""

    request_id: str
    identities: tuple[tuple[str, str], ...]
    values: Mapping[str, str]
    mask: tuple[str, ...]
    source_version: int


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """A parsed Source.url."""

    kind: Kind
    host: str = ""
    port: int = 3306
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""
    path: str = ""


def parse_url(kind: Kind, url: str) -> SourceUrl:
    """`mariadb://user:password@host:port/database` or `sqlite:///absolute/path`.

    Raises InvalidArgument with the field; never with the password in its text.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 3306
    except ValueError:
        raise InvalidArgument("source.url is not a URL.", field="source.url") from None
    if kind is Kind.SQLITE:
        path = unquote(url.removeprefix("sqlite://"))
        if parts.scheme != "sqlite" or not path.startswith("/") or len(path) < 2:
            raise InvalidArgument(
                "A SQLite source's url is sqlite:///absolute/path.", field="source.url"
            )
        # sqlite:////absolute/path is what some tools write; both mean the same file.
        return SourceUrl(kind, path="/" + path.lstrip("/"))
    database = unquote(parts.path.lstrip("/"))
    if parts.scheme != "mariadb" or not parts.hostname or not parts.username or not database:
        raise InvalidArgument(
            "A MariaDB source's url is mariadb://user:password@host:port/database.",
            field="source.url",
        )
    return SourceUrl(
        kind,
        host=parts.hostname,
        port=port,
        user=unquote(parts.username),
        password=unquote(parts.password or ""),
        database=database,
    )


def mask_url(url: str) -> str:
    """The url without its password: `mariadb://user:***@host:3306/crm`."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, address = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:***@{address}").geturl()


def without_secret(text: str, url: str) -> str:
    """An error's text, in which the url's password, should a driver repeat it, is struck out."""
    password = urlsplit(url).password
    if not password:
        return text
    for form in (password, unquote(password)):
        text = text.replace(form, "***")
    return text


def check_rule(rule: CustomerRule | None, tables: Sequence[str]) -> None:
    """Raises InvalidArgument when the rule names a table that isn't captured."""
    if rule is not None and rule.table not in tables:
        raise InvalidArgument(
            f"customer_rule.table {rule.table!r} is not one of the source's tables.",
            field="source.customer_rule.table",
        )


def key_text(key: Row) -> str:
    """A primary key as part of a subject: values percent-encoded and joined by commas, in the
    table's column order.

    A key longer than 128 characters is replaced by its SHA-256, marked with `~`.
    """
    text = ",".join("" if value is None else quote(str(value), safe="") for value in key.values())
    if len(text) > MAX_KEY_TEXT:
        return "~" + hashlib.sha256(text.encode()).hexdigest()
    return text


def subject_of(source: Source, change: Change) -> str:
    """`<tenant>/<source>/<table>/<key>`.

    All changes of one row have it, and it is their Kafka key.
    """
    return f"{source.tenant_id}/{source.source_id}/{change.table}/{key_text(change.key)}"


def event_id_of(source: Source, change: Change) -> str:
    """The same for every read of the same change; different for every incarnation of the source."""
    return str(uuid.uuid5(EVENT_NAMESPACE, f"{source.incarnation}/{change.position}"))


def number(
    source: Source,
    changes: Sequence[Change],
    sequences: Mapping[str, int],
    read_count: int,
) -> tuple[list[NumberedChange], dict[str, int]]:
    """Gives each change its event id and its subject's next sequence.

    `sequences`: the last saved one of each subject; `read_count`: rows read before this batch.
    Returns the changes and
    the sequences after them, which are saved together with the position: so a batch that is read
    again gets
    the same numbers, and a subject has no holes.
    """
    after: dict[str, int] = {}
    numbered = []
    base = ((source.created_at // 1_000_000) - VERSION_EPOCH_SECONDS) << 32
    for index, change in enumerate(changes, start=1):
        subject = subject_of(source, change)
        sequence = after.get(subject, sequences.get(subject, 0)) + 1
        after[subject] = sequence
        numbered.append(
            NumberedChange(
                change,
                event_id=event_id_of(source, change),
                subject=subject,
                sequence=sequence,
                source_version=base + read_count + index,
            )
        )
    return numbered, after


def customer_call(source: Source, numbered: NumberedChange) -> CustomerCall | None:
    """What a row change says of a customer; None when nothing.

    Only the columns that the change really touched are written: a row that is saved with an old
    phone number because
    somebody corrected the e-mail address must not undo a phone number that the desk has just
    changed.
    """
    rule, change = source.customer_rule, numbered.change
    if rule is None or change.table != rule.table or change.after is None:
        return None
    identities = _identities(source, rule, change.after)
    if not identities:
        return None
    values = {name: _text(change.after.get(column)) for name, column in rule.columns.items()}
    mask = tuple(name for name in CUSTOMER_FIELDS if name in values)
    before = change.before
    if before is not None and _identities(source, rule, before) == identities:
        touched = {name: _text(before.get(column)) for name, column in rule.columns.items()}
        mask = tuple(name for name in mask if touched[name] != values[name])
        if not mask:
            return None
    return CustomerCall(
        request_id=f"cdc:{numbered.event_id}",
        identities=identities,
        values=values,
        mask=mask,
        source_version=_source_version(rule, numbered),
    )


def missing_fields(call: CustomerCall, known: Mapping[str, str]) -> CustomerCall | None:
    """A second call for what the row knows and the customer lacks, when the first one wrote only
    what was touched.

    `known`: the customer's fields after the first call. That is how a customer whom the desk met
    only now gets a name.
    """
    mask = tuple(
        name
        for name in CUSTOMER_FIELDS
        if name not in call.mask and call.values.get(name) and not known.get(name)
    )
    if not mask:
        return None
    return replace(call, request_id=f"{call.request_id}:rest", mask=mask)


def _identities(source: Source, rule: CustomerRule, row: Row) -> tuple[tuple[str, str], ...]:
    own = _text(row.get(rule.id_column))
    if not own:
        return ()
    visitor = _text(row.get(rule.visitor_column)) if rule.visitor_column else ""
    pairs = [(source.system_id, own)]
    if visitor:
        pairs.append((VISITOR_NAMESPACE, visitor))
    return tuple(pairs)


def _source_version(rule: CustomerRule, numbered: NumberedChange) -> int:
    if not rule.version_column or numbered.change.after is None:
        return numbered.source_version
    value = numbered.change.after.get(rule.version_column)
    # Big integers travel as text; what isn't a whole number can't be compared: then the last call
    # wins.
    text = str(value)
    return int(text) if text.isdecimal() and int(text) < 2**63 else 0


def _text(value: Json) -> str:
    return "" if value is None else str(value)


# ----- a row change as text: what the snapshot's staging table keeps


def change_to_json(change: Change) -> str:
    """For staging; `change_from_json` is the way back."""
    return json.dumps(
        {
            "table": change.table,
            "operation": change.operation.value,
            "key": dict(change.key),
            "before": None if change.before is None else dict(change.before),
            "after": None if change.after is None else dict(change.after),
            "position": change.position,
            "committed_at": change.committed_at,
            "read_at": change.read_at,
        },
        ensure_ascii=False,
    )


def change_from_json(text: str) -> Change:
    """What `change_to_json` wrote."""
    data = json.loads(text)
    return Change(**{**data, "operation": Operation(data["operation"])})
