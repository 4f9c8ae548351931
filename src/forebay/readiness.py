"""What of a service stands still, in sentences: why it is not ready, and what people should know beside."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.consumer import Consumer
from forebay.followers import Followers
from forebay.following import Follower
from forebay.jetstream.connection import Connection


def problems(service: str, refusal: str, consumer: Consumer | None, connection: Connection) -> list[str]:
    """Say why a service is not ready.

    Args:
        service: its name.
        refusal: why its store refuses writes; empty while it does not.
        consumer: reads the stream for it, if anything does. An edge node without a link is ready.
        connection: to the broker.
    """
    found = []
    if refusal:
        found.append(f"{service}: does not accept writes: {refusal}")
    if consumer is not None:
        if not connection.connected:
            why = connection.last_error
            found.append(f"{service}: does not read: no connection to the broker{f': {why}' if why else ''}")
        elif consumer.problem:
            found.append(f"{service}: does not read: {consumer.problem}")
        elif consumer.suspended:
            found.append(f"{service}: {consumer.suspended}")
    return found


def notices(service: str, followed: Sequence[str], follower: Follower | None, followers: Followers | None) -> list[str]:
    """Say what hinders no write.

    Args:
        service: its name.
        followed: the services of its node that it follows.
        follower: follows them.
        followers: who follows it.
    """
    found = []
    if follower is not None and (stuck := follower.problem or follower.suspended):
        found.append(f"{service}: does not follow {', '.join(followed)}: {stuck}")
    absent = followers.absent if followers is not None else []
    return found + [
        f"{service}: keeps its events for {name}, which follows it and does not run in this process" for name in absent
    ]
