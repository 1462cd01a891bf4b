"""`deskwire replay FILE`: play recorded dialogues, then prove every turn stored, in order, once."""

from deskwire_cli.replay.command import replay
from deskwire_cli.replay.outcome import summary

__all__ = ["replay", "summary"]
