"""What can go wrong, as one tree.

    ForebayError
    ├── ConfigurationError          a setting, a name or a declaration is wrong: fix it and start again
    │   └── TopologyError           a stream or a durable is not as the services rely on
    ├── MessageError                a message cannot be read; retrying does not help
    │   ├── HeaderError             an envelope header is missing or malformed
    │   │   └── FrameFoundError     it is no single event, but a frame of several
    │   ├── BodyError               the body is not what the type says
    │   ├── UnknownVersionError     a type that is handled here, in a version that is not
    │   └── ForgedSourceError       the envelope says another source than the subject
    ├── StoreError                  the database failed; nothing of the unit of work was kept
    │   ├── StoreBusyError          locked by another process; try again
    │   ├── StoreFullError          the disk, or the page limit, is spent
    │   ├── StoreClosedError        the store was closed before the unit of work ran
    │   ├── DamagedError            the file is damaged (sqlite/failures.py): the next opening salvages it
    │   ├── BudgetSpentError        a lane's byte budget is spent and the lane blocks
    │   └── OutcomeUnknownError     COMMIT itself failed: the unit may or may not be on disk
    ├── ConstraintError             a unit of work broke a constraint of the schema
    ├── VersionConflictError        an aggregate has moved on since it was loaded: load it again and decide again
    ├── UnreadableHistoryError      an aggregate's history has what this release cannot read
    ├── EventTooLargeError          an event is above the size that may be written
    └── LinkError                   the broker cannot be used
        ├── PublishRefusedError     the broker refused a message or a batch, with its code
        └── NotPermittedError       the credentials do not allow this subject

Every error has a message of one line and may have a ``hint``: what to do about it.
"""

from __future__ import annotations


class ForebayError(Exception):
    """The base of every error of this package.

    Attributes:
        hint: what the reader can do about it; empty where the message says it.
        retryable: whether the same call can succeed later without a change by a person.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self.hint}" if self.hint else message


class ConfigurationError(ForebayError):
    """A setting, a name or a declaration is wrong."""


class TopologyError(ConfigurationError):
    """A stream or a durable is missing or not as the services rely on."""

    retryable = True


class MessageError(ForebayError):
    """A message that no handler may see; ``reason`` is the word it is parked under."""

    reason = "undecodable"


class HeaderError(MessageError):
    """An envelope header is missing or malformed."""

    reason = "malformed-header"


class FrameFoundError(HeaderError):
    """A message that was read as one event is a frame of several."""

    reason = "frame"


class BodyError(MessageError):
    """The body does not decode to the event's type."""

    reason = "undecodable-body"


class UnknownVersionError(MessageError):
    """An event type that is handled here came in a version that is not known."""

    reason = "unknown-version"


class ForgedSourceError(MessageError):
    """``ce-source`` names another node or service than the subject does."""

    reason = "forged-source"


class StoreError(ForebayError):
    """The database failed; nothing of the unit of work was kept."""

    retryable = True


class StoreBusyError(StoreError):
    """The database is locked by another process."""


class StoreFullError(StoreError):
    """The disk, or the database's page limit, is spent."""


class StoreClosedError(StoreError):
    """The store was closed before the unit of work ran."""


class BudgetSpentError(StoreError):
    """The byte budget of a lane that blocks is spent.

    Attributes:
        lane: the lane whose budget is spent.
        retry_after: seconds after which room can be expected.
    """

    def __init__(self, lane: str, budget: int, retry_after: float) -> None:
        super().__init__(f"the budget of lane {lane!r} ({budget} bytes) is spent")
        self.lane = lane
        self.retry_after = retry_after


class OutcomeUnknownError(StoreError):
    """COMMIT itself failed: read back before repeating, the unit of work may be on disk."""

    retryable = False


class ConstraintError(ForebayError):
    """A unit of work broke a constraint of the schema (unique, check, foreign key, not null)."""


class VersionConflictError(ForebayError):
    """What was decided about an aggregate was decided on a state that is not its latest.

    Attributes:
        expected: the version that was decided on.
        actual: the version that it has.
    """

    def __init__(self, aggregate: str, expected: int, actual: int) -> None:
        super().__init__(
            f"{aggregate} is at version {actual}, and not at {expected} any more",
            hint="load it again and decide again",
        )
        self.expected = expected
        self.actual = actual


class UnreadableHistoryError(ForebayError):
    """An aggregate's history has an event that this release cannot read, or lacks one.

    Attributes:
        version: of the event.
    """

    def __init__(self, aggregate: str, version: int, reason: str) -> None:
        super().__init__(
            f"version {version} in the history of {aggregate} cannot be read: {reason}",
            hint="run the release that wrote it; what a damaged disk took comes from a backup or the archive",
        )
        self.version = version


class EventTooLargeError(ForebayError):
    """An event's body is above the limit; it is refused at the door so that it cannot become poison."""


class LinkError(ForebayError):
    """The broker cannot be reached or used."""

    retryable = True


class PublishRefusedError(LinkError):
    """The broker refused a publish.

    Attributes:
        code: the JetStream ``err_code`` (10077 stream full, 10060 another stream, 10201 known id in a batch, ...).
    """

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"the broker refused the publish: {description} ({code})")
        self.code = code


class NotPermittedError(LinkError):
    """The credentials do not allow a subject."""
