"""What chat says of its things: domain → contract, as messages, as frames, and what is in a message."""

from deskwire_chat.views import content, frames, messages

__all__ = ["content", "frames", "messages"]
