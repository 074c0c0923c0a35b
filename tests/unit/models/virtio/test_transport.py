"""The legacy virtio interface: registers, reset, interrupts, who looks when, and rings that make no sense."""

from __future__ import annotations

import pytest

from support.model_world import power_on
from support.virtio_driver import NetDriver, net_driver
from uvfio.errors import ConfigError
from uvfio.models.virtio import ring as vring
from uvfio.models.virtio.net import VirtioNet
from uvfio.uapi import pci, virtio

FRAME = bytes(range(64))
NO_VECTOR = virtio.VIRTIO_MSI_NO_VECTOR


@pytest.fixture
def driver() -> NetDriver:
    return net_driver()


def settle(driver: NetDriver) -> None:
    driver.world.clock.advance(0)


# -- registers ---------------------------------------------------------------------------------------


def test_identity() -> None:
    read = power_on(VirtioNet).model.config_read
    assert read(pci.PCI_VENDOR_ID, 4) == 0x10001AF4
    assert read(pci.PCI_SUBSYSTEM_VENDOR_ID, 4) == 0x00011AF4
    assert read(pci.PCI_CLASS_REVISION, 4) == 0x02000000
    assert read(pci.PCI_BASE_ADDRESS_0, 4) & 3 == pci.PCI_BASE_ADDRESS_SPACE_IO


def test_only_what_is_offered_can_be_taken(driver: NetDriver) -> None:
    offered = driver.world.read(0)
    driver.world.write(4, 0xFFFFFFFF)
    assert driver.world.read(4) == offered
    driver.world.write(0, 0)
    assert driver.world.read(0) == offered


def test_queues(driver: NetDriver) -> None:
    world = driver.world
    for queue, size, page in ((0, 16, 0x10), (1, 16, 0x20), (2, 0, 0), (0xFFFF, 0, 0)):
        world.write(14, queue, 2)
        assert (world.read(12, 2), world.read(8)) == (size, page)
    world.write(8, 5)  # of a queue that there is not
    world.write(14, 0, 2)
    world.write(8, 0)
    assert world.read(8) == 0
    assert world.model.rings[0] is None


def test_reset_by_status_forgets_the_driver(driver: NetDriver) -> None:
    world = driver.world
    world.model.config_interrupt()
    assert world.model.intx_asserted
    world.write(18, 0, 1)
    assert not world.model.intx_asserted
    assert [world.read(18, 1), world.read(19, 1), world.read(4), world.read(14, 2)] == [0] * 4
    assert world.model.rings == [None, None]
    assert world.clock.waiting == 0


def test_function_reset(driver: NetDriver) -> None:
    driver.world.model.reset()
    assert driver.world.read(18, 1) == 0
    assert driver.world.model.rings == [None, None]
    assert driver.world.model.reset_methods == ("af_flr",)


@pytest.mark.parametrize("queue", [0, 1, 2, 0xFFFF])
def test_notifications_without_a_ready_driver(queue: int) -> None:
    world = power_on(VirtioNet)
    world.write(16, queue, 2)
    assert world.model.statistics()["notifications"] == 1
    assert world.clock.waiting == 0


def test_vectors_stand_in_front_of_the_configuration_while_msix_is_on(driver: NetDriver) -> None:
    world = driver.world
    mac = world.read(20)
    at = world.enable_msix()
    assert world.read(24) == mac
    assert world.read(20, 2) == NO_VECTOR
    world.write(20, 2, 2)
    world.write(14, 1, 2)
    world.write(22, 1, 2)
    assert (world.read(20, 2), world.read(22, 2)) == (2, 1)
    world.write(14, 0, 2)
    assert world.read(22, 2) == NO_VECTOR
    world.write(14, 7, 2)  # no such queue
    world.write(22, 0, 2)
    assert world.read(22, 2) == NO_VECTOR
    world.write(20, 3, 2)  # no such vector: the driver reads back that it cannot have it
    assert world.read(20, 2) == NO_VECTOR
    world.model.config_write(at + pci.PCI_MSIX_FLAGS, 0, 2)
    assert world.read(20) == mac


def test_without_msix() -> None:
    world = power_on(VirtioNet, msix=0)
    assert world.capability(pci.PCI_CAP_ID_MSIX) == 0
    assert 1 not in world.model.bars


@pytest.mark.parametrize(
    "options", [{"queue_entries": 3}, {"queue_entries": 65536}, {"poll": -1}, {"msix": 2049}]
)
def test_options_that_make_no_sense(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        power_on(VirtioNet, bus_reset=False, master=True, **options)


# -- interrupts --------------------------------------------------------------------------------------


def test_intx_until_the_cause_is_read(driver: NetDriver) -> None:
    driver.post([0])
    driver.send(FRAME)
    driver.notify(1)
    assert driver.world.sink.take() == [("intx", True)]
    assert driver.world.read(19, 1) == virtio.VIRTIO_PCI_ISR_CONFIG >> 1
    assert driver.world.sink.take() == [("intx", False)]
    assert driver.world.read(19, 1) == 0


def test_msix_by_queue(driver: NetDriver) -> None:
    world = driver.world
    world.enable_msix()
    for vector in range(3):
        world.write(16 * vector + pci.PCI_MSIX_ENTRY_VECTOR_CTRL, 0, bar=1)
    for queue in (0, 1):
        world.write(14, queue, 2)
        world.write(22, queue + 1, 2)
    world.write(20, 0, 2)
    driver.post([0])
    driver.send(FRAME)
    driver.notify(1)
    assert world.sink.take() == [("msix", 2), ("msix", 1)]
    assert world.read(19, 1) == 0
    world.model.config_interrupt()
    assert world.sink.take() == [("msix", 0)]


def test_no_interrupt_that_the_driver_refuses(driver: NetDriver) -> None:
    driver.rx.refuse_interrupts()
    driver.tx.refuse_interrupts()
    driver.post([0])
    driver.send(FRAME)
    driver.notify(1)
    assert driver.received() == [FRAME]
    assert driver.world.sink.take() == []
    assert driver.world.model.statistics()["interrupts"] == 0


# -- who looks when ----------------------------------------------------------------------------------


def test_a_notification_is_served_before_the_access_ends(driver: NetDriver) -> None:
    driver.post([0, 1])
    driver.send(FRAME)
    driver.notify(1)
    assert driver.received() == [FRAME]


def test_then_the_device_looks_by_itself_and_at_last_sleeps(driver: NetDriver) -> None:
    driver.post([0, 1, 2])
    driver.send(FRAME)
    driver.notify(1)
    assert driver.tx.deaf
    assert driver.world.clock.waiting == 1
    driver.send(FRAME)  # not notified
    settle(driver)
    assert driver.received() == [FRAME, FRAME]
    assert not driver.tx.deaf
    assert driver.world.clock.waiting == 0
    driver.send(FRAME)
    settle(driver)
    assert driver.received() == [], "it sleeps"
    driver.notify(1)
    assert driver.received() == [FRAME]


def test_waiting_in_vain_makes_it_less_patient_and_a_hit_patient_again(driver: NetDriver) -> None:
    model = driver.world.model
    settle(driver)
    patience = [model.patience]
    for _ in range(7):
        driver.send(FRAME)
        driver.notify(1)
        settle(driver)
        patience.append(model.patience)
    assert patience == [32, 16, 8, 4, 2, 1, 0, 0]
    turns = model.statistics()["turns"]
    driver.send(FRAME)
    driver.notify(1)
    settle(driver)
    assert model.statistics()["turns"] == turns + 1
    while model.patience == 0:  # now and then it tries in full
        driver.send(FRAME)
        driver.notify(1)
        settle(driver)
    assert model.patience == model.poll


def test_a_frame_that_slips_in_before_it_sleeps(
    driver: NetDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of notification suppression: the last look comes after the flag is cleared."""
    driver.post([0, 1, 2])
    settle(driver)
    driver.send(FRAME)
    driver.notify(1)
    slipped: list[bytes] = []

    def barrier() -> None:
        if not driver.tx.deaf and not slipped:  # the device has just said that it will listen
            slipped.append(FRAME)
            driver.send(FRAME)  # by a driver that read the flag before that

    monkeypatch.setattr(vring, "fence", barrier)
    settle(driver)
    assert slipped
    assert driver.received() == [FRAME, FRAME]


def test_poll_0_asks_for_every_notification() -> None:
    driver = net_driver(poll=0)
    driver.post([0, 1])
    driver.send(FRAME)
    driver.notify(1)
    settle(driver)
    assert driver.world.model.statistics()["turns"] <= 2
    assert not driver.tx.deaf


def test_an_idle_device_costs_nothing(driver: NetDriver) -> None:
    settle(driver)
    assert driver.world.clock.waiting == 0


# -- rings that make no sense ------------------------------------------------------------------------


def stopped(driver: NetDriver, why: str) -> None:
    model = driver.world.model
    assert driver.world.read(18, 1) & virtio.VIRTIO_CONFIG_S_NEEDS_RESET
    assert why in model.stopped_because
    assert model.statistics()["stops"] == 1
    assert driver.world.read(19, 1) & virtio.VIRTIO_PCI_ISR_CONFIG
    driver.send(FRAME)
    driver.notify(1)
    settle(driver)
    assert driver.world.clock.waiting == 0
    assert driver.received() == []
    driver.start()
    assert not driver.world.read(18, 1) & virtio.VIRTIO_CONFIG_S_NEEDS_RESET
    driver.post([0])
    driver.send(FRAME)
    driver.notify(1)
    assert driver.received() == [FRAME]


def test_a_broken_ring_stops_the_device_until_it_is_reset(driver: NetDriver) -> None:
    driver.post([0])
    driver.tx.offer(99)
    driver.notify(1)
    stopped(driver, "descriptor 99 does not exist")


def test_an_unmapped_ring_as_well(driver: NetDriver) -> None:
    driver.world.write(14, 1, 2)
    driver.world.write(8, 0x7FFFF)
    driver.notify(1)
    stopped(driver, "not mapped")
    assert driver.domain.fault_count > 0


def test_status_cannot_be_written_out_of_it(driver: NetDriver) -> None:
    driver.tx.offer(99)
    driver.notify(1)
    driver.world.write(18, 7, 1)
    assert driver.world.read(18, 1) & virtio.VIRTIO_CONFIG_S_NEEDS_RESET


def test_a_program_that_is_gone(driver: NetDriver) -> None:
    driver.send(FRAME)
    driver.notify(1)
    driver.domain.close()
    driver.world.model.detach()
    settle(driver)
    assert driver.world.clock.waiting == 0
    assert driver.world.model.statistics()["stops"] == 1
