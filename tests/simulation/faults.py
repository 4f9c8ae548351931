"""What goes wrong: each fault is a function that strikes a world once, or a name that the world's parts look up.

Databases are restored from backups taken in the same run: a strike takes one, or puts one back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from forebay.protocol.confirmation import ConfirmedBy
from tests.simulation.broker import Stream
from tests.simulation.database import Outbox
from tests.simulation.events import ARCHIVE, DERIVED, EDGE, EMITTER, LATECOMER
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.reader import Consumer
    from tests.simulation.world import World

EVERYWHERE = {
    "loss": "publishes and their acknowledgements are lost, or late and in another order",
    "confloss": "questions and answers are lost",
    "zombie": "a former reader answers with an old state",
    "dlvloss": "messages are delivered into a lost connection",
    "batch": "publishes are atomic batches; one with a known id is refused as a whole",
}
"""Faults that strike where messages travel."""


def crash(world: World) -> None:
    """An edge process dies, or comes back."""
    node = world.rng.choice(world.nodes)
    node.is_open = False
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
    if late := world.stream.between(1)[-12:]:
        world.say("MSGLOSS", world.stream.remove(world.rng.choice(late)))


def trim(world: World) -> None:
    """The stream's oldest messages expire."""
    for sequence in world.stream.between(1)[: world.rng.randint(1, 6)]:
        world.say("TRIM", sequence, world.stream.remove(sequence))


def forget(world: World) -> None:
    """The duplicate window is over for some ids."""
    stream = world.stream
    stream.known = {message.message_id: at for at, message in stream.messages.items() if world.chance(0.5)}


def rollback(world: World) -> None:
    """The broker's store directory is put back to an older copy."""
    if world.stream_copies and world.chance(0.4):
        former, world.stream = world.stream, world.rng.choice(world.stream_copies).copy()
        known = former.messages if former.created == world.stream.created else {}
        world.oracle.revived |= {at for at in world.stream.messages if at <= former.last and at not in known}
        world.say("ROLLBACK", world.stream.created, world.stream.last)
        world.disconnect()
    else:
        world.stream_copies.append(world.stream.copy())


def wipe(world: World) -> None:
    """The stream is created anew, with its list of consumers or without."""
    if world.chance(0.3):
        world.stream = Stream(world.new_incarnation(), world.stream.confirmed_by if world.chance(0.7) else None)
        world.say("WIPE", world.stream.created)
        for consumer in world.consumers.values():
            for durable in consumer.durables:
                durable.next = None
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
    if name == DERIVED:
        (outbox,) = world.emitter.store.outboxes.values()
        origin, key = outbox.origin, f"{origin.node}/{origin.lane}/{key}"
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
        if world.chance(0.4):  # it is sent once more: it may be stored already, and be refused now
            node.lanes[outbox.origin.lane].missed(place.epoch, [(place.sequence, place.sequence)])
    elif chance < 0.8:
        world.refused.clear()
    elif node.is_open:
        node.lanes[outbox.origin.lane].try_withheld()


def nrestore(world: World) -> None:
    """An edge database is restored from a backup."""
    node = world.rng.choice(world.nodes)
    backup = world.node_backups.get(node.number)
    if backup is not None and world.chance(0.4):
        world.say("NODE RESTORE", node.name, node.number)
        world.oracle.branch(node.store.outboxes, ended=True)
        node.store = backup.copy()
        node.open()
    else:
        world.node_backups[node.number] = node.store.copy()


def clone(world: World) -> None:
    """An edge machine is cloned: both run under one name."""
    if len(world.nodes) < 4 and world.chance(0.4):
        node = world.rng.choice(world.nodes)
        twin = Node(world, node.name, EDGE, node.store.copy())
        world.nodes.append(twin)
        world.oracle.branch(twin.store.outboxes, ended=False)
        world.say("CLONE", node.number, twin.number)


def crestore(world: World) -> None:
    """The database of a consumer that emits nothing is restored."""
    _restore(world, world.consumers[world.rng.choice([n for n in (DERIVED, LATECOMER) if n in world.consumers])])


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


STRIKES: dict[str, Callable[[World], None]] = {
    each.__name__: each
    for each in (
        crash, rcrash, msgloss, trim, forget, rollback, wipe, durable, park, drop, withhold, nrestore, clone, crestore,
        arestore, xrestore, late,
    )
}  # fmt: skip

FAULTS = sorted([*EVERYWHERE, *STRIKES])
"""The names of all faults."""


def _any_outbox(world: World, nodes: list[Node]) -> tuple[Node, Outbox]:
    node = world.rng.choice(nodes)
    return node, world.rng.choice(list(node.store.outboxes.values()))


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
