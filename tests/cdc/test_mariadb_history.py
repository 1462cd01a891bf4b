"""A MariaDB of its own: one whose binlog begins anew, and whose names are in small letters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from deskwire_cdc.domain.sources import SourceUnusable
from deskwire_cdc.sources.mariadb.position import Position
from support.capture import MARKER, Crm, batches_until, has_marker, reader_of, source_of
from support.servers import DatabaseServer, mariadb_server


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[DatabaseServer]:
    folder = servers_folder / "lower"
    folder.mkdir()
    folder.chmod(0o755)
    with mariadb_server(folder, "--lower-case-table-names=1") as server:
        yield server


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", Position()),
        ("0-1-56,7-1-3", Position({"0": "0-1-56", "7": "7-1-3"})),
        ("0-1-56+0-1-57:3", Position({"0": "0-1-56"}, "0-1-57", 3)),
        (
            "0-1-56+0-1-57:3@a:b@c.000007:47",
            Position({"0": "0-1-56"}, "0-1-57", 3, "a:b@c.000007", 47),
        ),
    ],
)
def test_positions_as_they_are_saved(text: str, position: Position) -> None:
    assert Position.parse(text) == position
    assert position.text() == text


@pytest.mark.parametrize(
    ("path", "table", "setting"),
    [
        ("/crmshop", "Customers", "tables"),
        ("/CrmShop", "customers", "url"),
        ("/crmshop", "customers", ""),
    ],
)
async def test_names_in_another_case_than_the_servers(
    server: DatabaseServer, path: str, table: str, setting: str
) -> None:
    """The binlog has the server's; a reader that looks for another one finds nothing."""
    url = server.url("CrmShop")
    server.execute("CREATE TABLE IF NOT EXISTS Customers (id INT PRIMARY KEY)", "crmshop")
    reader = reader_of(source_of(urlunsplit(urlsplit(url)._replace(path=path)), table))
    try:
        await reader.check()
        found = ""
    except SourceUnusable as error:
        found = error.setting
    finally:
        await reader.close()
    assert found == setting


async def test_a_binlog_that_was_begun_anew(server: DatabaseServer) -> None:
    """Its GTIDs count from 1 again, and pass the saved one some day: that position stays refused."""
    crm = Crm(server)
    crm.run("CREATE TABLE c (id INT PRIMARY KEY)")
    batches = await crm.streamed("INSERT INTO c VALUES (1)", tables=["c"])
    position = batches[-1].position
    reader = reader_of(source_of(crm.url, "c", MARKER))
    crm.run("FLUSH BINARY LOGS", f"INSERT INTO {MARKER} VALUES ()")
    assert await batches_until(reader, position, has_marker)
    await reader.close()

    crm.run("RESET MASTER", *["INSERT INTO c SELECT MAX(id) + 1 FROM c"] * 40)
    server_now = Position.parse(str(crm.run("SELECT @@gtid_binlog_pos")[0][0]))
    numbers = [int(each.done["0"].split("-")[2]) for each in (Position.parse(position), server_now)]
    assert numbers[0] < numbers[1]
    reader = reader_of(source_of(crm.url, "c", MARKER))
    with pytest.raises(SourceUnusable) as caught:
        await batches_until(reader, position, has_marker)
    await reader.close()
    assert caught.value.setting == "binlog_history"
    crm.drop()


async def test_a_replica_that_does_not_log_what_it_replicates(server: DatabaseServer) -> None:
    """The last one: the server takes itself for a replica from here on."""
    crm = Crm(server)
    reader = reader_of(source_of(crm.url, MARKER))
    await reader.check()
    crm.run("SET GLOBAL gtid_slave_pos = CONCAT(@@GLOBAL.gtid_binlog_pos, ',77-2-1')")
    with pytest.raises(SourceUnusable) as caught:
        await reader.check()
    await reader.close()
    assert caught.value.setting == "log_slave_updates"
    crm.drop()
