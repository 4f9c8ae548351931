"""The PostgreSQL adapter: one schema, one writing session, group commit, and readers beside it.

Needs psycopg (the extra ``postgres``); nothing else of the engine imports it before a store is given by a URL.
"""

from forebay.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
