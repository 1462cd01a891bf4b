"""The whole suite on this machine: which processes, with which settings, in which order."""

from deskwire_cli.launch.launch import DRAIN_SECONDS, Launch
from deskwire_cli.launch.plan import SERVICES, Plan, make_plan, service_of
from deskwire_cli.launch.probes import serving

__all__ = [
    "DRAIN_SECONDS",
    "SERVICES",
    "Launch",
    "Plan",
    "make_plan",
    "service_of",
    "serving",
]
