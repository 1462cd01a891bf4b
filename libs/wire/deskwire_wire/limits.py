"""Sizes of the protocol that both sides rely on."""

from __future__ import annotations

from typing import Final

SUBPROTOCOL: Final = "deskwire.v1"
"""The WebSocket subprotocol that a client offers and the gateway accepts."""

MAX_TEXT: Final = 8_000
"""The most characters of a message's text, as in conversation.proto."""

MAX_MESSAGE_BYTES: Final = 36_864
"""The most bytes of a client's message, unless the gateway's Welcome has another limit.

MAX_TEXT characters of any script, four bytes each, and 4,864 bytes for what surrounds them.
"""

MAX_CLIENT_MSG_ID: Final = 64
"""The most characters of a Send's client_msg_id, as in frame.proto."""

MAX_TRACEPARENT: Final = 55
"""The most characters of a traceparent, as in frame.proto."""
