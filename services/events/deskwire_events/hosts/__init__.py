"""Processes of adapters that the hub runs itself."""

from __future__ import annotations

from deskwire_events.hosts.host import AdapterHost, HostLimits, NotRunning
from deskwire_events.hosts.process import AdapterProcess

__all__ = ["AdapterHost", "AdapterProcess", "HostLimits", "NotRunning"]
