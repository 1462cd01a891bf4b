"""`python -m deskwire_gateway serve|check-config [--workers N]`."""

import argparse
import os
import sys

from deskwire_common.lifecycle import service_main
from deskwire_gateway.app import build
from deskwire_gateway.config import Settings
from deskwire_gateway.supervisor import supervise

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workers", default=os.environ.get("DESKWIRE_WORKERS", "1"))
    options, sys.argv[1:] = parser.parse_known_args()
    os.environ["DESKWIRE_WORKERS"] = options.workers
    service_main("gateway", Settings, build, supervise=supervise)
