"""The SQLite adapter: one file, one writing thread, group commit, and readers beside it."""

from forebay.sqlite.scripts import MigrationSet
from forebay.sqlite.store import SqliteStore
from forebay.sqlite.transaction import SqliteTransaction

__all__ = ["MigrationSet", "SqliteStore", "SqliteTransaction"]
