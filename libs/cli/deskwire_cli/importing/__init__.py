"""`deskwire import FILE`: take over the history of another system."""

from deskwire_cli.importing.command import import_file

__all__ = ["import_file"]
