"""`python -m deskwire_gateway serve|check-config`."""

from deskwire_common.lifecycle import service_main
from deskwire_gateway.app import build
from deskwire_gateway.config import Settings
from deskwire_gateway.supervisor import supervise

if __name__ == "__main__":
    service_main("gateway", Settings, build, supervise=supervise)
