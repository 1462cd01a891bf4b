"""What can't be captured without losing changes is refused when it is asked for, and told what to set."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import pytest

from deskwire.cdc.v1 import source_pb2, source_service_pb2, source_service_pb2_grpc
from deskwire_cdc.app import build
from deskwire_cdc.config import Settings
from deskwire_cdc.domain.sources import Source, SourceUnreachable
from deskwire_cdc.sources import ReaderOptions, open_reader
from deskwire_cdc.sources.mariadb.server import NOT_THERE
from deskwire_cdc.sources.sqlite import files
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.clock import SystemClock
from deskwire_common.errors import DeskwireError, from_rpc_error
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from deskwire_common.targets import Targets, parse_rules
from support.capture import reader_of, source_of
from support.listening import listening
from support.servers import DatabaseServer
from support.suite import new_id

Refusal = Callable[..., Any]


@pytest.fixture
def crm(tmp_path: Path) -> Path:
    """The folder whose files may be captured."""
    folder = tmp_path / "crm"
    folder.mkdir()
    return folder


@pytest.fixture
async def refusal(
    kafka: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> AsyncIterator[Refusal]:
    """`await refusal(source)`: the error that CreateSource ends with; it leaves nothing behind.

    SQLite files may be captured in the folder `crm`.
    """
    database = f"sqlite:///{tmp_path / 'cdc.db'}"
    await migrate(database, "deskwire_cdc")
    settings = Settings(
        grpc_listen="127.0.0.1:0",
        keys_file=keys_file,
        database_url=database,
        kafka=kafka,
        chat_target="127.0.0.1:1",
        sqlite_root=str(tmp_path / "crm"),
        source_targets="127.0.0.0/8:*",
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


def sqlite_source(path: Path | str, *tables: str, **fields: Any) -> source_pb2.Source:
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
        ("CREATE TABLE orders (id INT PRIMARY KEY, at TEXT COMPRESSED)", "column_type"),
        (
            "CREATE TABLE orders (id INT PRIMARY KEY, at TEXT CHARACTER SET eucjpms)",
            "character_set",
        ),
        ("CREATE TABLE orders (id INT PRIMARY KEY) WITH SYSTEM VERSIONING", "system_versioning"),
    ],
)
async def test_a_table_that_cannot_be_followed(
    refusal: Refusal, mariadb: DatabaseServer, table: str, setting: str
) -> None:
    url = mariadb.fresh()
    mariadb.execute(table, urlsplit(url).path.strip("/"))
    assert is_unusable(await refusal(mariadb_source(url)), setting)
    mariadb.drop(url)


@pytest.mark.parametrize("action", ["ON DELETE CASCADE", "ON DELETE SET NULL", "ON UPDATE CASCADE"])
async def test_a_table_whose_rows_change_below_the_binlog(
    refusal: Refusal, mariadb: DatabaseServer, action: str
) -> None:
    url = mariadb.fresh()
    database = urlsplit(url).path.strip("/")
    mariadb.execute("CREATE TABLE people (id INT PRIMARY KEY)", database)
    mariadb.execute(
        "CREATE TABLE orders (id INT PRIMARY KEY, who INT, "
        f"CONSTRAINT `o'w` FOREIGN KEY (who) REFERENCES people (id) {action})",
        database,
    )
    error = await refusal(mariadb_source(url))
    assert is_unusable(error, "foreign_key")
    mends = error.message[error.message.index("ALTER TABLE") :].removesuffix(".")
    mariadb.execute(mends, database)
    reader = reader_of(source_of(url, "orders"))
    await reader.check()
    await reader.close()
    mariadb.execute("DROP TABLE orders, people", database)
    mariadb.drop(url)


async def test_a_table_with_times_of_an_old_format(
    refusal: Refusal, mariadb: DatabaseServer
) -> None:
    url = mariadb.fresh()
    database = urlsplit(url).path.strip("/")
    with variable(mariadb, "mysql56_temporal_format", "OFF", "ON"):
        mariadb.execute("CREATE TABLE orders (id INT PRIMARY KEY, at TIME)", database)
    error = await refusal(mariadb_source(url))
    assert is_unusable(error, "column_type")
    mariadb.execute(error.message[error.message.index("ALTER TABLE") :].removesuffix("."), database)
    reader = reader_of(source_of(url, "orders"))
    await reader.check()
    await reader.close()
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


async def test_a_sqlite_file_that_cannot_be_captured(refusal: Refusal, crm: Path) -> None:
    path = crm / "shop.db"
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


async def test_one_text_for_every_file_that_may_not_be_captured(
    refusal: Refusal, crm: Path, tmp_path: Path
) -> None:
    own = tmp_path / "cdc.db"  # change capture's own database, beside the folder
    outside = tmp_path / "shop.db"
    with sqlite3.connect(outside) as shop:
        shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    (crm / "text.db").write_text(
        "this is no database, however long the text is that stands in it" * 20
    )
    (crm / "unreadable.db").write_bytes(b"SQLite format 3\x00")
    (crm / "unreadable.db").chmod(0)
    (crm / "link.db").symlink_to(own)
    (crm / "hard.db").hardlink_to(own)
    (crm / "out.db").symlink_to(outside)
    (crm / "circle.db").symlink_to(crm / "circle.db")
    (crm / "folder.db").mkdir()
    os.mkfifo(crm / "pipe.db")
    before = tables_of(own), tables_of(outside)
    for name in (
        "missing.db", "text.db", "unreadable.db", "link.db", "hard.db", "out.db", "circle.db", "folder.db",
        "pipe.db", "../shop.db", "../cdc.db", "../missing.db", "../../../../etc/shadow", "/etc/shadow",
        "/etc/missing", "a\0b",
    ):  # fmt: skip
        error = await refusal(sqlite_source(f"{crm}/{name}".replace("//", "/"), "sources"))
        assert is_unusable(error, "url"), name
        assert error.message == files.NOT_THERE, name
    assert (tables_of(own), tables_of(outside)) == before
    assert not (crm / "missing.db").exists()


async def test_without_a_folder_there_are_no_sqlite_sources(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as shop:
        shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    for roots in ((), (tmp_path / "elsewhere",)):
        with pytest.raises(SourceUnreachable) as caught:
            files.Files(roots).allowed(path)
        assert caught.value.message == files.NOT_THERE
    assert files.Files((tmp_path,)).allowed(path) == path
    # A folder of the suite's is never captured, unless the operator names a folder deeper in it.
    for own, allowed in ((tmp_path, False), (tmp_path.parent, True), (tmp_path / "home", True)):
        try:
            files.Files((tmp_path,), (own,)).allowed(path)
        except SourceUnreachable:
            assert not allowed
        else:
            assert allowed


def tables_of(path: Path) -> list[Any]:
    """All that a database's schema has."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM sqlite_master ORDER BY name").fetchall()


async def test_another_systems_source(refusal: Refusal, mariadb: DatabaseServer) -> None:
    url = mariadb.fresh()
    error = await refusal(mariadb_source(url), role=Role.INTEGRATION, system="erp:x")
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    mariadb.drop(url)


async def test_files_are_an_operators_matter(refusal: Refusal, crm: Path) -> None:
    path = crm / "shop.db"
    with sqlite3.connect(path) as shop:
        shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    before = tables_of(path)
    for name in ("shop.db", "missing.db", "../cdc.db"):
        error = await refusal(sqlite_source(crm / name), role=Role.INTEGRATION, system="crm:main")
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert tables_of(path) == before


async def test_a_file_that_is_captured_already(refusal: Refusal, crm: Path) -> None:
    path = crm / "shop.db"
    for owner, named in (("t/s-2", True), ("other/secret-name", False)):
        with closing(sqlite3.connect(path)) as shop:
            shop.executescript(
                "CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY); DROP TABLE IF EXISTS _deskwire_state;"
                "CREATE TABLE _deskwire_state (name TEXT PRIMARY KEY, value TEXT NOT NULL);"
                f"INSERT INTO _deskwire_state VALUES ('owner', '{owner}')"
            )
        error = await refusal(sqlite_source(path))
        assert is_unusable(error, "_deskwire_state")
        assert (owner.partition("/")[2] in error.message) is named
        assert "other" not in error.message.replace("another", "")


async def test_one_text_for_every_address_where_no_mariadb_answers(refusal: Refusal) -> None:
    async with (
        listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as http,
        listening(b"\x01\x00\x00\x00\x0a") as odd,
    ):
        for address in (
            "127.0.0.1:1", http, odd,
            # Refused by the rule, before anything is resolved or dialled; on this machine, were it not.
            "[::1]:3306", "crm_db!:3306",
        ):  # fmt: skip
            error = await refusal(mariadb_source(f"mysql://u:s3cret@{address}/crm"))
            assert is_unusable(error, "url"), address
            assert error.message == NOT_THERE, address


async def test_a_name_that_turns_inward_is_not_followed(mariadb: DatabaseServer) -> None:
    """Each connection resolves its name anew, and goes to the address that was checked."""
    url = mariadb.fresh()
    mariadb.execute("CREATE TABLE orders (id INT PRIMARY KEY)", urlsplit(url).path.strip("/"))
    answers = iter([["127.0.0.1"], ["127.0.0.1"], ["::1"]])
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return next(answers)

    parts = urlsplit(url)
    named = parts._replace(
        scheme="mariadb", netloc=parts.netloc.replace(mariadb.host, "crm.example.org")
    )
    source = Source(
        tenant_id="t", source_id="s-1", incarnation=new_id(), kind="mariadb", url=urlunsplit(named),
        system_id="crm:main", tables=("orders",), customer_rule=None, snapshot=False, created_at=0, version=1,
    )  # fmt: skip
    options = ReaderOptions(
        clock=SystemClock(),
        targets=Targets(parse_rules("127.0.0.0/8:*"), resolve),
    )
    reader = open_reader(source, options)
    try:
        await reader.check()
        await reader.check()
        with pytest.raises(SourceUnreachable) as caught:
            await reader.check()
    finally:
        await reader.close()
    assert asked == ["crm.example.org"] * 3
    assert caught.value.message == NOT_THERE
    assert "::1" in caught.value.detail
    mariadb.drop(url)


async def test_a_tenant_has_so_many_sources_and_tables(
    kafka: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> None:
    crm = tmp_path / "crm"
    crm.mkdir()
    for number in range(3):
        with closing(sqlite3.connect(crm / f"{number}.db")) as shop:
            for table in ("a", "b", "c"):
                shop.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY)")
    database = f"sqlite:///{tmp_path / 'cdc.db'}"
    await migrate(database, "deskwire_cdc")
    settings = Settings(
        grpc_listen="127.0.0.1:0", keys_file=keys_file, database_url=database, kafka=kafka,
        chat_target="127.0.0.1:1", sqlite_root=str(crm), max_sources=2, max_tables=4,
    )  # fmt: skip
    async with running("cdc", settings, build) as runtime:
        token = signer.mint(tenant="t", role=Role.OPERATOR, subject="me")
        async with make_channel(f"127.0.0.1:{runtime.port}", token=lambda: token) as channel:
            stub = source_service_pb2_grpc.SourceServiceStub(channel)

            async def create(number: int, *tables: str) -> str:
                source = sqlite_source(crm / f"{number}.db", *tables)
                source.source_id = f"s-{number}"
                request = source_service_pb2.CreateSourceRequest(request_id=new_id(), source=source)
                try:
                    await stub.CreateSource(request)
                except grpc.aio.AioRpcError as error:
                    return error.details() or ""
                return ""

            assert await create(0, "a") == ""
            assert await create(1, "a", "b", "c", "d") == "a tenant may have 4 captured tables"
            assert await create(1, "a", "b", "c") == ""
            assert await create(2, "a") == "a tenant may have 2 sources"


async def test_two_sources_whose_topics_kafka_takes_for_one(
    kafka: str, keys_file: Path, signer: TokenSigner, crm: Path, tmp_path: Path
) -> None:
    """`deskwire.changes.shop.eu_orders` and `deskwire.changes.shop_eu.orders`: the second one could never start."""
    for name in ("a", "b"):
        with closing(sqlite3.connect(crm / f"{name}.db")) as shop:
            for table in ("orders", "eu_orders"):
                shop.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY)")
    database = f"sqlite:///{tmp_path / 'cdc.db'}"
    await migrate(database, "deskwire_cdc")
    settings = Settings(
        grpc_listen="127.0.0.1:0", keys_file=keys_file, database_url=database, kafka=kafka,
        chat_target="127.0.0.1:1", sqlite_root=str(crm),
    )  # fmt: skip
    shop = f"shop{new_id()[:8]}"
    async with running("cdc", settings, build) as runtime:

        async def create(
            tenant: str, file: str, source_id: str, table: str
        ) -> DeskwireError | None:
            token = signer.mint(tenant=tenant, role=Role.OPERATOR, subject="me")
            source = sqlite_source(crm / file, table)
            source.source_id = source_id
            request = source_service_pb2.CreateSourceRequest(request_id=new_id(), source=source)
            async with make_channel(f"127.0.0.1:{runtime.port}", token=lambda: token) as channel:
                try:
                    await source_service_pb2_grpc.SourceServiceStub(channel).CreateSource(request)
                except grpc.aio.AioRpcError as error:
                    return from_rpc_error(error)
            return None

        assert await create("t", "a.db", shop, "eu_orders") is None
        error = await create("t", "b.db", f"{shop}_eu", "orders")
        assert error is not None
        assert error.violations[0][0] == "source.source_id"
        assert f"source {shop}:" in error.message
        other = await create("u", "b.db", f"{shop}_eu", "orders")
        assert other is not None
        assert shop not in other.message
        assert await create("t", "b.db", f"{shop}_eu", "eu_orders") is None
