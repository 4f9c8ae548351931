"""The process's metrics, in the names that Prometheus wants (prometheus.io/docs/practices/naming)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from forebay.running import RunningService
from forebay.transaction import Row, Transaction

CONTENT_TYPE = CONTENT_TYPE_LATEST

_BOOKS = "select lane, bytes, written, confirmed from forebay_origin where destination = ''"


async def render(services: Sequence[RunningService], *, connected: bool) -> str:
    """Return the metrics of all services in Prometheus' text format."""
    books = {service.name: await service.store.read(_books) for service in services}
    registry = CollectorRegistry()
    registry.register(_Snapshot(services, books, connected))
    return generate_latest(registry).decode()


class _Snapshot(Collector):
    """The values as they stand; a registry of its own for each scrape."""

    def __init__(self, services: Sequence[RunningService], books: dict[str, list[Row]], connected: bool) -> None:
        self._services = services
        self._books = books
        self._connected = connected

    def collect(self) -> Iterator[Any]:
        """Yield the metric families."""
        yield GaugeMetricFamily("forebay_connected", "1 while there is a connection to the broker", self._connected)
        yield from self._outboxes()
        yield from self._consumers()

    def _outboxes(self) -> Iterator[Any]:
        labels = ["service", "lane"]
        written = CounterMetricFamily("forebay_outbox_written", "Events written since the store began", labels=labels)
        freed = CounterMetricFamily("forebay_outbox_freed", "Confirmed events freed from the disk", labels=labels)
        size = GaugeMetricFamily("forebay_outbox_bytes", "Bytes that the lane's rows take", labels=labels)
        budget = GaugeMetricFamily("forebay_outbox_budget_bytes", "Bytes that they may take", labels=labels)
        resent = CounterMetricFamily(
            "forebay_relay_resent", "Events sent again since the start: a consumer missed them", labels=["service"]
        )
        paused = GaugeMetricFamily("forebay_relay_paused", "1 while the lane waits behind a refusal", labels=labels)
        for service in self._services:
            if service.relay is not None:
                resent.add_metric([service.name], service.relay.resent)
            for row in self._books[service.name]:
                lane = service.outbox.lanes.get(row["lane"])
                at = [service.name, row["lane"]]
                written.add_metric(at, row["written"])
                freed.add_metric(at, row["confirmed"])
                size.add_metric(at, row["bytes"])
                if lane is not None and service.relay is not None:
                    budget.add_metric(at, lane.budget_bytes)
                    paused.add_metric(at, service.relay.lanes[lane.name].problem is not None)
        yield from (written, freed, size, budget, resent, paused)

    def _consumers(self) -> Iterator[Any]:
        labels = ["service"]
        events = CounterMetricFamily(
            "forebay_consumer_events", "Events taken since the start, by outcome", labels=["service", "outcome"]
        )
        reading = GaugeMetricFamily("forebay_consumer_reading", "1 while it reads its partitions", labels=labels)
        stalled = GaugeMetricFamily("forebay_consumer_stalled", "Partitions behind a failing event", labels=labels)
        for service in self._services:
            if service.consumer is not None:
                for outcome in service.consumer.totals.__struct_fields__:
                    events.add_metric([service.name, outcome], getattr(service.consumer.totals, outcome))
                reading.add_metric([service.name], service.consumer.reading)
                stalled.add_metric([service.name], len(service.consumer.stalled))
        yield from (events, reading, stalled)


def _books(tx: Transaction) -> list[Row]:
    return tx.execute(_BOOKS)
