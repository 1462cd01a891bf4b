"""The errors of a process that doesn't own a partition, or not any more."""

from __future__ import annotations

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_common.errors import Unavailable


class NotOwner(Unavailable):
    """Another process owns the partition, or for a moment none does: nothing was done."""

    default_reason = reasons.ERROR_REASON_NOT_OWNER

    def __init__(self) -> None:
        super().__init__(
            "this process doesn't own the conversation; send it again", retry_after=0.2
        )
