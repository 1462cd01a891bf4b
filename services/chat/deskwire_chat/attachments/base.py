"""The interface of stores for attachments' bytes; `directory` and `bucket` implement it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deskwire_chat.domain.attachments import Attachment


@dataclass(frozen=True, slots=True)
class Signed:
    """One HTTP request that needs no token: whoever has the URL may make it until it expires."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class AttachmentStore(Protocol):
    """Holds the bytes of attachments.

    Uploaded bytes wait apart until `promote`, so that nobody can replace bytes that were checked.
    """

    async def upload(
        self, attachment_id: str, *, content_type: str, size: int, sha256: str, seconds: int
    ) -> Signed:
        """Return how to upload the bytes of a PENDING attachment, valid for `seconds`. Raises Unavailable."""
        ...

    async def download(self, item: Attachment, *, seconds: int) -> Signed:
        """Return how to fetch the bytes of a READY attachment, valid for `seconds`. Raises Unavailable."""
        ...

    async def promote(self, item: Attachment) -> None:
        """Check the uploaded bytes and put them where uploads don't reach; does nothing when that is done already.

        Raises FailedPrecondition (ATTACHMENT_NOT_READY) when they are missing or not as declared, Unavailable.
        """
        ...

    async def remove(self, item: Attachment) -> None:
        """Remove the bytes, uploaded or promoted, if there are any. Raises Unavailable."""
        ...

    async def sweep(self, *, before: float) -> int:
        """Remove uploads from before a time (seconds since 1970) that were never promoted; return how many.

        Raises Unavailable.
        """
        ...
