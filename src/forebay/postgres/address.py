"""Where a PostgreSQL database is, without ever telling the password."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from forebay.errors import ConfigurationError
from forebay.urls import is_postgres, without_secrets


class Address(NamedTuple):
    """A database and the schema in it. Its ``repr`` and ``str`` tell no password.

    Attributes:
        conninfo: as libpq takes it, the password included; what is missing, libpq takes from ``PGPASSWORD``,
            ``~/.pgpass`` and the other ``PG*`` variables.
        shown: the URL without what is secret.
        schema: the service's schema.
    """

    conninfo: str
    shown: str
    schema: str

    def __repr__(self) -> str:
        return f"Address({self.shown!r}, schema={self.schema!r})"

    def __str__(self) -> str:
        return f"schema {self.schema!r} of {self.shown}"

    def with_options(self, **options: Any) -> str:
        """Return the conninfo with defaults for what the URL does not say."""
        said = conninfo_to_dict(self.conninfo)
        return make_conninfo(**{**options, **{name: value for name, value in said.items() if value is not None}})


def parse_address(url: str, schema: str) -> Address:
    """Return the address of a schema in the database of a URL.

    Raises:
        ConfigurationError: the text is no PostgreSQL URL.
    """
    if not is_postgres(url):
        raise ConfigurationError(
            f"{without_secrets(url)!r} is not a PostgreSQL URL", hint="write postgresql://user@host:5432/database"
        )
    try:
        conninfo_to_dict(url)
    except psycopg.Error:
        # Not told as the cause: libpq repeats the text, with the password in it.
        raise ConfigurationError(
            f"{without_secrets(url)!r} cannot be read",
            hint="write postgresql://user@host:5432/database, special characters of the password as %XX",
        ) from None
    return Address(url, without_secrets(url), schema)
