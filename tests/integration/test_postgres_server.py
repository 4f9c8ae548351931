"""The PostgreSQL server that tests run."""

from __future__ import annotations

from pathlib import Path

import psycopg

from forebay.testing.postgres_server import PostgresServer

SESSIONS = 20


def test_a_killed_server_leaves_no_session_behind_that_keeps_the_next_from_its_data() -> None:
    with PostgresServer() as server:
        sessions = [psycopg.connect(server.url()) for _ in range(SESSIONS)]
        processes = [session.info.backend_pid for session in sessions]
        for session in sessions:
            session.execute("create temporary table kept as select generate_series(1, 20000)")
        server.kill()
        assert [pid for pid in processes if _runs(pid)] == []
        for session in sessions:
            session.close()
        server.start()
        assert server.execute("select 1") == [(1,)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
