"""The way to the server: its url, connections to addresses that were checked, and its errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pymysql
from pymysql.constants import CR, ER

from deskwire_cdc.domain.sources import SourceUnreachable, SourceUnusable, without_secret
from deskwire_cdc.sources.port import ReaderOptions
from deskwire_common.errors import InvalidArgument

NOT_THERE: Final = "No MariaDB answers at this url that change capture may call."
"""The one message for tenants, whether a rule forbids the address, nothing answers, or something else than MariaDB."""
DEFAULT_PORT: Final = 3306
ACCESS_ERRORS = frozenset(
    {
        ER.ACCESS_DENIED_ERROR,
        ER.DBACCESS_DENIED_ERROR,
        ER.TABLEACCESS_DENIED_ERROR,
        ER.SPECIFIC_ACCESS_DENIED_ERROR,
        ER.BAD_DB_ERROR,
    }
)
PURGED_ERROR = 1236  # ER_MASTER_FATAL_ERROR_READING_BINLOG: the position isn't in the binlog


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed url."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `mariadb://user:password@host:port/database`. Raises InvalidArgument, without the password in it."""
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORT
        except ValueError:
            raise InvalidArgument("source.url is not a URL.", field="source.url") from None
        database = unquote(parts.path.lstrip("/"))
        if parts.scheme != "mariadb" or not parts.hostname or not parts.username or not database:
            raise InvalidArgument(
                "A MariaDB source's url is mariadb://user:password@host:port/database.",
                field="source.url",
            )
        user, password = unquote(parts.username), unquote(parts.password or "")
        return cls(parts.hostname, port, user, password, database)


class Server:
    """The server of one source: connections to it, and its errors as change capture's. Blocks."""

    def __init__(self, url: str, options: ReaderOptions) -> None:
        self.address = Address.parse(url)
        self._url = url
        self._options = options

    def settings(self) -> dict[str, Any]:
        """Return the driver's options."""
        return {
            "host": self.address.host,
            "port": self.address.port,
            "user": self.address.user,
            "password": self.address.password,
            "connect_timeout": self._options.connect_timeout,
            "read_timeout": self._options.read_timeout,
            "write_timeout": self._options.read_timeout,
            "charset": "utf8mb4",
        }

    def dial(self, **settings: Any) -> pymysql.Connection[Any]:
        """Connect to an address that the rules allow; the name is resolved here, and nowhere else.

        A server's own refusal is raised as it is; whatever else goes wrong is one SourceUnreachable.
        """
        try:
            addresses = self._options.targets.addresses(self.address.host, self.address.port)
            return _first_that_answers(settings, [str(each) for each in addresses])
        except Exception as error:
            if isinstance(error, pymysql.MySQLError) and _is_of_the_server(error):
                raise
            # Also what the driver makes of the words of some other kind of server.
            raise SourceUnreachable("url", NOT_THERE, detail=self._words(error)) from None

    def _words(self, error: Exception) -> str:
        text = f"{self.address.host}:{self.address.port}: {type(error).__name__}: {error}"
        return without_secret(text, self._url)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the driver's errors as change capture's, without the password."""
        try:
            yield
        except pymysql.MySQLError as error:
            raise self._translate(error) from None

    def _translate(self, error: pymysql.MySQLError) -> SourceUnusable:
        code = error.args[0] if error.args else 0
        text = without_secret(str(error.args[-1] if error.args else error), self._url)
        if code == PURGED_ERROR:
            return SourceUnusable(
                "binlog_expire_logs_seconds",
                f"The saved position isn't in the binlog any more: {text}. Keep the binlog longer; "
                "delete this source and create it again with a snapshot.",
            )
        if code == ER.SPECIFIC_ACCESS_DENIED_ERROR:
            return SourceUnusable("privileges", f"{text}. GRANT it to the source's user.")
        if code in ACCESS_ERRORS:
            return SourceUnusable("url", f"The database refuses the source's user: {text}.")
        if not _is_of_the_server(error):
            return SourceUnreachable("url", NOT_THERE, detail=self._words(error))
        return SourceUnreachable("url", f"The database can't be used now: {text}.")

    @contextmanager
    def cursor(self) -> Iterator[pymysql.cursors.Cursor]:
        """Open a connection whose values don't depend on the server's settings. Raises SourceUnusable."""
        with (
            self.errors(),
            closing(self.dial(**self.settings(), database=self.address.database)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SET time_zone = '+00:00', sql_mode = ''")
            yield cursor


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return "`" + name.replace("`", "``") + "`"


def _first_that_answers(
    settings: Mapping[str, Any], addresses: Sequence[str]
) -> pymysql.Connection[Any]:
    """Connect to the first of the addresses that takes a connection. Raises the error of the last one."""
    failure: Exception = OSError("no address")
    for address in addresses:
        # A server that says nothing is given up as soon as one that doesn't answer.
        arguments = {**settings, "host": address, "read_timeout": settings["connect_timeout"]}
        try:
            connection = pymysql.connect(**arguments)
        except pymysql.OperationalError as error:
            if error.args[0] != CR.CR_CONN_HOST_ERROR:
                raise
            failure = error
        else:
            # There is no other way once it is connected.
            connection._read_timeout = settings["read_timeout"]  # type: ignore[attr-defined]  # noqa: SLF001
            return connection
    raise failure


def _is_of_the_server(error: pymysql.MySQLError) -> bool:
    """Whether a server that speaks MySQL said it; the driver's own numbers are from 2000 to 2999."""
    code = error.args[0] if error.args else 0
    return isinstance(code, int) and code >= 1000 and not 2000 <= code < 3000
