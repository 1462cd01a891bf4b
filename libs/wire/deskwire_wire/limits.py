"""Sizes of the protocol that both sides count on."""

from __future__ import annotations

from typing import Final

SUBPROTOCOL: Final = "deskwire.v1"
"""The WebSocket subprotocol that a client offers and the gateway takes."""

MAX_TEXT: Final = 8_000
"""Characters of a message's text, as conversation.proto has it."""

MAX_CLIENT_MSG_ID: Final = 64
"""Characters of a Send's client_msg_id, as frame.proto has it."""

MAX_TRACEPARENT: Final = 55
"""Characters of a traceparent, as frame.proto has it."""
