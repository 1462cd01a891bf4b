"""`python -m deskwire_tickets serve|migrate|check-config`."""

from __future__ import annotations

from deskwire_common.lifecycle import service_main
from deskwire_tickets.app import build
from deskwire_tickets.config import Settings

if __name__ == "__main__":
    service_main("tickets", Settings, build, package="deskwire_tickets")
