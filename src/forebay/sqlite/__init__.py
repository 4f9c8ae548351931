"""The SQLite adapter: one file, one writing thread, group commit, and readers beside it."""

from forebay.scripts import MigrationSet
from forebay.sqlite.disk import DiskConfig
from forebay.sqlite.salvage import Salvaging
from forebay.sqlite.store import SqliteStore
from forebay.sqlite.transaction import SqliteTransaction

__all__ = ["DiskConfig", "MigrationSet", "Salvaging", "SqliteStore", "SqliteTransaction"]
