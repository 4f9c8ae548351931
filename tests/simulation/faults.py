"""What goes wrong: each fault is a function that strikes a world once, or a name that the world's parts look up.

Databases are restored from backups taken in the same run: a strike takes one, or puts one back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from forebay.identity import Origin
from forebay.protocol.confirmation import ConfirmedBy
from tests.simulation.broker import Stream
from tests.simulation.database import Outbox
from tests.simulation.events import ARCHIVE, DERIVED, DESK, DESTINATIONS, EDGE, EMITTER, LATECOMER
from tests.simulation.node import Node
from tests.simulation.receiver import Receiver
from tests.simulation.sender import CoreNode

if TYPE_CHECKING:
    from tests.simulation.reader import Consumer
    from tests.simulation.world import World

EVERYWHERE = {
    "loss": "publishes and their acknowledgements are lost, or late and in another order",
    "confloss": "questions and answers are lost",
    "zombie": "a former reader answers with an old state",
    "dlvloss": "messages are delivered into a lost connection",
    "batch": "publishes are atomic batches; one with a known id is refused as a whole",
    "frames": "the events of a lane go in frames: several are lost, held up, repeated or refused at once",
    "commands": "the core sends commands, and whatever strikes events and stores strikes these too",
}
"""Faults that strike where messages travel; and what travels there besides."""


def crash(world: World) -> None:
    """An edge process dies, or one that sends commands, or it comes back."""
    node = world.rng.choice(world.writers())
    node.close()
    if world.chance(0.7):
        node.open()
    world.say("CRASH", node.name, node.number)


def rcrash(world: World) -> None:
    """A partition gets another reader; the former one may try to commit later."""
    consumer = world.any_consumer()
    partition = world.rng.randrange(consumer.partitions)
    former = consumer.readers[partition]
    world.say("TAKEOVER", consumer.name, partition)
    if world.chance(0.5):
        world.net.append(("zombie", former.commit))
    consumer.take_over(world, partition)
    if consumer.name == EMITTER and world.chance(0.3):
        world.emitter.open()


def msgloss(world: World) -> None:
    """The broker loses a message that it acknowledged."""
    stream = world.streams[world.any_stream()]
    if late := stream.between(1)[-12:]:
        world.say("MSGLOSS", stream.remove(world.rng.choice(late)))


def trim(world: World) -> None:
    """The stream's oldest messages expire."""
    stream = world.streams[world.any_stream()]
    for sequence in stream.between(1)[: world.rng.randint(1, 6)]:
        world.say("TRIM", sequence, stream.remove(sequence))


def forget(world: World) -> None:
    """The duplicate window is over for some ids."""
    stream = world.streams[world.any_stream()]
    stream.known = {message.message_id: at for at, message in stream.messages.items() if world.chance(0.5)}


def rollback(world: World) -> None:
    """The broker's store directory is put back to an older copy."""
    name = world.any_stream()
    former, copies = world.streams[name], world.stream_copies[name]
    if copies and world.chance(0.4):
        stream = world.streams[name] = world.rng.choice(copies).copy()
        known = former.messages if former.created == stream.created else {}
        revived = (at for at in stream.messages if at <= former.last and at not in known)
        world.oracle.revived |= {(stream.created, at) for at in revived}
        gone = ((at, message) for at, message in known.items() if at > stream.last)
        world.oracle.taken_back |= {(stream.created, at, message.message_id) for at, message in gone}
        world.say("ROLLBACK", stream.created, stream.last)
        world.disconnect()
    else:
        copies.append(former.copy())


def wipe(world: World) -> None:
    """A stream is created anew, with its list of consumers or without; destinations' durables are gone with it."""
    if world.chance(0.3):
        name = world.any_stream()
        confirmed_by = world.streams[name].confirmed_by if world.chance(0.7) else None
        stream = world.streams[name] = Stream(world.new_incarnation(), confirmed_by)
        world.say("WIPE", stream.created)
        for consumer in world.consumers.values():
            if consumer.stream == name:
                for durable in consumer.durables:
                    durable.next, durable.registered = None, not consumer.destination
        world.disconnect()


def durable(world: World) -> None:
    """A durable goes back."""
    consumer = world.any_consumer()
    for partition, each in enumerate(consumer.durables):
        if each.next is not None:
            each.next = world.rng.randint(1, each.next)
            if world.chance(0.5):
                consumer.readers[partition].synced = False


def park(world: World) -> None:
    """A handler fails for a key, for a while."""
    name = world.rng.choice([name for name in world.consumers if name != ARCHIVE])
    edge = [outbox.origin for node in world.nodes for outbox in node.store.outboxes.values()]
    origin, key = world.rng.choice(edge), world.rng.choice("kl")
    if to := world.consumers[name].destination:
        origin = Origin("core", DESK, world.rng.choice(["ledger", "telemetry"]), to)
    elif name == DERIVED:
        origin, key = world.emitter.store.outboxes["ledger"].origin, f"{origin.node}/{origin.lane}/{key}"
    world.failing[name, (origin, key)] = world.tick + world.rng.randint(5, 60)


def drop(world: World) -> None:
    """A budget pushes out the oldest unconfirmed events, or all but the newest of each key (O3)."""
    node, outbox = _any_outbox(world, world.nodes)
    if not node.is_open or len(outbox.rows) + len(outbox.withheld) < 3:
        return
    events = {**outbox.rows, **outbox.withheld}
    places = [place for place in sorted(events) if not node.confirmed(place)]
    if world.chance(0.5):
        gone = places[: world.rng.randint(1, 3)]
    else:
        newest = {events[place].key: place for place in places}
        gone = [place for place in places if newest[events[place].key] != place][:4]
    for place in gone:
        outbox.push_out(place)
        world.oracle.pushed_out.add(events[place].body)
        node.lanes[outbox.origin.lane].trying.discard(place)
    world.say("DROP", node.number, gone)


def withhold(world: World) -> None:
    """The broker refuses a message for itself, or its limits change (O4)."""
    node, outbox = _any_outbox(world, world.all_nodes())
    chance = world.rng.random()
    if chance < 0.6 and outbox.rows and node.is_open:
        place = world.rng.choice(list(outbox.rows))
        world.refused.add(outbox.rows[place].body)
        if outbox.framed:  # neighbours as well: what is sent again of them goes in one frame
            world.refused |= {event.body for at, event in outbox.rows.items() if 0 < at.sequence - place.sequence < 3}
        if world.chance(0.4):  # it is sent once more: it may be stored already, and be refused now
            node.lanes[outbox.origin.lane].missed(place.epoch, [(place.sequence, place.sequence)])
    elif chance < 0.8:
        world.refused.clear()
    elif node.is_open:
        node.lanes[outbox.origin.lane].try_withheld()


def nrestore(world: World) -> None:
    """The database of an edge node, or of a service that sends commands, is restored from a backup."""
    node = world.rng.choice(world.writers())
    backup = world.node_backups.get(node.number)
    if backup is not None and world.chance(0.4):
        world.say("NODE RESTORE", node.name, node.number)
        world.oracle.branch(node.store.outboxes, ended=True)
        node.store = backup.copy()
        node.open()
    else:
        world.node_backups[node.number] = node.store.copy()


def clone(world: World) -> None:
    """A machine is cloned, an edge node's or one that sends or takes commands: both run under one name."""
    if world.has_commands and world.chance(0.4):
        _clone_destination(world)
    elif len(world.writers()) < 4 + len(world.desks) and world.chance(0.4):
        node = world.rng.choice(world.writers())
        twin: Node
        if isinstance(node, CoreNode):
            twin = CoreNode(world, node.name, node.service, node.store.copy())
            world.desks.append(twin)
        else:
            twin = Node(world, node.name, EDGE, node.store.copy())
            world.nodes.append(twin)
        world.oracle.branch(twin.store.outboxes, ended=False)
        world.say("CLONE", node.number, twin.number)


def crestore(world: World) -> None:
    """The database of a consumer that emits nothing, or of a destination, is restored."""
    names = [name for name in world.consumers if name not in (ARCHIVE, EMITTER)]
    _restore(world, world.consumers[world.rng.choice(names)])


def arestore(world: World) -> None:
    """The archive's database is restored."""
    _restore(world, world.consumers[ARCHIVE])


def xrestore(world: World) -> None:
    """The database of the consumer that emits is restored: it handles again what it had handled, and emits again."""
    _restore(world, world.consumers[EMITTER])


def late(world: World) -> None:
    """A consumer is added."""
    added = world.consumers[LATECOMER]
    if not added.active and world.chance(0.2):
        added.active = True
        known = world.confirmed_by
        world.confirmed_by = ConfirmedBy(known.version + 1, {**known.consumers, LATECOMER: [EDGE]})
        world.stream.confirmed_by = world.confirmed_by
        world.say("ADD", LATECOMER)


def remove(world: World) -> None:
    """A destination of commands is removed from the registry, with what is here for it, or is registered again (O3)."""
    if not world.has_commands:
        return
    destination = world.rng.choice(DESTINATIONS)
    if destination in world.removed:
        world.removed.discard(destination)
        world.say("REGISTER", destination)
    elif world.chance(0.3):
        world.say("REMOVE", destination)
        world.removed.add(destination)
        world.durable_of(destination).registered = False
        world.durable_of(destination).next = None
        for process in (world.emitter, *world.desks):
            process.remove(destination)


STRIKES: dict[str, Callable[[World], None]] = {
    each.__name__: each
    for each in (
        crash, rcrash, msgloss, trim, forget, rollback, wipe, durable, park, drop, withhold, nrestore, clone, crestore,
        arestore, xrestore, late, remove,
    )
}  # fmt: skip

FAULTS = sorted([*EVERYWHERE, *STRIKES])
"""The names of all faults."""


def _any_outbox(world: World, nodes: list[Node]) -> tuple[Node, Outbox]:
    node = world.rng.choice(nodes)
    return node, world.rng.choice(node.outboxes)


def _clone_destination(world: World) -> None:
    taker = world.consumers[world.rng.choice(DESTINATIONS)]
    name = f"{taker.name}'"
    if isinstance(taker, Receiver) and name not in world.consumers and world.chance(0.3):
        world.consumers[name] = taker.twin(name)
        world.consumers[name].take_over(world, 0)
        world.oracle.cloned.add(taker.name)
        world.say("CLONE", name)


def _restore(world: World, consumer: Consumer) -> None:
    if consumer.name not in world.database_backups or not world.chance(0.4):
        world.database_backups[consumer.name] = consumer.db.copy(), world.tick
        return
    backup, taken_at = world.database_backups[consumer.name]
    world.oracle.restored(world, consumer, backup, world.tick - taken_at)
    world.say("DATABASE RESTORE", consumer.name)
    world.oracle.branch(consumer.db.outboxes, ended=True)
    world.oracle.archive_restored |= consumer.name == ARCHIVE
    consumer.db = backup.copy()
    for partition in range(consumer.partitions):
        consumer.take_over(world, partition)
    if consumer.name == EMITTER:
        world.emitter.store = consumer.db
        world.emitter.open()
