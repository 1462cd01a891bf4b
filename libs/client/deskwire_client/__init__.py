"""deskwire_client: the small asyncio client of the wire protocol."""

from deskwire_client.client import Client
from deskwire_client.errors import Closed, Refused

__all__ = ["Client", "Closed", "Refused"]
