"""Text in the charsets of columns, as the server itself reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pymysql
from pymysql.constants import ER

from deskwire_cdc.domain.sources import SourceUnusable
from deskwire_cdc.sources.mariadb.server import Server

Decode = Callable[[bytes], str]
"""Raises UnicodeDecodeError."""
BINARY: Final = 63
"""The number of the collation `binary`."""
#: Those with characters of several bytes whose codecs read the same as the server.
CODECS: Final = {
    "utf8": "utf-8", "utf8mb3": "utf-8", "utf8mb4": "utf-8", "ucs2": "utf-16-be",
    "utf16": "utf-16-be", "utf16le": "utf-16-le", "utf32": "utf-32-be", "gbk": "gbk",
    "gb2312": "gb2312", "big5": "big5", "sjis": "shift_jis", "cp932": "cp932", "euckr": "euc_kr",
    "ujis": "euc_jp",
}  # fmt: skip


class Charsets:
    """Decoders by collation number. What it doesn't know, it asks the server once. Blocks."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._names: dict[int, str] = {}
        self._decoders: dict[str, Decode] = {}

    def decoder(self, collation: int) -> Decode:
        """Return the decoder of a collation. Raises SourceUnusable for a charset that can't be read."""
        name = self._names.get(collation)
        if name is None:
            self._names = self._read_names()
            name = self._names.get(collation, "")
        if name not in self._decoders:
            self._decoders[name] = self._decoder(name)
        return self._decoders[name]

    def _decoder(self, name: str) -> Decode:
        if codec := CODECS.get(name):
            return lambda data: data.decode(codec)
        with self._server.cursor() as cursor:
            table = single_byte_table(cursor, name) if name else None
        if table is None:
            raise SourceUnusable(
                "character_set",
                f"The binlog has text in the charset {name or 'unknown'}, which can't be read.",
            )
        return lambda data: data.decode("latin-1").translate(table)

    def _read_names(self) -> dict[int, str]:
        view = "collation_character_set_applicability"
        with self._server.cursor() as cursor:
            try:
                cursor.execute(f"SELECT id, character_set_name FROM information_schema.{view}")  # noqa: S608 - a constant
            except pymysql.MySQLError as error:
                if error.args[0] != ER.BAD_FIELD_ERROR:
                    raise
                # Before 10.10 a collation had one charset.
                cursor.execute("SELECT id, character_set_name FROM information_schema.collations")
            return {int(number): str(name) for number, name in cursor.fetchall() if number}


def single_byte_table(cursor: pymysql.cursors.Cursor, name: str) -> dict[int, str] | None:
    """Return which character each byte is, as the server says; None: it isn't a charset of single bytes.

    Python's codecs lack bytes that the server has: five of `latin1`, and whole charsets.
    """
    cursor.execute(
        "SELECT maxlen FROM information_schema.character_sets WHERE character_set_name = %s",
        (name,),
    )
    if cursor.fetchone() != (1,):
        return None
    # The name is one that the server has just told.
    cursor.execute(f"SELECT CONVERT(%s USING {name})", (bytes(range(256)),))
    row = cursor.fetchone()
    text = row[0] if row else None
    return dict(enumerate(text)) if isinstance(text, str) and len(text) == 256 else None
