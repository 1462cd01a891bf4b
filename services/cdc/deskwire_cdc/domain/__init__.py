"""The rules of change capture, by noun. Pure: no I/O, no messages, no clock reads. Times are microseconds."""

from __future__ import annotations

from deskwire_cdc.domain import changes, customers, sources

__all__ = ["changes", "customers", "sources"]
