"""URLs of databases as they may be shown: without the passwords in them."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

POSTGRES = ("postgresql", "postgres")
"""The schemes of a PostgreSQL URL."""

_SECRETS = frozenset({"password", "sslpassword", "passfile", "sslkey", "oauth_client_secret"})


def is_postgres(text: str) -> bool:
    """Whether a text is meant to be a PostgreSQL URL."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.lower() in POSTGRES


def without_secrets(url: str) -> str:
    """Return a URL without the passwords in it; of what cannot be read, only the part behind the last @.

    Example:
        >>> without_secrets("postgresql://forebay:secret@db.example:5432/core?password=secret")
        'postgresql://forebay@db.example:5432/core'
    """
    try:
        parts = urlsplit(url)
        user = parts.username
        query = [(name, value) for name, value in parse_qsl(parts.query, True) if name.lower() not in _SECRETS]
    except ValueError:
        scheme, _, rest = url.rpartition("://")
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(user, safe='%')}@{host}" if user else host
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(query, safe="/"), ""))
