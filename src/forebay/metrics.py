"""The process's metrics, in the names that Prometheus wants (prometheus.io/docs/practices/naming)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from forebay.books import Books
from forebay.marks import late_events
from forebay.panes import open_windows
from forebay.running import RunningService
from forebay.saga.instances import counts
from forebay.taken import Taken
from forebay.transaction import Row, Transaction

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LANES = """
    select o.lane, o.destination, o.bytes, o.written, o.confirmed, o.dropped,
      (select count(*) from forebay_withheld w join forebay_epoch e on e.id = w.epoch where e.origin = o.id) as withheld
    from forebay_origin o where o.destination = '' or o.bytes > 0"""
"""All lanes, and of the destinations of commands those that something is here for."""


async def render(services: Sequence[RunningService], *, connected: bool) -> str:
    """Return the metrics of all services in Prometheus' text format."""
    lanes = {service.name: await service.store.read(_lanes) for service in services}
    books = {service.name: await service.confirming.books() for service in services if service.confirming is not None}
    sagas = {service.name: await service.store.read(counts) for service in services if service.timers is not None}
    for service in services:
        if service.destinations is not None:
            books[service.name] = [*books.get(service.name, []), *await service.destinations.books()]
    windows = {service.name: await service.store.read(_windows) for service in services if service.declared.windows}
    registry = CollectorRegistry()
    registry.register(_Snapshot(services, lanes, books, sagas, windows, connected))
    return generate_latest(registry).decode()


class _Snapshot(Collector):
    """The values as they stand; a registry of its own for each scrape."""

    def __init__(
        self,
        services: Sequence[RunningService],
        lanes: dict[str, list[Row]],
        books: dict[str, list[Books]],
        sagas: dict[str, list[Row]],
        windows: dict[str, tuple[dict[str, int], dict[str, int]]],
        connected: bool,
    ) -> None:
        self._services = services
        self._lanes = lanes
        self._books = books
        self._sagas = sagas
        self._windows = windows
        self._connected = connected

    def collect(self) -> Iterator[Any]:
        """Yield the metric families."""
        yield GaugeMetricFamily("forebay_connected", "1 while there is a connection to the broker", self._connected)
        yield from self._outboxes()
        yield self._books_of_consumers()
        yield from self._consumers()
        yield from self._timers()
        yield self._instances()
        yield from self._event_time()

    def _outboxes(self) -> Iterator[Any]:
        labels = ["service", "lane", "destination"]
        written = CounterMetricFamily("forebay_outbox_written", "Events written since the store began", labels=labels)
        freed = CounterMetricFamily("forebay_outbox_freed", "Confirmed events freed from the disk", labels=labels)
        size = GaugeMetricFamily("forebay_outbox_bytes", "Bytes that the lane's rows take", labels=labels)
        budget = GaugeMetricFamily(
            "forebay_outbox_budget_bytes", "Bytes that they may take", labels=["service", "lane"]
        )
        dropped = CounterMetricFamily("forebay_outbox_dropped", "Events that the budget pushed out", labels=labels)
        withheld = GaugeMetricFamily("forebay_outbox_withheld", "Events that the broker refuses", labels=labels)
        resent = CounterMetricFamily(
            "forebay_relay_resent", "Events sent again since the start: a consumer missed them", labels=["service"]
        )
        events = CounterMetricFamily(
            "forebay_relay_events", "Events that the broker acknowledged since the start", labels=["service"]
        )
        messages = CounterMetricFamily(
            "forebay_relay_messages", "Messages that it acknowledged; a frame of many events is one", labels=["service"]
        )
        sent = CounterMetricFamily("forebay_relay_bytes", "Bytes of these messages", labels=["service"])
        paused = GaugeMetricFamily("forebay_relay_paused", "1 while the lane waits behind a refusal", labels=labels)
        asked = GaugeMetricFamily(
            "forebay_destinations", "Destinations that have not confirmed everything", labels=["service", "state"]
        )
        offset = GaugeMetricFamily(
            "forebay_clock_offset_seconds", "How far the core's clock is ahead of this node's", labels=["service"]
        )
        for service in self._services:
            if service.confirming is not None and service.confirming.clock_offset is not None:
                offset.add_metric([service.name], service.confirming.clock_offset)
            if service.relay is not None:
                relays = [each for each in (service.relay, service.command_relay) if each is not None]
                resent.add_metric([service.name], sum(each.resent for each in relays))
                events.add_metric([service.name], sum(each.published for each in relays))
                messages.add_metric([service.name], sum(each.messages for each in relays))
                sent.add_metric([service.name], sum(each.sent_bytes for each in relays))
            for row in self._lanes[service.name]:
                lane = service.outbox.lanes.get(row["lane"])
                at = [service.name, row["lane"], row["destination"]]
                written.add_metric(at, row["written"])
                freed.add_metric(at, row["confirmed"])
                dropped.add_metric(at, row["dropped"])
                withheld.add_metric(at, row["withheld"])
                size.add_metric(at, row["bytes"])
                if lane is not None and service.relay is not None and not row["destination"]:
                    budget.add_metric(at[:2], lane.budget_bytes)
                    paused.add_metric(at, service.relay.lanes[lane.name].problem is not None)
            for origin in service.command_relay.paused if service.command_relay is not None else ():
                paused.add_metric([service.name, *origin], 1)
            if service.destinations is not None:
                away = sum(each.away is not None for each in service.destinations.asking.values())
                asked.add_metric([service.name, "away"], away)
                asked.add_metric([service.name, "answering"], len(service.destinations.asking) - away)
        yield from (
            written,
            freed,
            dropped,
            withheld,
            size,
            budget,
            events,
            messages,
            sent,
            resent,
            paused,
            asked,
            offset,
        )

    def _books_of_consumers(self) -> GaugeMetricFamily:
        events = GaugeMetricFamily(
            "forebay_outbox_events",
            "The books: the lane's events since the store began, by what became of them for a consumer",
            labels=["service", "lane", "destination", "consumer", "state"],
        )
        for service, books in self._books.items():
            for book in books:
                for state in ("confirmed", "pending", "dropped", "withheld"):
                    events.add_metric(
                        [service, book.lane, book.destination, book.consumer, state], getattr(book, state)
                    )
        return events

    def _consumers(self) -> Iterator[Any]:
        labels = ["service"]
        events = CounterMetricFamily(
            "forebay_consumer_events", "Events taken since the start, by outcome", labels=["service", "outcome"]
        )
        reading = GaugeMetricFamily("forebay_consumer_reading", "1 while it reads its partitions", labels=labels)
        taking = GaugeMetricFamily(
            "forebay_commands_reading", "1 while it reads the commands for this node", labels=labels
        )
        suspended = GaugeMetricFamily(
            "forebay_consumer_suspended", "Whether it only retries what is parked", labels=labels
        )
        following = GaugeMetricFamily(
            "forebay_follower_reading", "1 while it follows the services of its node that it handles", labels=labels
        )
        for service in self._services:
            readers = [each for each in (service.consumer, service.commands, service.follower) if each is not None]
            for outcome in Taken.__struct_fields__ if readers else ():
                total = sum(getattr(reader.totals, outcome) for reader in readers)
                events.add_metric([service.name, outcome], total)
            if readers:
                suspended.add_metric([service.name], any(reader.suspended is not None for reader in readers))
            if service.consumer is not None:
                reading.add_metric([service.name], service.consumer.reading)
            if service.commands is not None:
                taking.add_metric([service.name], service.commands.reading)
            if service.follower is not None:
                following.add_metric([service.name], service.follower.problem is None)
        yield from (events, reading, taking, suspended, following)

    def _timers(self) -> Iterator[Any]:
        fired = CounterMetricFamily("forebay_timers_fired", "Timers that fired since the start", labels=["service"])
        failed = CounterMetricFamily(
            "forebay_timers_failed", "Attempts that a timer's handler failed since the start", labels=["service"]
        )
        for service in self._services:
            if service.timers is not None:
                fired.add_metric([service.name], service.timers.totals.fired)
                failed.add_metric([service.name], service.timers.totals.failed)
        yield from (fired, failed)

    def _instances(self) -> GaugeMetricFamily:
        labels = ["service", "saga", "status"]
        instances = GaugeMetricFamily("forebay_sagas", "Instances of sagas, by how they stand", labels=labels)
        for service, rows in self._sagas.items():
            for row in rows:
                instances.add_metric([service, row["saga"], row["status"]], row["instances"])
        return instances

    def _event_time(self) -> Iterator[Any]:
        labels = ["service", "window"]
        kept = GaugeMetricFamily(
            "forebay_windows", "Windows of all keys that are kept: open, or closed and not final yet", labels=labels
        )
        late = CounterMetricFamily(
            "forebay_window_late", "Events that results lack: too late, or too far ahead", labels=labels
        )
        for service in self._services:
            for window in service.declared.windows.names:
                open_now, too_late = self._windows[service.name]
                kept.add_metric([service.name, window], open_now.get(window, 0))
                late.add_metric([service.name, window], too_late.get(window, 0))
        yield from (kept, late)


def _windows(tx: Transaction) -> tuple[dict[str, int], dict[str, int]]:
    return open_windows(tx), late_events(tx)


def _lanes(tx: Transaction) -> list[Row]:
    return tx.execute(_LANES)
