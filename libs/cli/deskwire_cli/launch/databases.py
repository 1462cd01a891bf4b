"""The databases of a plan."""

from __future__ import annotations

from deskwire_cli.launch.plan import STORES, Plan
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.progress import say
from deskwire_common.errors import DeskwireError


async def migrate(plan: Plan) -> None:
    """Bring every database to this program's schema. Raises Problem."""
    from deskwire_common.migrations import migrate as migrate_one  # noqa: PLC0415 - slow to import

    for service in STORES:
        try:
            applied = await migrate_one(plan.database(service), f"deskwire_{service}")
        except (DeskwireError, OSError) as error:
            raise Problem(f"the database of {service} can't be migrated: {error}") from None
        if applied:
            say(f"{service:<10} database at schema {applied[-1]}")
