"""What a store of attachments' bytes is asked for; `directory` and `bucket` are the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deskwire_chat.domain.attachments import Attachment


@dataclass(frozen=True, slots=True)
class Signed:
    """One HTTP request that needs no token: whoever has the URL may do it until it expires."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class AttachmentStore(Protocol):
    """Where the bytes are.

    What is uploaded waits apart until `promote`, so that nobody can replace what was checked.
    """

    async def upload(
        self, attachment_id: str, *, content_type: str, size: int, sha256: str, seconds: int
    ) -> Signed:
        """Return how to bring the bytes of a PENDING attachment, for so long. Raises Unavailable."""
        ...

    async def download(self, item: Attachment, *, seconds: int) -> Signed:
        """Return how to fetch the bytes of a READY attachment, for so long. Raises Unavailable."""
        ...

    async def promote(self, item: Attachment) -> None:
        """Check the uploaded bytes and put them where uploads don't reach; done already: nothing.

        Raises FailedPrecondition (ATTACHMENT_NOT_READY) when they aren't there or aren't as declared, Unavailable.
        """
        ...

    async def remove(self, item: Attachment) -> None:
        """Remove the bytes, wherever they are; also when there are none. Raises Unavailable."""
        ...

    async def sweep(self, *, before: float) -> int:
        """Remove what was uploaded before that time (seconds since 1970) and never promoted; how many.

        Raises Unavailable.
        """
        ...
