"""`python -m deskwire_events serve|migrate|check-config`."""

from __future__ import annotations

from deskwire_common.lifecycle import service_main
from deskwire_events.app import build
from deskwire_events.config import Settings

if __name__ == "__main__":
    service_main("events", Settings, build, package="deskwire_events")
