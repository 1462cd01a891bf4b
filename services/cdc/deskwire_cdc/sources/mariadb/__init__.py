"""MariaDB: settings, tables and snapshots over SQL; the row changes come from the binlog, by GTID.

A user needs `GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.*` and `GRANT SELECT` on the database. Not seen, since it
isn't in the binlog: what sessions write with `sql_log_bin=0`.
"""

from __future__ import annotations

from typing import Final

from deskwire_cdc.sources.mariadb.reader import MariadbReader
from deskwire_cdc.sources.mariadb.server import Address
from deskwire_cdc.sources.port import SourceKind

__all__ = ["KIND"]

KIND: Final = SourceKind("mariadb", check_url=Address.parse, reader=MariadbReader)
