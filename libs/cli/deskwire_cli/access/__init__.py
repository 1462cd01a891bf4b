"""`deskwire tenant`, `agent` and `key`: who may come in, and who may sign tokens."""

from deskwire_cli.access.agents import agent_app
from deskwire_cli.access.keys import key_app
from deskwire_cli.access.tenants import tenant_app

__all__ = ["agent_app", "key_app", "tenant_app"]
