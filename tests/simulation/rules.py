"""The rules that the simulation's adapters keep; each can be switched off, to prove that the oracle sees it."""

from __future__ import annotations

import msgspec


class Rules(msgspec.Struct, frozen=True):
    """What is kept; a name set to False breaks that rule.

    Attributes:
        suffix: a repair goes under a fresh random suffix (I4).
        grace: a confirmed row stays until a second answer, a grace later, confirms it too (O1).
        prev: an epoch waits for the place that it names (I5, B3).
        cause: a cause is acted on once (B5).
        identity: dedup is by message id; off: what stands at or below the highest position ever read is passed over.
        read_to_end: a statement counts once the reader has read to the stream's end as of its request (B4).
        missing: an answer lists the places that were passed without their event (B2).
        list_version: an older list of consumers frees nothing (S3).
        position_is_truth: the durable is set to the database's position (S5).
        position_names_message: a position names the message that stands there (S5).
        runs_on: the reader goes on only while consumer sequences run on without a jump (S6).
        resolve: a wanted place below the floor that nobody lists is given up (B7).
        go_back: what was given up for lack of room is read again before anything later is closed (B3, B4).
        forget_with_position: what was given up is forgotten in the transaction that moves the position back.
        abandon: a branch that a restore left behind is not acted on (B5).
        chain: a request carries the chain of the node's epochs (O2).
        chain_reaches_back: the chain goes back beyond the oldest epoch of which the node still has something (O2).
        ask_archive: what a floor skips comes from the archive (B4, C5).
        frame_next: a frame is settled as a whole only where its first place is next to the watermark (I4).
        frame_borders: what of a frame is known already is judged event by event (I4).
        sequence_per_destination: each destination of commands has a sequence of its own (I1).
        destination_answers: a command is freed by its destination's answer, not by the broker's (C1).
        last_floor: a destination is asked once more when nothing is left for it, and so told the last floor (O2, B4).
        core_blocks: a core outbox that is full takes nothing more; it drops nothing (O3).
        expiry: a command that has expired is passed without being done (S1).
        expiry_in_sequence: it is the receiver that passes it, not the broker that loses it (S1).
        removal_on_record: what was for a destination that is removed is dropped, and told when that comes back (O3).
        position_met: the message that a destination's position names has to come first (S5).
    """

    suffix: bool = True
    grace: bool = True
    prev: bool = True
    cause: bool = True
    identity: bool = True
    read_to_end: bool = True
    missing: bool = True
    list_version: bool = True
    position_is_truth: bool = True
    position_names_message: bool = True
    runs_on: bool = True
    resolve: bool = True
    go_back: bool = True
    forget_with_position: bool = True
    abandon: bool = True
    chain: bool = True
    chain_reaches_back: bool = True
    ask_archive: bool = True
    frame_next: bool = True
    frame_borders: bool = True
    sequence_per_destination: bool = True
    destination_answers: bool = True
    last_floor: bool = True
    core_blocks: bool = True
    expiry: bool = True
    expiry_in_sequence: bool = True
    removal_on_record: bool = True
    position_met: bool = True


ALL = Rules()


def without(*names: str) -> Rules:
    """Return all rules but these.

    Raises:
        ValueError: there is no such rule.
    """
    if unknown := sorted(set(names) - set(Rules.__struct_fields__)):
        raise ValueError(f"no such rule: {', '.join(unknown)}; there are {', '.join(Rules.__struct_fields__)}")
    return Rules(**dict.fromkeys(names, False))
