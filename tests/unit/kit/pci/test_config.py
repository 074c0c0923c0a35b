"""Physical configuration space: masks, hooks, reset, the edges."""

from __future__ import annotations

from uvfio.kit.pci.config import ConfigSpace


def make() -> ConfigSpace:
    config = ConfigSpace(256)
    config.define(0x04, 2, 0x0001, writable=0x00FF)
    config.define(0x06, 2, 0xF010, w1c=0xF000)
    config.seal()
    return config


def test_fixed_writable_and_clearable_bits() -> None:
    config = make()
    config.write(0x04, 0x3000_FFFE, 4)
    assert config.read(0x04, 4) == 0xC010_00FE
    assert config.read(0x07, 1) == 0xC0


def test_undefined_bytes_are_fixed_zero() -> None:
    config = make()
    config.write(0x40, 0xFFFF_FFFF, 4)
    assert config.read(0x40, 4) == 0


def test_value_is_cut_to_the_width() -> None:
    config = make()
    config.write(0x04, 0xFFFF_FF55, 1)
    assert config.read(0x04, 2) == 0x55


def test_outside() -> None:
    config = make()
    assert config.read(256, 4) == 0xFFFF_FFFF
    assert config.read(254, 4) == 0xFFFF_FFFF
    assert config.read(-4, 2) == 0xFFFF
    config.write(256, 0, 4)
    config.write(-4, 0, 4)
    assert config.data == make().data


def test_reset_restores_what_was_sealed() -> None:
    config = make()
    config.put(0x08, 4, 0xDEADBEEF)
    config.write(0x04, 0xAA, 1)
    assert config.get(0x08, 4) == 0xDEADBEEF
    config.reset()
    assert config.data == make().data


def test_hook_is_called_after_bus_writes_to_its_double_word_only() -> None:
    config = make()
    seen: list[int] = []
    config.on_write(0x06, lambda: seen.append(config.get(0x04, 2)))
    config.write(0x04, 0x12, 1)
    config.write(0x07, 0, 1)
    config.write(0x08, 0, 4)
    config.put(0x04, 1, 0x55)
    config.reset()
    assert seen == [0x12, 0x12]
