"""What can't be captured without losing changes is refused when it is asked for, and told what to set."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import pytest

from deskwire.cdc.v1 import source_pb2, source_service_pb2, source_service_pb2_grpc
from deskwire_cdc.app import build
from deskwire_cdc.config import Settings
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import DeskwireError, from_rpc_error
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from support.servers import DatabaseServer
from support.suite import new_id

Refusal = Callable[..., Any]


@pytest.fixture
async def refusal(
    kafka: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> AsyncIterator[Refusal]:
    """`await refusal(source)`: the error that CreateSource ends with; it leaves nothing behind."""
    database = f"sqlite:///{tmp_path / 'cdc.db'}"
    await migrate(database, "deskwire_cdc")
    settings = Settings(
        grpc_listen="127.0.0.1:0",
        keys_file=keys_file,
        database_url=database,
        kafka=kafka,
        chat_target="127.0.0.1:1",
        sqlite_root=tmp_path,
    )
    async with running("cdc", settings, build) as runtime:

        async def refused(
            source: source_pb2.Source, *, role: Role = Role.OPERATOR, system: str = ""
        ) -> DeskwireError:
            token = signer.mint(tenant="t", role=role, subject="me", system=system)
            async with make_channel(f"127.0.0.1:{runtime.port}", token=lambda: token) as channel:
                stub = source_service_pb2_grpc.SourceServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.CreateSource(
                        source_service_pb2.CreateSourceRequest(request_id=new_id(), source=source)
                    )
                kept = await stub.ListSources(source_service_pb2.ListSourcesRequest())
            assert not kept.sources
            return from_rpc_error(caught.value)

        yield refused


def mariadb_source(url: str, *tables: str, **fields: Any) -> source_pb2.Source:
    return source_pb2.Source(
        source_id="s-1",
        kind=source_pb2.SOURCE_KIND_MARIADB,
        url=urlunsplit(urlsplit(url)._replace(scheme="mariadb")),
        system_id="crm:main",
        tables=tables or ["orders"],
        **fields,
    )


def sqlite_source(path: Path, *tables: str, **fields: Any) -> source_pb2.Source:
    return source_pb2.Source(
        source_id="s-1",
        kind=source_pb2.SOURCE_KIND_SQLITE,
        url=f"sqlite:///{path}",
        system_id="crm:main",
        tables=tables or ["orders"],
        **fields,
    )


@contextmanager
def variable(server: DatabaseServer, name: str, value: str, usual: str) -> Iterator[None]:
    """A global variable that is another one for a while."""
    server.execute(f"SET GLOBAL {name} = {value}")
    try:
        yield
    finally:
        server.execute(f"SET GLOBAL {name} = {usual}")


def is_unusable(error: DeskwireError, setting: str) -> bool:
    return (error.code.name, error.reason_name, error.metadata["setting"]) == (
        "FAILED_PRECONDITION",
        "SOURCE_UNUSABLE",
        setting,
    )


@pytest.mark.parametrize(
    ("name", "value", "usual"),
    [
        ("binlog_format", "'STATEMENT'", "'ROW'"),
        ("binlog_format", "'MIXED'", "'ROW'"),
        ("binlog_row_image", "'MINIMAL'", "'FULL'"),
        ("binlog_row_metadata", "'MINIMAL'", "'FULL'"),
        ("log_bin_compress", "1", "0"),
    ],
)
async def test_a_binlog_without_whole_rows(
    refusal: Refusal, mariadb: DatabaseServer, name: str, value: str, usual: str
) -> None:
    url = mariadb.fresh()
    mariadb.execute(
        "CREATE TABLE orders (id INT PRIMARY KEY, state TEXT)", urlsplit(url).path.strip("/")
    )
    with variable(mariadb, name, value, usual):
        error = await refusal(mariadb_source(url))
    assert is_unusable(error, name)
    assert error.message.startswith(f"Set {name}=")
    mariadb.drop(url)


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        ("CREATE TABLE other (id INT PRIMARY KEY)", "tables"),
        ("CREATE TABLE orders (id INT, state TEXT)", "primary_key"),
        ("CREATE TABLE orders (id TEXT, PRIMARY KEY (id(8)))", "primary_key"),
        ("CREATE TABLE orders (id INT PRIMARY KEY) ENGINE=MyISAM", "engine"),
        ("CREATE TABLE orders (id INT PRIMARY KEY, at POINT)", "column_type"),
        ("CREATE VIEW orders AS SELECT 1 AS id", "tables"),
    ],
)
async def test_a_table_that_cannot_be_followed(
    refusal: Refusal, mariadb: DatabaseServer, table: str, setting: str
) -> None:
    url = mariadb.fresh()
    mariadb.execute(table, urlsplit(url).path.strip("/"))
    assert is_unusable(await refusal(mariadb_source(url)), setting)
    mariadb.drop(url)


async def test_a_rule_that_names_what_is_not_there(
    refusal: Refusal, mariadb: DatabaseServer
) -> None:
    url = mariadb.fresh()
    mariadb.execute(
        "CREATE TABLE orders (id INT PRIMARY KEY, phone TEXT)", urlsplit(url).path.strip("/")
    )
    rule = source_pb2.CustomerRule(table="orders", id_column="id", columns={"mobile": "telephone"})
    error = await refusal(mariadb_source(url, customer_rule=rule))
    assert is_unusable(error, "customer_rule")
    assert error.message == "Table orders has no column telephone."
    rule = source_pb2.CustomerRule(
        table="orders", id_column="id", columns={"mobile": "phone"}, version_column="phone"
    )
    assert is_unusable(await refusal(mariadb_source(url, customer_rule=rule)), "customer_rule")
    mariadb.drop(url)


async def test_a_server_that_does_not_let_us_in(refusal: Refusal, mariadb: DatabaseServer) -> None:
    parts = urlsplit(mariadb.fresh())
    wrong = parts._replace(netloc=f"nobody:s3cret@{mariadb.host}:{mariadb.port}")
    error = await refusal(mariadb_source(urlunsplit(wrong)))
    assert is_unusable(error, "url")
    assert "s3cret" not in error.message
    away = parts._replace(netloc="nobody:s3cret@127.0.0.1:1")
    error = await refusal(mariadb_source(urlunsplit(away)))
    assert is_unusable(error, "url")
    assert "s3cret" not in error.message


async def test_a_sqlite_file_that_cannot_be_captured(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    assert is_unusable(await refusal(sqlite_source(path)), "url")  # it isn't there
    assert not path.exists()
    path.write_text("this is no database, however long the text is that stands in it" * 20)
    assert is_unusable(await refusal(sqlite_source(path)), "url")
    path.unlink()
    with sqlite3.connect(path) as shop:
        shop.execute("CREATE TABLE keyless (state TEXT)")
        shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        shop.execute("CREATE VIEW seen AS SELECT * FROM orders")
    assert is_unusable(await refusal(sqlite_source(path, "nothing")), "tables")
    assert is_unusable(await refusal(sqlite_source(path, "seen")), "tables")
    assert is_unusable(await refusal(sqlite_source(path, "keyless")), "primary_key")
    rule = source_pb2.CustomerRule(table="orders", id_column="number", columns={"email": "id"})
    error = await refusal(sqlite_source(path, customer_rule=rule))
    assert is_unusable(error, "customer_rule")
    with sqlite3.connect(path) as shop:
        # A refused source has left nothing in the file.
        kinds = {row[0] for row in shop.execute("SELECT type FROM sqlite_master")}
    assert kinds == {"table", "view"}


async def test_a_file_outside_of_the_allowed_folder(refusal: Refusal, tmp_path: Path) -> None:
    error = await refusal(sqlite_source(tmp_path / ".." / "elsewhere.db"))
    assert "DESKWIRE_SQLITE_ROOT" in error.message


async def test_another_systems_source(refusal: Refusal, tmp_path: Path) -> None:
    error = await refusal(sqlite_source(tmp_path / "x.db"), role=Role.INTEGRATION, system="erp:x")
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
