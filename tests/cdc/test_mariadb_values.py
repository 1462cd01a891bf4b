"""A MariaDB row is the same whether a snapshot reads it or the binlog brings it, and as the database holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deskwire_cdc.domain.changes import Operation
from support.capture import (
    MARKER,
    Crm,
    changes_of,
    reader_of,
    snapshot_of,
    source_of,
)
from support.servers import DatabaseServer

LENIENT = "SET sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'"

# Column type, literal, JSON.
VALUES: list[tuple[str, str, Any]] = [
    ("YEAR", "0000", 0),
    ("YEAR", "1901", 1901),
    ("TINYINT UNSIGNED", "255", 255),
    ("SMALLINT", "-32768", -32768),
    ("MEDIUMINT", "-8388608", -8388608),
    ("MEDIUMINT UNSIGNED", "16777215", 16777215),
    ("INT UNSIGNED", "4294967295", 4294967295),
    ("BIGINT", "-9223372036854775808", -(2**63)),
    ("BIGINT UNSIGNED", "18446744073709551615", 2**64 - 1),
    ("DECIMAL(65,30)", "'-1234567890123456789012345678901234.5'", f"-1234567890123456789012345678901234.{5:0<30}"),
    ("DECIMAL(10,0)", "-7", "-7"),
    ("DECIMAL(20,10)", "-0.0000000001", "-0.0000000001"),
    ("DECIMAL(3,3)", "0.125", "0.125"),
    ("FLOAT", "123456.79", 123456.79),
    ("FLOAT", "1.1", 1.1),
    ("DOUBLE", "1.7976931348623157e308", 1.7976931348623157e308),
    ("BIT(1)", "b'1'", "1"),
    ("BIT(10)", "b'1000000001'", "1000000001"),
    ("BIT(64)", "b'" + "1" * 64 + "'", "1" * 64),
    ("TIME(6)", "'-10:11:12.123456'", "-10:11:12.123456"),
    ("TIME(3)", "'-00:00:00.250'", "-00:00:00.250000"),
    ("TIME(1)", "'-01:00:00.7'", "-01:00:00.700000"),
    ("TIME", "'-838:59:59'", "-838:59:59.000000"),
    ("TIME(6)", "'838:59:59.999999'", "838:59:59.999999"),
    ("TIMESTAMP NOT NULL DEFAULT 0", "'0000-00-00 00:00:00'", None),
    ("TIMESTAMP(6) NULL", "'2024-03-10 02:30:00.123456'", "2024-03-10T02:30:00.123456Z"),
    ("DATE", "'0000-00-00'", None),
    ("DATE", "'2021-02-30'", None),
    ("DATE", "'9999-12-31'", "9999-12-31"),
    ("DATETIME(6)", "'0000-00-00 00:00:00'", None),
    ("DATETIME", "'2021-02-30 01:02:03'", None),
    ("DATETIME", "'0000-05-05 01:02:03'", None),
    ("DATETIME(3)", "'9999-12-31 23:59:59.999'", "9999-12-31T23:59:59.999000"),
    ("ENUM('a','b')", "''", ""),
    ("ENUM('café','thé') CHARACTER SET latin1", "'thé'", "thé"),
    ("SET('红','蓝') CHARACTER SET gbk", "'红,蓝'", "红,蓝"),
    ("SET('x','y')", "''", ""),
    ("JSON", "'{\"n\": 12345678901234567890123}'", '{"n": 12345678901234567890123}'),
    ("BINARY(4)", "x'00110000'", "ABEAAA=="),
    ("VARBINARY(5)", "x'00ff00'", "AP8A"),
    ("LONGBLOB", "x'00ff'", "AP8="),
    ("CHAR(200)", "'a  '", "a"),
    ("INT NULL", "NULL", None),
    ("INT INVISIBLE", "9", 9),
    ("INT AS (1 + 1) STORED", "DEFAULT", 2),
]  # fmt: skip

CHARSETS = {
    "ucs2": "é中", "utf16": "é中😀", "utf16le": "é中😀", "utf32": "é中😀", "utf8mb3": "é中",
    "utf8mb4": "é中😀", "swe7": "A", "dec8": "é", "hp8": "é", "keybcs2": "á", "geostd8": "ა",
    "armscii8": "Ա", "macce": "á", "macroman": "é", "ujis": "日本", "sjis": "日本", "cp932": "日本①",
    "euckr": "한국", "gb2312": "中文", "gbk": "中文", "big5": "中文", "tis620": "ไทย",
    "koi8r": "Привет", "koi8u": "Привіт", "cp1251": "Привет", "cp866": "Привет", "cp850": "é",
    "cp852": "á", "cp1250": "á", "cp1256": "سلام", "cp1257": "ā", "latin2": "á", "latin5": "ş",
    "latin7": "ā", "greek": "Ελλ", "hebrew": "שלום", "ascii": "a", "latin1": "é€\u0081\u008d\u009d",
}  # fmt: skip


@pytest.fixture
def crm(mariadb: DatabaseServer) -> Iterator[Crm]:
    crm = Crm(mariadb)
    yield crm
    crm.drop()


async def both_ways(crm: Crm, columns: dict[str, str], values: list[str]) -> list[dict[str, Any]]:
    """Return a row from the snapshot, and one with the same values from the stream."""
    names = ", ".join(columns)
    defined = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    insert = f"INSERT INTO v (id, {names}) VALUES (%d, {', '.join(values)})"
    crm.run(LENIENT, f"CREATE TABLE v (id INT PRIMARY KEY, {defined})", insert % 1)
    reader = reader_of(source_of(crm.url, "v", MARKER))
    await reader.check()
    (first,) = await snapshot_of(reader)
    await reader.close()
    (second,) = changes_of(await crm.streamed(LENIENT, insert % 2, tables=["v"]))
    assert second.operation is Operation.INSERT
    return [{name: dict(each.after or {})[name] for name in columns} for each in (first, second)]


async def test_each_type(crm: Crm) -> None:
    columns = {f"c{number}": kind for number, (kind, _, _) in enumerate(VALUES)}
    snapshot, stream = await both_ways(crm, columns, [literal for _, literal, _ in VALUES])
    told = [
        (kind, literal, snapshot[name], stream[name])
        for name, (kind, literal, _) in zip(columns, VALUES, strict=True)
    ]
    assert told == [(kind, literal, value, value) for kind, literal, value in VALUES]


async def test_text_of_each_charset(crm: Crm) -> None:
    columns = {name: f"VARCHAR(20) CHARACTER SET {name}" for name in CHARSETS}
    snapshot, stream = await both_ways(crm, columns, [f"'{text}'" for text in CHARSETS.values()])
    assert snapshot == CHARSETS
    assert stream == CHARSETS


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("ENUM('z','m','a')", "ELT(1 + seq % 3, 'z', 'm', 'a')"),
        ("SET('z','m','a')", "seq % 7"),
        ("TIME", "SEC_TO_TIME(60000 + seq * 60)"),
        ("BIT(20)", "seq"),
        ("DECIMAL(30,2)", "12345678901234567890 + seq / 100"),
        ("VARBINARY(8)", "UNHEX(HEX(seq))"),
    ],
)
async def test_a_snapshot_by_a_key_whose_text_has_another_order(
    crm: Crm, kind: str, value: str
) -> None:
    crm.run(
        f"CREATE TABLE v (a {kind}, b INT, PRIMARY KEY (a, b))",
        f"INSERT INTO v SELECT {value}, seq FROM seq_1_to_130",
    )
    reader = reader_of(source_of(crm.url, "v"), max_batch=20)
    rows = await snapshot_of(reader)
    await reader.close()
    assert sorted(int(str(each.key["b"])) for each in rows) == list(range(1, 131))


async def test_a_key_is_the_same_whatever_the_servers_sql_mode_is(crm: Crm) -> None:
    ((usual,),) = crm.run("SELECT @@GLOBAL.sql_mode")
    crm.run("CREATE TABLE v (id CHAR(6) PRIMARY KEY)", "INSERT INTO v VALUES ('a')")
    crm.run("SET GLOBAL sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,ANSI_QUOTES'")
    try:
        reader = reader_of(source_of(crm.url, "v"))
        await reader.check()
        (row,) = await snapshot_of(reader)
        await reader.close()
    finally:
        crm.run(f"SET GLOBAL sql_mode = '{usual}'")
    assert row.key == {"id": "a"}


async def test_names_that_sql_would_take_for_something_else(crm: Crm) -> None:
    crm.run(
        "CREATE TABLE v (`a``b%s` INT PRIMARY KEY, `vat%` INT)",
        "INSERT INTO v VALUES (1, 7), (2, 8), (3, 9)",
    )
    reader = reader_of(source_of(crm.url, "v"), max_batch=2)
    rows = await snapshot_of(reader)
    await reader.close()
    assert [dict(each.after or {}) for each in rows] == [
        {"a`b%s": number, "vat%": number + 6} for number in (1, 2, 3)
    ]
