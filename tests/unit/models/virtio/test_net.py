"""The network device: frames, backlog, what is lost and counted, MAC, link, wires."""

from __future__ import annotations

import pytest

from support.model_world import power_on
from support.virtio_driver import (
    NEXT,
    RX_BUFFERS,
    TX_BUFFERS,
    WRITE,
    NetDriver,
    net_driver,
)
from uvfio.errors import ConfigError
from uvfio.machine.machine import Machine
from uvfio.models.virtio.net import VirtioNet
from uvfio.uapi import pci, virtio

FRAMES = [bytes([n]) * (14 + 50 * n) for n in range(1, 7)]


@pytest.fixture(params=[True, False], ids=["windows", "copies"])
def driver(request: pytest.FixtureRequest) -> NetDriver:
    return net_driver(windows=request.param)


def counters(driver: NetDriver, *names: str) -> tuple[int, ...]:
    found = driver.world.model.statistics()
    return tuple(found[name] for name in names)


# -- frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
def test_loopback(driver: NetDriver, parts: int) -> None:
    driver.post(range(8))
    driver.send(*FRAMES, parts=parts)
    driver.notify(1)
    assert driver.received() == FRAMES
    assert [head for head, _ in driver.tx.take_used()] == [parts * n for n in range(6)]
    size = sum(map(len, FRAMES))
    assert counters(driver, "tx_frames", "rx_frames", "tx_bytes", "rx_bytes") == (6, 6, size, size)


def test_a_header_cut_anywhere(driver: NetDriver) -> None:
    """Three descriptors, the first border inside the header, an empty one between."""
    data = bytes(10) + FRAMES[0]
    driver.memory.bytes[TX_BUFFERS : TX_BUFFERS + len(data)] = data
    driver.tx.describe(0, TX_BUFFERS, 4, NEXT, 1)
    driver.tx.describe(1, TX_BUFFERS, 0, NEXT, 2)
    driver.tx.describe(2, TX_BUFFERS + 4, len(data) - 4)
    driver.tx.offer(0)
    driver.post([0])
    driver.notify(1)
    assert driver.received() == [FRAMES[0]]


def test_receive_buffers_in_parts(driver: NetDriver) -> None:
    for slot, size in ((0, 10), (1, 20), (2, 0)):
        driver.rx.describe(slot, RX_BUFFERS + 100 * slot, size, NEXT | WRITE, slot + 1)
    driver.rx.describe(3, RX_BUFFERS + 300, 500, WRITE)
    driver.rx.offer(0)
    driver.send(FRAMES[0])
    driver.notify(1)
    assert driver.rx.take_used() == [(0, 10 + len(FRAMES[0]))]
    memory = driver.memory.bytes
    assert memory[RX_BUFFERS + 100 : RX_BUFFERS + 120] == FRAMES[0][:20]
    assert memory[RX_BUFFERS + 300 : RX_BUFFERS + 300 + len(FRAMES[0]) - 20] == FRAMES[0][20:]


def test_sink() -> None:
    driver = net_driver(backend="sink")
    driver.post([0])
    driver.send(*FRAMES)
    driver.notify(1)
    assert driver.received() == []
    assert counters(driver, "tx_frames", "rx_frames", "tx_dropped") == (6, 0, 0)


def test_frames_wait_for_buffers_and_stay_in_order(driver: NetDriver) -> None:
    driver.send(*FRAMES)
    driver.notify(1)
    assert driver.received() == []
    assert not driver.rx.deaf or driver.world.clock.waiting
    driver.world.clock.advance(0)
    assert not driver.rx.deaf, "it sleeps and wants to hear of buffers"
    driver.post([0, 1])
    driver.notify(0)
    assert driver.received() == FRAMES[:2]
    driver.notify(0)
    assert driver.received() == FRAMES[2:4]
    driver.notify(0)
    assert driver.received() == FRAMES[4:]
    driver.world.clock.advance(0)
    assert driver.rx.deaf, "nothing waits: buffers are no news"


def test_the_backlog_is_bounded() -> None:
    driver = net_driver(backlog=2)
    driver.send(*FRAMES)
    driver.notify(1)
    driver.post(range(8))
    driver.notify(0)
    assert driver.received() == FRAMES[:2]
    assert counters(driver, "tx_frames", "rx_frames", "rx_dropped") == (6, 2, 4)


def test_no_backlog_at_all() -> None:
    driver = net_driver(backlog=0)
    driver.post([0])
    driver.send(FRAMES[0])
    driver.notify(1)
    assert driver.received() == []
    assert counters(driver, "rx_dropped") == (1,)


@pytest.mark.parametrize("size", [0, 1, 13, 65536, 0xFFFFFFF0])
@pytest.mark.parametrize("parts", [1, 2])
def test_no_frame_of_that_size(driver: NetDriver, size: int, parts: int) -> None:
    driver.post([0, 1])
    if parts == 1:
        driver.tx.describe(0, TX_BUFFERS, min(size + 10, 0xFFFFFFFF))
    else:
        driver.tx.describe(0, TX_BUFFERS, 10, NEXT, 1)
        driver.tx.describe(1, TX_BUFFERS, size)
    driver.tx.offer(0)
    driver.sent = 4
    driver.send(FRAMES[0])
    driver.notify(1)
    assert driver.received() == [FRAMES[0]]
    assert [head for head, _ in driver.tx.take_used()] == [0, 8]
    assert counters(driver, "tx_frames", "tx_dropped", "stops") == (1, 1, 0)


def test_a_frame_that_is_not_mapped_is_lost_alone(driver: NetDriver) -> None:
    driver.post([0, 1, 2])
    driver.send(FRAMES[0])
    driver.tx.describe(4, TX_BUFFERS, 10, NEXT, 5)
    driver.tx.describe(5, 1 << 40, 64)
    driver.tx.describe(6, 1 << 40, 74)
    driver.tx.offer(4, 6)
    driver.sent = 4
    driver.send(FRAMES[1])
    driver.notify(1)
    assert driver.received() == FRAMES[:2]
    assert counters(driver, "tx_frames", "tx_dropped", "stops") == (2, 2, 0)
    assert driver.domain.fault_count == 2


def test_a_buffer_that_is_not_mapped_comes_back_empty(driver: NetDriver) -> None:
    driver.rx.describe(0, 1 << 40, 2048, WRITE)
    driver.rx.offer(0)
    driver.post([1])
    driver.send(*FRAMES[:2])
    driver.notify(1)
    assert driver.rx.take_used() == [(0, 0), (1, 10 + len(FRAMES[1]))]
    assert counters(driver, "rx_frames", "rx_dropped", "stops") == (1, 1, 0)


def test_a_buffer_too_small_is_for_the_next_frame() -> None:
    driver = net_driver()
    small = NetDriver(driver.world, driver.memory, buffer=100)
    small.post([0, 1])
    small.send(FRAMES[0], FRAMES[5], FRAMES[0])
    small.notify(1)
    small.world.clock.advance(0)
    assert small.received() == [FRAMES[0], FRAMES[0]]
    assert counters(small, "rx_frames", "rx_dropped") == (2, 1)


def test_buffers_to_read_receive_nothing(driver: NetDriver) -> None:
    driver.rx.describe(0, RX_BUFFERS, 2048)
    driver.rx.offer(0)
    driver.send(FRAMES[0])
    driver.notify(1)
    assert driver.rx.take_used() == []
    assert counters(driver, "rx_frames", "rx_dropped") == (0, 1)


def test_a_burst_is_bounded() -> None:
    driver = net_driver(queue_entries=256, backend="sink")
    driver.send(*[bytes(64)] * 128)
    driver.notify(1)
    assert counters(driver, "tx_frames") == (64,)
    driver.world.clock.advance(0)
    assert counters(driver, "tx_frames") == (128,)


# -- configuration -----------------------------------------------------------------------------------


def config(driver: NetDriver) -> tuple[bytes, int, int, int]:
    data = bytes(driver.world.read(20 + n, 1) for n in range(virtio.virtio_net_config.size))
    found: tuple[bytes, int, int, int] = virtio.virtio_net_config.unpack(data)
    return found


def test_configuration() -> None:
    driver = net_driver(mac="02:00:00:00:00:0a", mtu=9000)
    assert config(driver) == (b"\x02\0\0\0\0\x0a", virtio.VIRTIO_NET_S_LINK_UP, 1, 9000)
    assert driver.world.read(0) & 1 << virtio.VIRTIO_NET_F_MTU
    assert driver.world.read(62, 2) == 0


def test_without_mtu_it_is_not_offered() -> None:
    assert not net_driver().world.read(0) & 1 << virtio.VIRTIO_NET_F_MTU


def test_the_mac_is_made_from_the_address() -> None:
    assert config(net_driver())[0] == bytes.fromhex("52540056066 8".replace(" ", ""))


def test_a_driver_may_set_the_mac_until_a_function_reset() -> None:
    driver = net_driver()
    before = config(driver)[0]
    driver.world.write(20, 0x22, 1)
    driver.world.write(25, 0x33, 1)
    changed = b"\x22" + before[1:5] + b"\x33"
    driver.world.write(18, 0, 1)
    assert config(driver)[0] == changed
    driver.world.model.reset()
    assert config(driver)[0] == before


def test_the_mac_moves_with_msix() -> None:
    driver = net_driver()
    driver.world.enable_msix()
    driver.world.write(24, 0x22, 1)
    assert driver.world.read(24, 1) == 0x22
    driver.world.write(34, 9, 2)  # the link is not the driver's
    assert driver.world.read(30, 2) == virtio.VIRTIO_NET_S_LINK_UP


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "tap"},
        {"mac": "1:2:3"},
        {"mac": "zz:00:00:00:00:00"},
        {"mac": "01:00:00:00:00:00"},
        {"mtu": 67},
        {"backlog": -1},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        power_on(VirtioNet, bus_reset=False, master=True, **options)


# -- wires -------------------------------------------------------------------------------------------


class Two:
    """Two devices of one machine, each with a driver."""

    def __init__(self) -> None:
        first = power_on(VirtioNet, queue_entries=16, wire="w", poll=4)
        second = power_on(VirtioNet, queue_entries=16)
        second.clock = first.clock
        second.model = VirtioNet(
            "0000:06:0d.1",
            group=241,
            unit=None,
            clock=first.clock,
            store=second.store,
            options={"queue_entries": 16, "wire": "w", "poll": 4},
        )
        second.model.connect(second.sink)
        second.command(pci.PCI_COMMAND_MASTER | pci.PCI_COMMAND_MEMORY)
        self.a, self.b = NetDriver(first), NetDriver(second)
        self.clock = first.clock
        self.clock.advance(0)


def test_frames_cross_a_wire_both_ways() -> None:
    two = Two()
    for end in (two.a, two.b):
        end.post(range(8))
    two.a.send(*FRAMES)
    two.a.notify(1)
    assert two.b.received() == [], "not within the sender's access"
    two.clock.advance(0)
    assert two.b.received() == FRAMES
    assert two.a.received() == []
    two.b.send(FRAMES[3])
    two.b.notify(1)
    two.clock.advance(0)
    assert two.a.received() == [FRAMES[3]]


def test_nobody_is_ready_at_the_other_end() -> None:
    two = Two()
    two.b.world.write(18, 0, 1)
    two.a.send(*FRAMES)
    two.a.notify(1)
    two.clock.advance(0)
    assert counters(two.a, "tx_frames", "tx_dropped") == (6, 0)
    assert counters(two.b, "rx_frames", "rx_dropped") == (0, 6)


def test_the_link_follows_the_other_end() -> None:
    two = Two()
    assert config(two.a)[1] == config(two.b)[1] == virtio.VIRTIO_NET_S_LINK_UP
    assert two.a.world.read(19, 1) == virtio.VIRTIO_PCI_ISR_CONFIG, "somebody came"
    two.a.world.sink.take()
    two.b.world.model.unplug()
    two.clock.advance(0)
    assert config(two.a)[1] == 0
    assert two.a.world.sink.take() == [("intx", True)]
    assert two.a.world.read(19, 1) == virtio.VIRTIO_PCI_ISR_CONFIG
    two.a.send(FRAMES[0])
    two.a.notify(1)
    assert counters(two.a, "tx_frames", "tx_dropped") == (0, 1)


def test_a_machine_refuses_a_third_end() -> None:
    with pytest.raises(ConfigError, match="taken at both ends"):
        Machine(devices=[f"virtio-net@0:{n}.0,wire=w" for n in (1, 2, 3)])
    machine = Machine(devices=[f"virtio-net@0:{n}.0,wire=w" for n in (1, 2)])
    with pytest.raises(ConfigError, match="taken at both ends"):
        machine.plug("virtio-net@0:3.0,wire=w")
    machine.unplug("0:1.0")
    machine.plug("virtio-net@0:3.0,wire=w")
    assert machine.describe()["devices"][0]["statistics"]["tx_frames"] == 0
