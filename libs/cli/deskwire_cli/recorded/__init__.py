"""Recorded dialogues of other systems, read from a file: oddities are counted and placed, and nothing is invented."""
