"""Mapping from the domain to the contract: its messages, its frames, and the contents of messages."""

from deskwire_chat.views import content, frames, messages

__all__ = ["content", "frames", "messages"]
