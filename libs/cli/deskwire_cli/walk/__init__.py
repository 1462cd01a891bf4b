"""One real conversation through all five services, the demo CRM and Kafka, as a timeline."""

from deskwire_cli.walk.command import play, walk
from deskwire_cli.walk.steps import Walk

__all__ = ["Walk", "play", "walk"]
