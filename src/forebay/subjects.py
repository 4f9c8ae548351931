"""The subjects that events and commands are published on, and what a stored one's subject says."""

from __future__ import annotations

from functools import lru_cache

from forebay.errors import HeaderError
from forebay.identity import NAME

KEPT_SUBJECTS = 16_384
"""Subjects and previous places that are read once while they come again and again: a message of a fleet of 10,000 nodes
costs what one of a single node does (``bench/growth.py``)."""


def event_subject(node: str, service: str, kind: str) -> str:
    """The subject that an event is published on; the stream adds the partition."""
    return f"evt.{node}.{service}.{kind}"


def command_subject(destination: str, kind: str) -> str:
    """The subject that a command for ``<node>/<service>`` is published on."""
    node, _, service = destination.partition("/")
    return f"cmd.{node}.{service}.{kind}"


def command_parts(subject: str) -> tuple[str, str]:
    """Return the destination, ``<node>/<service>``, and the kind that a command's subject names.

    Raises:
        HeaderError: the subject is not ``cmd.<node>.<service>.<command>`` with names in it.
    """
    tokens = subject.split(".")
    if len(tokens) != 4 or tokens[0] != "cmd" or not all(NAME.fullmatch(token) for token in tokens[1:]):
        raise HeaderError(f"subject {subject!r} is not cmd.<node>.<service>.<command>")
    return f"{tokens[1]}/{tokens[2]}", tokens[3]


@lru_cache(KEPT_SUBJECTS)
def subject_parts(subject: str) -> tuple[str, str, str]:
    """Return node, service and kind of a stored event's subject.

    Raises:
        HeaderError: the subject is not ``evt.<p>.<node>.<service>.<kind>`` with names in it.
    """
    tokens = subject.split(".")
    if len(tokens) != 5 or tokens[0] != "evt" or not all(NAME.fullmatch(token) for token in tokens[2:]):
        raise HeaderError(f"subject {subject!r} is not evt.<partition>.<node>.<service>.<event>")
    return tokens[2], tokens[3], tokens[4]
