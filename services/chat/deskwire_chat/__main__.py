"""`python -m deskwire_chat serve|migrate|check-config`."""

from deskwire_chat.app import build
from deskwire_chat.config import Settings
from deskwire_common.lifecycle import service_main

if __name__ == "__main__":
    service_main("chat", Settings, build, package="deskwire_chat")
