"""Keeps every event of every node, and shows them to people. It is meant to be complete, never to be fast to search."""

from __future__ import annotations

from typing import Annotated

from litestar.params import FromPath, QueryParameter

from core.archive.conflicts import Conflict, compare, conflicts
from core.archive.deletions import deleted
from core.archive.event import INSERT, ArchivedEvent, now, to_row
from core.archive.export import export_part
from core.archive.places import TABLES, begin, keep_up
from core.archive.queries import Filter, Page, between, latest, one_each, page, scan
from core.archive.scans import note_scan
from core.archive.upkeep import INTERVAL, Settings, look_after
from forebay import Message, Service, UnitOfWork, UnitStore
from forebay.delivery import Archive
from forebay.identity import NAME
from forebay.problems import ProblemError, invalid, phrase
from forebay.settled import settled_end

MAX_PAGE = 1000
"""Events of one page, at most."""

archive = Service("archive", settings=Settings)

Name = Annotated[str | None, QueryParameter(description="A name: 1 to 63 of a-z, 0-9 and '-'.")]


@archive.every
def keep(tx: UnitOfWork, messages: list[Message]) -> None:
    """Keep events, all that came in one batch in one statement."""
    archived_at = now()
    tx.executemany(INSERT, [to_row(message, archived_at) for message in messages])
    keep_up(tx)


archive.derives(*TABLES)(begin)
archive.repeated(compare)
archive.reads_archive(
    Archive(read=between, scan=scan, end=latest, scanned=note_scan, deleted=deleted, export=export_part)
)
archive.works(every=INTERVAL, after_commits=False)(look_after)


@archive.get("/events", problems=(422, 503))
async def list_events(
    store: UnitStore,
    node: Name = None,
    service: Name = None,
    type: Annotated[str | None, QueryParameter(description="A CloudEvents type.")] = None,  # noqa: A002 - its name in HTTP
    message_id: Annotated[
        str | None, QueryParameter(description="A message id; a foreign one can be any text.")
    ] = None,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before.")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Events of a page, at most.")] = 100,
) -> Page:
    """Return archived events in the order in which they were archived, a page at a time.

    A page can be shorter than `limit` where its events are large; there are more as long as `next` is not null.
    """
    wanted = Filter(node=_name(node, "node"), service=_name(service, "service"), type=type, message_id=message_id)
    return await store.read(page, wanted, _cursor(after), limit, await settled_end(store, latest))


@archive.get("/events/{message_id:path}", problems=(404, 409, 422, 503))
async def show_event(
    store: UnitStore, message_id: FromPath[str], node: Name = None, service: Name = None
) -> ArchivedEvent:
    """Return one event by its message id.

    Ids of producers without an outbox are unique only for their node and service: where several have one, 409 names
    them (`candidates`), and `node` and `service` choose. Such ids can be any text; slashes may stand in the path, but
    one that begins or ends with a slash, or has two in a row, is found only with `GET /archive/events?message_id=`.
    """
    message_id = message_id.removeprefix("/")  # Litestar gives the rest of the path with it
    wanted = Filter(message_id=message_id, node=_name(node, "node"), service=_name(service, "service"))
    found = await store.read(one_each, wanted)
    if not found:
        raise ProblemError(404, phrase(404), f"no event {message_id!r} is archived", field="message_id")
    if len(found) > 1:
        candidates = [{"node": event.node, "service": event.service} for event in found]
        detail = "several nodes or services have an event with this id: choose one of `candidates`"
        raise ProblemError(409, phrase(409), detail, field="message_id", candidates=candidates)
    return found[0]


@archive.get("/conflicts", problems=(422, 503))
async def list_conflicts(
    store: UnitStore, limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Conflicts, at most.")] = 100
) -> list[Conflict]:
    """Return the events that came with another body than the one archived under their id, the latest first."""
    return await store.read(conflicts, limit)


def _name(text: str | None, field: str) -> str | None:
    if text is not None and not NAME.fullmatch(text):
        raise invalid(f"{text!r} is not a {field}'s name", field)
    return text


def _cursor(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise invalid(f"{text!r} is not the `next` of a page", "after")
    return int(text)
