"""One service at work: its store, and the relay, the confirmations and the consumer that it needs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from forebay.catching_up import CatchingUp
from forebay.commanding import Sending, Taking, sending, taking
from forebay.confirming import Confirming
from forebay.consumer import Consumer
from forebay.destinations import Destinations
from forebay.dispatching import CommandRelay
from forebay.errors import ConfigurationError, HeaderError
from forebay.filling import Filling
from forebay.followed import FollowedLane
from forebay.followers import Followers
from forebay.following import Followed, Follower
from forebay.identity import CORE, PARTITIONS, Place, parse_message_id
from forebay.in_charge import InCharge
from forebay.intent_box import IntentFolder, IntentRows
from forebay.intents import Intents
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Publisher
from forebay.link import Link
from forebay.needs import ask_all
from forebay.opening import ENGINE, open_store
from forebay.outbox import Outbox
from forebay.parking import Whose
from forebay.projection import declare
from forebay.readiness import notices, problems
from forebay.reading import Reading, reading, rebuilding
from forebay.rebuilding import Rebuilding
from forebay.receiving import CommandConsumer
from forebay.relay import Relay
from forebay.service import Service, check_followed
from forebay.sqlite import DiskConfig, MigrationSet
from forebay.sqlite.beside import FileBeside
from forebay.sqlite.disk import NO_CARE
from forebay.sqlite.lock import FileLock
from forebay.stores import Charge, ChargedStore, Part, ServiceStore, postgres_beside
from forebay.timers import Timers
from forebay.tracking import Whereabouts, find
from forebay.unit_of_work import UnitStore
from forebay.worker import AtWork, Worker

logger = logging.getLogger(__name__)


class RunningService:
    """A service with its database open. ``start`` its parts in a task group, ``close`` it after they have ended.

    Attributes:
        outbox, store: always there.
        relay, confirming: where the service has lanes.
        consumer: where it has handlers of a stream's events.
        follower: where it follows other services, once ``follow`` was called.
        intents: where somebody may ask something of its state.
        command_relay, destinations: where it may send commands: it has lanes, and this is the core.
        commands: where it has handlers of commands.
        timers: where it has handlers of timers.
    """

    def __init__(
        self,
        declared: Service,
        node: str,
        path: Path,
        connection: Connection,
        settings: Mapping[str, Any],
        *,
        core: str = CORE,
        url: str | None = None,
    ) -> None:
        """Prepare a service.

        Args:
            declared: what it does.
            node: the node that it runs on.
            path: its SQLite database.
            connection: to the broker.
            settings: its table of ``forebay.toml``.
            core: the node that may send it commands.
            url: a PostgreSQL database that it has a schema of instead.
        """
        self.declared = declared
        self.path = path
        self.settings = settings
        self.core = core
        self._known = declared.configured(settings)
        declared.check_projection()
        declared.windows.check(self._known)
        self.outbox = Outbox(node, declared.name, declared.lanes, sends=node == core)
        self.relay: Relay | None = None
        self.confirming: Confirming | None = None
        self.follower: Follower | None = None
        self.intents: Intents | None = None
        self.timers: Timers | None = None
        self._workers: list[Worker] = []
        self._connection = connection
        self._url = url
        self._charge: Charge | None = None
        self._lock = FileLock(path)
        self._opened: ServiceStore | None = None
        self._store_id = ""
        self._subscriptions: list[Callable[[], None]] = []
        self._publisher: Publisher | None = None
        self._reading: Reading | None = None
        self._rebuilding: Rebuilding | None = None
        self._sending: Sending | None = None
        self._taking: Taking | None = None

    @property
    def name(self) -> str:
        """The service's name."""
        return self.declared.name

    @property
    def store(self) -> UnitStore:
        """The service's store; open it first."""
        if self._opened is None:
            raise RuntimeError(f"service {self.name} is not open")
        return UnitStore(self._opened, self.outbox, self._known)

    @property
    def consumer(self) -> Consumer | None:
        """What reads the stream's events."""
        return self._reading.consumer if self._reading is not None else None

    @property
    def filling(self) -> Filling | None:
        """What fills a new consumer from the archive."""
        return self._reading.filling if self._reading is not None else None

    @property
    def command_relay(self) -> CommandRelay | None:
        """What sends commands."""
        return self._sending.relay if self._sending is not None else None

    @property
    def destinations(self) -> Destinations | None:
        """What asks where commands went."""
        return self._sending.destinations if self._sending is not None else None

    @property
    def commands(self) -> CommandConsumer | None:
        """What takes commands."""
        return self._taking.consumer if self._taking is not None else None

    async def open(
        self,
        migrations: Path | None,
        *,
        grace: float,
        disk: DiskConfig = NO_CARE,
        max_bytes: int | None = None,
        address: str = "",
        link: Link | None = None,
    ) -> None:
        """Lock, open and migrate the database, and bind it to this node. A damaged one is salvaged.

        Args:
            migrations: the folder of the service's own.
            grace: seconds for which confirmed events stay.
            disk: what the store leaves alone of the disk.
            max_bytes: the most that the database may take; None for what follows from its lanes.
            address: where the process answers HTTP, for the command line.
            link: what the services of the process share; one of its own for None.

        Raises:
            ConfigurationError: another process has it, it belongs to another node, or its migrations are wrong.
            StoreError: the database cannot be opened.
        """
        sets = [ENGINE, *([MigrationSet(self.name, migrations)] if migrations else [])]
        if self._url is None:
            self._lock.acquire(address)
        opened = self._opened = await open_store(
            self.declared, self.path, self._url, sets, max_bytes=max_bytes, disk=disk
        )
        store = self.store
        charge = self._charge = opened.charge()
        draining = UnitStore(ChargedStore(opened.reclaiming, charge), self.outbox)
        store_id = self._store_id = await opened.reclaiming.write(self.outbox.bind, uuid.uuid4().hex)
        if self.outbox.lanes:
            self._publisher = Publisher(self._connection, "EVENTS")
            self.relay = Relay(
                self.outbox,
                draining,
                self._connection,
                self._publisher,
                link=link,
                confirmed_upto=self._confirmed_upto,
                on_forwarded=self._wake_confirming,
            )
            # A PostgreSQL server that is away is not short of room: what is confirmed stays for its grace.
            short_of_room = opened.problem if self._url is None else str
            self.confirming = Confirming(
                self.outbox, draining, self._connection, self.relay, grace=grace, short_of_room=short_of_room
            )
            self._subscriptions.append(opened.on_commit(self.relay.wake))
            if self.outbox.sends:
                self._sending = sending(
                    self.outbox, draining, self._connection, grace=grace, short_of_room=short_of_room, link=link
                )
                self._subscriptions.append(opened.on_commit(self._sending.relay.wake))
        followed = self.declared.following.services
        whose = Whose(self.outbox.node, tuple(followed), followed=False) if followed else None
        if self.declared.handlers:
            self._reading = reading(
                self.declared, store, store_id, self._connection, opened.partitions(PARTITIONS), whose
            )
            if self.declared.projection is not None:
                in_use = await opened.reclaiming.write(declare, self.declared.projection)
                beside = FileBeside(self.path) if self._url is None else postgres_beside()(self._url, self.name)
                self._rebuilding = rebuilding(
                    self.declared,
                    in_use,
                    self._reading,
                    store,
                    beside,
                    sets,
                    self._connection,
                    self.outbox,
                    self._known,
                )
        if self.declared.handlers.takes_commands:
            self._taking = taking(
                self.outbox,
                self.declared.handlers,
                store,
                store_id,
                self._connection,
                core=self.core,
                now=self._now,
                whose=whose,
            )
        if self.declared.timers:
            charged = UnitStore(ChargedStore(opened, charge), self.outbox, self._known)
            catching_up = CatchingUp(self.consumer, store, self._connection) if self.consumer is not None else None
            self.timers = Timers(
                self.declared.timers,
                charged,
                patient=self.declared.patient,
                caught_up=catching_up.done if catching_up is not None else None,
            )
            self._subscriptions.append(opened.on_commit(self.timers.wake))
        asking = partial(ask_all, self._connection)
        at_work = AtWork(store, self._known, self._url is None, asking)
        for each in self.declared.workers:
            worker = Worker(f"{self.name}.{each.make.__name__}", each.make(at_work), every=each.every)
            self._workers.append(worker)
            if each.after_commits:
                self._subscriptions.append(opened.on_commit(worker.wake))

    async def follow(self, services: Mapping[str, RunningService]) -> None:
        """Follow the services that it declares; all that run in the process are open, and none has started.

        Raises:
            ConfigurationError: one of them does not run in this process, or emits nothing.
            StoreError: a database failed.
        """
        if not self.declared.following:
            return
        found: list[Followed] = []
        followers: list[Followers] = []
        for name in check_followed(self.declared, services):
            other = services[name]
            if other.confirming is None:
                raise ConfigurationError(
                    f"service {self.name!r} follows {name!r}, which has no lanes: it emits nothing"
                )
            followers.append(other.confirming.followers)
            lanes = [FollowedLane(other.outbox, other.store, lane) for lane in other.outbox.lanes]
            found.append(Followed(name, other._store_id, lanes, other.confirming.followers.wake))
        follower = Follower(self.name, self.outbox.node, self.declared.following, self.store, self._store_id, found)
        for each in followers:
            await each.add(self.name, follower.answer)
        for name in self.declared.following.services:
            self._subscriptions.append(services[name].on_commit(follower.wake))
        self.follower = follower

    def on_commit(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after its commits; returns what ends that."""
        if self._opened is None:
            raise RuntimeError(f"service {self.name} is not open")
        return self._opened.on_commit(callback)

    def _now(self) -> datetime:
        """The core's time as far as it is known: a node's clock may be wrong, and commands expire by the core's."""
        offset = self.confirming.clock_offset if self.confirming is not None else None
        return datetime.now(UTC) + timedelta(seconds=offset or 0.0)

    async def start(self, tasks: TaskGroup) -> None:
        """Start the parts in ``tasks``; returns when each says that it runs."""
        await self._expect_intents()
        for publisher in self._publishers:
            await publisher.start()
        reads, sends, takes = self._reading, self._sending, self._taking
        together: list[Part | None] = [self.intents]
        if reads is not None:
            together = [reads.consumer, reads.answering, reads.filling, reads.needs, reads.forgetting, reads.archive]
            together.append(self.intents)
        for part in together:
            if part is not None:
                await tasks.start(part.run)
        single: list[Part | None] = [self.relay, self.confirming, self.follower]
        if sends is not None:
            single += [sends.destinations, sends.relay, sends.registry]
        if takes is not None:
            single += [takes.consumer, takes.answering]
        alone = [part for part in (*single, self._rebuilding, self.timers, *self._workers) if part is not None]
        foreign = self._opened.foreign_commits() if self._opened is not None else None
        if self._charge is not None and foreign is not None and alone:
            alone = [InCharge(self.name, self._charge, [*alone, foreign])]
        for one in alone:
            await tasks.start(one.run)
        if self._opened is not None:
            tasks.start_soon(self._opened.check)
            tasks.start_soon(self._end_when_damaged, self._opened)

    async def close(self) -> None:
        """Close the database and give up the lock; may be called at any stage, also twice."""
        for unsubscribe in self._subscriptions:
            unsubscribe()
        with anyio.CancelScope(shield=True):
            for publisher in self._publishers:
                await publisher.stop()
            if self._opened is not None:
                await self._opened.close()
        self._lock.release()

    @property
    def _publishers(self) -> list[Publisher]:
        commands = self._sending.publisher if self._sending is not None else None
        return [each for each in (self._publisher, commands) if each is not None]

    def problems(self) -> list[str]:
        """Say why this service is not ready: what it does for others stands still. An edge without a link is ready."""
        refusal = self._opened.problem() if self._opened is not None else ""
        return problems(self.name, refusal, self.consumer, self._connection)

    def notices(self) -> list[str]:
        """Say what stands still and hinders no write: a sale is not refused because something behind it is stuck."""
        followers = self.confirming.followers if self.confirming is not None else None
        return notices(self.name, list(self.declared.following.services), self.follower, followers)

    async def find(self, message_id: str) -> Whereabouts | None:
        """Tell where one of this service's own events is; None for one that it never wrote."""
        try:
            identity = parse_message_id(message_id)
        except HeaderError:
            return None
        if identity is None or self.relay is None or self.confirming is None:
            return None
        return await find(self.store, self._part, identity.place)

    def _part(self, destination: str) -> tuple[Relay, Confirming]:
        if self.relay is None or self.confirming is None:
            raise RuntimeError(f"service {self.name} sends nothing")
        if destination and self.command_relay is not None and self.destinations is not None:
            return self.command_relay, self.destinations.confirming(destination)
        return self.relay, self.confirming

    async def _expect_intents(self) -> None:
        """Look out for requests where there may be one: at a reader's state, or about a follower that is not here."""
        followers = self.confirming.followers if self.confirming is not None else None
        if followers is not None:
            await followers.load()
        readers = [each for each in (self.consumer, self.commands, self.follower) if each is not None]
        if readers or self.relay is not None or self.command_relay is not None:
            handlers = self.declared.handlers.joined(self.declared.following)
            box = IntentFolder(self.path) if self._url is None else IntentRows(self.store)
            self.intents = Intents(self.name, handlers, self.store, box, readers, followers, self.relay)

    async def _end_when_damaged(self, store: ServiceStore) -> None:
        """End the process once the database turns out to be damaged: opening it again salvages what can be read."""
        raise await store.damaged()

    async def _confirmed_upto(self) -> Mapping[str, Place]:
        return await self.confirming.confirmed_upto() if self.confirming is not None else {}

    def _wake_confirming(self) -> None:
        if self.confirming is not None:
            self.confirming.wake()
