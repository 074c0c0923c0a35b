"""Options of a model: conversion, checks, and errors that name key and value."""

from __future__ import annotations

from typing import Any

import pytest

from uvfio.errors import ConfigError
from uvfio.kit.option import Option, resolve, suggest


def even(value: int) -> str:
    return "is odd" if value % 2 else ""


OPTIONS: dict[str, Option[Any]] = {
    "mask": Option(int, 0xFF, "bits"),
    "delay": Option(float, 0.5, "seconds"),
    "fast": Option(bool, False, "speed"),
    "label": Option(str, "x", "a name"),
    "pairs": Option(int, 2, "an even number", check=even),
}
for _name, _option in OPTIONS.items():
    _option.__set_name__(object, _name)


def value(key: str, given: object) -> object:
    return resolve(OPTIONS, {key: given}, "dev")[key]


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("mask", 7, 7),
        ("mask", "0x1f", 31),
        ("mask", "0X1F", 31),
        ("mask", " 12 ", 12),
        ("mask", "4K", 4096),
        ("mask", "2g", 2 << 30),
        ("mask", "-1", -1),
        ("delay", 2, 2.0),
        ("delay", "1e-3", 0.001),
        ("fast", True, True),
        ("fast", "on", True),
        ("fast", "No", False),
        ("label", "hello", "hello"),
        ("label", "", ""),
        ("pairs", "6", 6),
    ],
)
def test_values_are_converted(key: str, given: object, expected: object) -> None:
    found = value(key, given)
    assert found == expected
    assert type(found) is OPTIONS[key].kind


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("mask", "foo", r"^dev: mask 'foo' is not a whole number$"),
        ("mask", "", r"^dev: mask '' is not a whole number$"),
        ("mask", "K", r"^dev: mask 'K' is not a whole number$"),
        ("mask", 1.5, r"^dev: mask 1.5 is not a whole number$"),
        ("mask", True, r"^dev: mask True is not a whole number$"),
        ("delay", "soon", r"^dev: delay 'soon' is not a number$"),
        ("delay", "nan", r"^dev: delay 'nan' is not a number$"),
        ("delay", "inf", r"^dev: delay 'inf' is not a number$"),
        ("delay", [], r"^dev: delay \[\] is not a number$"),
        ("fast", "maybe", r"^dev: fast 'maybe' is not true or false$"),
        ("fast", 1, r"^dev: fast 1 is not true or false$"),
        ("label", 5, r"^dev: label 5 is not a string$"),
        ("pairs", "3", r"^dev: pairs '3' is odd$"),
        ("colour", "red", r"^dev: colour 'red' is not an option of this model$"),
    ],
)
def test_wrong_values_name_key_and_value(key: str, given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        value(key, given)


def test_defaults() -> None:
    expected = {"mask": 255, "delay": 0.5, "fast": False, "label": "x", "pairs": 2}
    assert resolve(OPTIONS, {}, "dev") == expected


def test_hints() -> None:
    with pytest.raises(ConfigError) as near:
        value("dealy", 1)
    assert near.value.hint == "did you mean 'delay'?"
    with pytest.raises(ConfigError) as far:
        value("zzzzzz", 1)
    assert far.value.hint == "it takes mask, delay, fast, label, pairs"
    with pytest.raises(ConfigError) as none:
        resolve({}, {"a": 1}, "dev")
    assert none.value.hint == "it takes no options"
    assert suggest("qqq", OPTIONS) == ""


def test_as_attribute() -> None:
    class Thing:
        mask = Option(int, 1, "bits")

        def __init__(self) -> None:
            self.option_values: dict[str, object] = {"mask": 9}

    thing = Thing()
    assert thing.mask == 9
    assert Thing.mask.describe() == {"name": "mask", "type": "int", "default": 1, "help": "bits"}
    with pytest.raises(AttributeError, match=r"^option mask is fixed when the device is made$"):
        thing.mask = 3
