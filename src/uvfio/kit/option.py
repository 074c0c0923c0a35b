"""Options of a model: declared with type, default and help, checked when a device is made.

    dma_mask = Option(int, 0xFFFFFFF, "address bits that the DMA engine drives")

On an instance the attribute is the value, of the declared type. Values come as strings (``-d edu,dma_mask=0xff``)
or typed (machine files, Python); both are converted here. A key that no option has and a value that does
not fit are ``ConfigError``s that name device, key and value; nothing was made then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from uvfio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Option", "not_negative", "resolve", "suggest", "whole_number"]

T = TypeVar("T", bound=bool | int | float | str)

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def not_negative(number: float) -> str:
    """A ``check`` for counts and durations."""
    return "is negative" if number < 0 else ""


class _HasOptions(Protocol):
    option_values: dict[str, object]


class Option(Generic[T]):
    """One option. ``check`` returns what is wrong with a value ("is not a power of two"), or "".

    An int may be written in decimal, with 0x, or with a unit K, M, G, T (powers of 1024).
    """

    def __init__(
        self,
        kind: type[T],
        default: T,
        help: str,  # noqa: A002 - the field's word for it
        *,
        check: Callable[[T], str] | None = None,
    ) -> None:
        if kind not in _KINDS:
            raise TypeError(f"Option({kind!r}, ...): the type is bool, int, float or str")
        if not isinstance(default, (int, float) if kind is float else kind) or (
            isinstance(default, bool) and kind is not bool
        ):
            raise TypeError(
                f"Option({kind.__name__}, {default!r}, ...): the default is not {_KINDS[kind]}"
            )
        problem = check(default) if check else ""
        if problem:
            raise ValueError(f"Option({kind.__name__}, {default!r}, ...): the default {problem}")
        self.name = ""
        self.kind = kind
        self.default = default
        self.help = help
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Option[T]: ...
    @overload
    def __get__(self, instance: _HasOptions, owner: type) -> T: ...
    def __get__(self, instance: _HasOptions | None, owner: type) -> object:
        return self if instance is None else instance.option_values[self.name]

    def __set__(self, instance: _HasOptions, value: T) -> None:
        raise AttributeError(f"option {self.name} is fixed when the device is made")

    def parse(self, value: object, where: str) -> T:
        """``value`` as the option's type. ConfigError if it is not one, or ``check`` objects."""
        converted = self._convert(value)
        if converted is None:
            raise ConfigError(
                f"{where}: {self.name} {value!r} is not {_KINDS[self.kind]}", self.help
            )
        problem = self._check(converted) if self._check else ""
        if problem:
            raise ConfigError(f"{where}: {self.name} {value!r} {problem}", self.help)
        return converted

    def describe(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "name": self.name,
            "type": self.kind.__name__,
            "default": self.default,
            "help": self.help,
        }

    def _convert(self, value: object) -> T | None:
        found: object = None
        if self.kind is bool:
            text = str(value).lower() if isinstance(value, bool | str) else ""
            found = True if text in _TRUE else False if text in _FALSE else None
        elif isinstance(value, bool):
            found = None
        elif self.kind is int:
            found = value if isinstance(value, int) else whole_number(value)
        elif self.kind is float:
            found = _real(value)
        elif isinstance(value, str):
            found = value
        return found  # type: ignore[return-value]


def resolve(
    options: Mapping[str, Option[Any]],
    given: Mapping[str, object],
    where: str,
) -> dict[str, object]:
    """The value of every option: what is given, or the default. ConfigError."""
    for key in given:
        if key not in options:
            known = f"it takes {', '.join(options)}" if options else "it takes no options"
            raise ConfigError(
                f"{where}: {_word(key)} {given[key]!r} is not an option of this model",
                suggest(key, options) or known,
            )
    return {
        name: option.parse(given[name], where) if name in given else option.default
        for name, option in options.items()
    }


def _word(key: str) -> str:
    """A key as it was written; quoted where it is no word."""
    return key if key.isidentifier() else repr(key)


def suggest(word: str, known: Mapping[str, object]) -> str:
    """A hint "did you mean 'edu'?" for a misspelt word, or "" when nothing is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else ""


def whole_number(value: object) -> int | None:
    """The number that the text ``value`` states: decimal or with 0x, or with the unit K, M, G or T (powers of 1024).

    None for anything else.
    """
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    unit = 1 if text.startswith("0x") else _UNITS.get(text[-1:], 1)
    try:
        return int(text if unit == 1 else text[:-1], 0) * unit
    except ValueError:
        return None


def _real(value: object) -> float | None:
    if isinstance(value, int | float | str):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if number - number == 0 else None  # neither nan nor infinite
    return None
