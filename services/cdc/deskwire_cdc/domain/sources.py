"""Sources: external databases as they are set up, and how they are doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from urllib.parse import unquote, urlsplit

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import FailedPrecondition, InvalidArgument

SUBJECT: Final = "cdc"
"""Who carries row changes over, in this service's tokens and in its events."""


class State(StrEnum):
    """How a source is doing."""

    SNAPSHOT = "snapshot"
    STREAMING = "streaming"
    RETRYING = "retrying"
    REFUSED = "refused"


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
    """An external database as it is set up. `url` has the password: never into logs, answers or events."""

    tenant_id: str
    source_id: str
    incarnation: str
    """UUIDv7 of this creation: a source that is deleted and created again starts new event ids."""
    kind: str
    """The name of a `SourceKind`."""
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
    refused_count: int = 0
    """Rows of the customers' table that chat doesn't take, or not whole, as they are now."""
    last_change_at: int = 0
    snapshot_cursor: str = ""
    """How far a snapshot apart from the stream is, as the kind's reader writes it; empty: none to take, or done."""
    term: int = 0
    """Grows with every change of the owner; saves are fenced by it."""

    @property
    def aggregate_id(self) -> str:
        """Subject and Kafka key of the source's own events."""
        return f"{self.tenant_id}/{self.source_id}"

    def masked(self) -> Source:
        """Return the source without the password."""
        return replace(self, url=mask_url(self.url))


def mask_url(url: str) -> str:
    """Return a url without its password: `mariadb://user:***@host:3306/crm`."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, address = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:***@{address}").geturl()


def without_secret(text: str, url: str) -> str:
    """Return an error's text without the url's password, which a driver may repeat."""
    password = urlsplit(url).password
    if not password:
        return text
    for form in (password, unquote(password)):
        text = text.replace(form, "***")
    return text


def check_rule(rule: CustomerRule | None, tables: Sequence[str]) -> None:
    """Check that the rule's table is captured. Raises InvalidArgument."""
    if rule is not None and rule.table not in tables:
        raise InvalidArgument(
            f"customer_rule.table {rule.table!r} is not one of the source's tables.",
            field="source.customer_rule.table",
        )
