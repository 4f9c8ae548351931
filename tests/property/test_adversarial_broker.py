"""An outbox, a broker that does its worst, and an inbox: every step keeps the promise, and healing completes it.

The broker loses what it acknowledged, forgets which ids it knows, delivers again and in any order, goes back and gives
the same sequences to other messages, and is created anew. Node and consumer are the shipped protocol code; only the
node's rows, the stream and the effects are stand-ins.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.identity import Place, new_epoch, parse_message_id, retransmission_id
from forebay.protocol.closing import is_beyond
from forebay.protocol.confirmation import VERSION, Answer, Confirmations, EpochAnswer
from forebay.protocol.forwards import Forwards
from forebay.protocol.inbox import Due, EpochState, OriginInbox, Verdict
from forebay.protocol.resending import Forwarded, missed
from forebay.sequences import Range, SequenceSet, joined, within

LANE = "ledger"
GRACE = 10.0


class Message(NamedTuple):
    message_id: str
    prev: Place | None


class AdversarialBroker(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        # the node
        self.written: list[Place] = []
        self.rows: dict[Place, Place | None] = {}
        self.chain: dict[str, Place | None] = {}
        self.floor: Place | None = None
        self.reopen()
        # the broker
        self.incarnation, self.last = 0, 0
        self.stream: dict[int, Message] = {}
        self.known: dict[str, int] = {}
        # the consumer
        self.inbox = OriginInbox({})
        self.bodies: set[Place] = set()
        self.effects: list[Place] = []
        self.position: tuple[int, int, str] = (0, 0, "")

    # --- the node

    @rule()
    def reopen(self) -> None:
        """The node's process starts anew: what was in memory is gone, and the next write takes a new epoch (I2)."""
        self.epoch: str | None = None
        self.sent = 0
        self.forwards = Forwards()
        self.again: dict[str, list[Range]] = {}
        self.confirmations = Confirmations()
        self.asked: dict[str, list[Forwarded]] | None = None
        self.answer: Answer | None = None

    @rule(count=st.integers(1, 4))
    def write(self, count: int) -> None:
        for _ in range(count):
            if self.epoch is None:
                self.epoch = new_epoch()
                self.chain[self.epoch] = self.written[-1] if self.written else None
                place = Place(self.epoch, 1)
            else:
                place = Place(self.epoch, self.written[-1].sequence + 1)
            self.written.append(place)
            self.rows[place] = self.chain[self.epoch]

    @rule(count=st.integers(1, 6), acknowledged=st.booleans())
    def forward(self, count: int, acknowledged: bool) -> None:
        """Send what follows under its own ids; without an acknowledgement it goes again, under the same."""
        pending = [place for place in self.written[self.sent :] if place in self.rows][:count]
        stored = [self._publish(str(place), place) for place in pending]
        if pending and acknowledged:
            self._acknowledged(pending, stored)
            self.sent = self.written.index(pending[-1]) + 1

    @rule(acknowledged=st.booleans())
    def repair(self, acknowledged: bool) -> None:
        """Send again what a consumer has read past, under fresh ids (C2, I4)."""
        for place in [place for place in self.rows if within(place.sequence, self.again.get(place.epoch, ()))]:
            stored = self._publish(retransmission_id(str(place)), place)
            if acknowledged:
                self._acknowledged([place], [stored])
        if acknowledged:
            self.again.clear()

    def _acknowledged(self, places: list[Place], stored: list[int]) -> None:
        for place, at in zip(places, stored, strict=True):
            sent = Forwarded(place.sequence, place.sequence, str(self.incarnation), at)
            self.forwards.record(place.epoch, sent)

    # --- the broker

    def _publish(self, message_id: str, place: Place) -> int:
        at = self.known.get(message_id)
        if at is None:
            self.last = at = self.last + 1
            self.known[message_id] = at
            self.stream[at] = Message(message_id, self.rows[place])
        return at

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def lose_a_message(self, data: st.DataObject) -> None:
        del self.stream[data.draw(st.sampled_from(sorted(self.stream)))]

    @rule()
    def forget_ids(self) -> None:
        self.known.clear()

    @precondition(lambda self: self.last > 0)
    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        """Lose the latest messages with their sequences: others will get them."""
        self.last = data.draw(st.integers(0, self.last - 1))
        self.stream = {at: message for at, message in self.stream.items() if at <= self.last}
        self.known = {message_id: at for message_id, at in self.known.items() if at <= self.last}

    @rule()
    def be_created_anew(self) -> None:
        self.incarnation += 1
        self.last = 0
        self.stream.clear()
        self.known.clear()

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        """Deliver something stored, in whatever order and again; dedup never uses positions (S5)."""
        self._take(self.stream[data.draw(st.sampled_from(sorted(self.stream)))])

    # --- the consumer

    @rule(count=st.integers(1, 8))
    def read_on(self, count: int) -> None:
        begin = self._standing()
        for at in sorted(at for at in self.stream if at > begin)[:count]:
            self._take(self.stream[at])
            self.position = (self.incarnation, at, self.stream[at].message_id)

    def _standing(self) -> int:
        """Where the position stands in this very stream, or 0: read again, dedup does the rest (S5)."""
        incarnation, at, message_id = self.position
        stands = incarnation == self.incarnation and at in self.stream and self.stream[at].message_id == message_id
        return at if stands else 0

    def _take(self, message: Message) -> None:
        identity = parse_message_id(message.message_id)
        assert identity is not None
        place = identity.place
        verdict = self.inbox.judge(place, message.prev, LANE)
        if verdict is Verdict.HOLD:
            self.inbox.hold(place)
            self.bodies.add(place)
        elif verdict is Verdict.APPLY:
            self._effect(place)
            while (step := self.inbox.due()) is not None:
                assert step.due is Due.HELD
                held = Place(step.epoch, step.first)
                self.bodies.remove(held)
                self._effect(held)
        else:
            assert verdict is Verdict.DUPLICATE

    def _effect(self, place: Place) -> None:
        self.effects.append(place)
        self.inbox.settle(place)

    @rule()
    def restart_consumer(self) -> None:
        """Keep what a database keeps of each epoch, and nothing else."""
        self.inbox = OriginInbox(
            {
                epoch: EpochState(state.lane, state.prev, SequenceSet(state.passed.watermark, state.passed.ranges))
                for epoch, state in self.inbox.epochs.items()
            }
        )

    # --- the confirmation

    @rule()
    def ask(self) -> None:
        """Ask; a reply judges only what had been forwarded by now (C2)."""
        places = self.written[: self.sent]
        self.asked, self.answer = {}, None
        for epoch in dict.fromkeys(place.epoch for place in places):
            upto = max(place.sequence for place in places if place.epoch == epoch)
            self.asked[epoch] = self.forwards.filled(epoch, upto)

    @precondition(lambda self: self.asked is not None and self.answer is None)
    @rule()
    def be_answered(self) -> None:
        begin = self._standing()
        at_end = not any(at > begin for at in self.stream)
        self.answer = Answer(
            v=VERSION,
            consumer="sales",
            store="s",
            clock="",
            incarnation=str(self.incarnation),
            stream_end=self.last,
            position=self.last if at_end else begin,
            epochs={
                epoch: EpochAnswer(state.passed.watermark, list(state.passed.ranges))
                for epoch, state in self.inbox.epochs.items()
            },
        )

    @precondition(lambda self: self.answer is not None)
    @rule(later=st.floats(0, 2 * GRACE))
    def hear(self, later: float) -> None:
        """Judge a reply, however old it is by now; free what is ripe (O1), send again what was missed (C2)."""
        assert self.answer is not None
        assert self.asked is not None
        self.now += later
        self.confirmations.record(self.answer, self.now)
        for epoch, forwarded in self.asked.items():
            if ranges := missed(epoch, forwarded, self.answer):
                self.again[epoch] = joined([*self.again.get(epoch, []), *ranges])
        self.asked = self.answer = None
        for place in list(self.rows):
            if place.sequence > self.confirmations.ripe(place.epoch, GRACE, place.sequence):
                break
            del self.rows[place]
            self.floor = place

    # --- the promise

    @invariant()
    def each_event_takes_effect_once_and_in_order(self) -> None:
        assert self.effects == self.written[: len(self.effects)]

    @invariant()
    def nothing_leaves_the_node_that_had_no_effect(self) -> None:
        freed = self.written[: len(self.written) - len(self.rows)]
        assert list(self.rows) == self.written[len(freed) :]
        assert freed == self.effects[: len(freed)]

    @invariant()
    def what_is_held_has_its_body(self) -> None:
        held = {Place(epoch, at) for epoch, state in self.inbox.epochs.items() for at in state.passed.held()}
        assert held == self.bodies

    @invariant()
    def no_floor_closes_anything_while_both_disks_are_well(self) -> None:
        if self.floor is not None:
            assert not is_beyond(self.inbox, LANE, self.floor, self.chain)

    def teardown(self) -> None:
        """Let the broker behave: everything takes effect and leaves the node."""
        for _ in range(8):
            self.repair(acknowledged=True)
            self.forward(count=10_000, acknowledged=True)
            self.read_on(count=10_000)
            self.ask()
            self.be_answered()
            self.hear(later=GRACE)
            self.each_event_takes_effect_once_and_in_order()
        assert self.effects == self.written
        assert self.rows == {}


TestAdversarialBroker = AdversarialBroker.TestCase
TestAdversarialBroker.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
