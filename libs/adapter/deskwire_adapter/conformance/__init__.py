"""The conformance kit: plays what the hub, the network and time do to an adapter, and says what it got wrong.

`deskwire adapter test` is its command. From a test of your own: `report = await examine(Subject("127.0.0.1:7500"))`.
"""

from __future__ import annotations

from deskwire_adapter.conformance.kit import Finding, Grade, Report, examine
from deskwire_adapter.conformance.subject import NotThere, Subject

__all__ = ["Finding", "Grade", "NotThere", "Report", "Subject", "examine"]
