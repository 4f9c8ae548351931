"""Log lines for people and machines: a time, a level, an event name and its fields as JSON."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class EventFormatter(logging.Formatter):
    """Writes ``2026-01-01T00:00:00.000Z WARNING relay.paused {"service":"till"}``; a traceback only at DEBUG."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1]:
            fields["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        tail = f" {msgspec.json.encode(fields, enc_hook=str).decode()}" if fields else ""
        line = f"{time} {record.levelname} {record.getMessage()}{tail}"
        if record.exc_info and record.levelno >= logging.ERROR and logging.getLogger().isEnabledFor(logging.DEBUG):
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def configure_logging(level: str) -> None:
    """Send everything from ``level`` on to standard error, in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of pipelines that we have broken off
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # what it reports comes to us as well
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
