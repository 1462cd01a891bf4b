"""`python -m deskwire_cli`: the deskwire command."""

from __future__ import annotations

from deskwire_cli.main import main

main()
