"""The network device under random traffic, and under random nonsense.

Looped back, frames come out whole, in order, each once, and every one that does not is in a counter, whatever the
rhythm of sending, posting, notifying and looking. With random bytes for rings and registers nothing ever raises.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.virtio_driver import RX_RING, TX_RING, NetDriver, net_driver

ENTRIES = 16


class Loopback(RuleBasedStateMachine):
    """A driver that sends, posts and notifies when it likes."""

    @initialize(
        windows=st.booleans(),
        poll=st.sampled_from([0, 1, 8]),
        backlog=st.sampled_from([2, 64]),
        parts=st.sampled_from([1, 2]),
    )
    def power_on(self, windows: bool, poll: int, backlog: int, parts: int) -> None:
        self.parts = parts
        self.driver: NetDriver = net_driver(windows, poll=poll, backlog=backlog)
        self.sent: list[bytes] = []
        self.got: list[bytes] = []
        self.in_flight = 0
        self.posted = 0

    @rule(sizes=st.lists(st.integers(14, 1500), max_size=6))
    def send(self, sizes: list[int]) -> None:
        self.in_flight -= len(self.driver.tx.take_used())
        for size in sizes:
            if self.in_flight >= ENTRIES // 2:
                break
            frame = (len(self.sent).to_bytes(4, "little") * (size // 4 + 1))[:size]
            self.driver.send(frame, parts=self.parts)
            self.sent.append(frame)
            self.in_flight += 1

    @rule(count=st.integers(0, 5))
    def post(self, count: int) -> None:
        count = min(count, ENTRIES - self.posted)
        self.driver.post(range(self.posted, self.posted + count))
        self.posted += count

    @rule(queue=st.sampled_from([0, 1]))
    def notify(self, queue: int) -> None:
        self.driver.notify(queue)

    @rule()
    def a_turn_of_the_loop(self) -> None:
        timers = self.driver.world.clock.timers
        if timers:
            timers.pop(0).callback()

    @rule()
    def receive(self) -> None:
        self.got += self.driver.received()

    @invariant()
    def in_order_and_whole(self) -> None:
        if not hasattr(self, "driver"):
            return
        sent = iter(self.sent)
        assert all(frame in sent for frame in self.got), "lost, repeated, reordered or changed"

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        if not hasattr(self, "driver"):
            return
        model = self.driver.world.model
        found = model.statistics()
        assert found["tx_dropped"] == found["stops"] == 0
        waiting = len(model.waiting)
        assert found["tx_frames"] == found["rx_frames"] + found["rx_dropped"] + waiting
        assert waiting <= model.backlog

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.notify(1)
            self.driver.notify(0)
            self.driver.world.clock.advance(0)
            assert self.driver.world.clock.waiting == 0, "an idle device sleeps"


TestLoopback = Loopback.TestCase
TestLoopback.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

_writes = st.tuples(
    st.integers(0, 63),
    st.sampled_from([1, 2, 4]),
    st.one_of(st.integers(0, 64), st.integers(0, 1 << 32)),
)


@settings(max_examples=200, deadline=None)
@given(
    rings=st.lists(
        st.tuples(
            st.sampled_from([RX_RING, TX_RING]), st.integers(0, 9000), st.binary(max_size=64)
        ),
        max_size=20,
    ),
    writes=st.lists(_writes, max_size=20),
    windows=st.booleans(),
)
def test_nonsense_never_raises(
    rings: list[tuple[int, int, bytes]], writes: list[tuple[int, int, int]], windows: bool
) -> None:
    driver = net_driver(windows)
    for begin, offset, data in rings:
        driver.memory.bytes[begin + offset : begin + offset + len(data)] = data
    for queue in (0, 1):
        driver.notify(queue)
    for offset, size, value in writes:
        offset &= ~(size - 1)
        driver.world.write(offset, value & (1 << 8 * size) - 1, size)
        driver.world.read(offset, size)
        driver.world.clock.advance(0)
    driver.start()
    driver.post([0])
    driver.send(bytes(range(64)))
    driver.notify(1)
    assert driver.received() == [bytes(range(64))], "a reset mends everything"
