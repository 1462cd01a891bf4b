"""Durability: what the settings of a database promise about a power cut."""

from __future__ import annotations

from collections.abc import Mapping

from deskwire_common.db.database import Database


async def durability(db: Database) -> dict[str, str]:
    """The settings that decide what the database promises about a power cut."""
    report = {"dialect": db.dialect}
    if db.dialect == "sqlite":
        async with db.transaction() as uow:
            for name in ("journal_mode", "synchronous"):
                value = (await uow.connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                report[name] = str(value).lower()
        report["synchronous"] = {"0": "off", "1": "normal", "2": "full", "3": "extra"}[
            report["synchronous"]
        ]
        return report
    async with db.read() as connection:
        if db.dialect == "postgresql":
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                report[name] = str((await connection.exec_driver_sql(f"SHOW {name}")).scalar_one())
        else:
            for name in ("innodb_flush_log_at_trx_commit", "innodb_doublewrite"):
                value = (await connection.exec_driver_sql(f"SELECT @@GLOBAL.{name}")).scalar_one()
                report[name] = str(value)
    return report


def is_durable(report: Mapping[str, str]) -> bool:
    """Whether a committed transaction survives a power cut, by the settings that `durability` reported."""
    match report["dialect"]:
        case "sqlite":
            return report["synchronous"] in {"full", "extra"}
        case "postgresql":
            return report["fsync"] == "on" and report["synchronous_commit"] in {
                "on",
                "local",
                "remote_write",
                "remote_apply",
            }
        case _:
            return report["innodb_flush_log_at_trx_commit"] == "1"
