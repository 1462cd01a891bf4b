"""`python -m deskwire_cdc serve|migrate|check-config`."""

from __future__ import annotations

from deskwire_cdc.app import build
from deskwire_cdc.config import Settings
from deskwire_common.lifecycle import service_main

if __name__ == "__main__":
    service_main("cdc", Settings, build, package="deskwire_cdc")
