"""Mistakes of a model's author, in one message: file, line, register or method, and what to do.

    when                                 what is raised
    a file of the author is imported     ``ModelError``, made by ``models/catalogue.py`` with ``explain``
    a device is made (``make``)          ``ModelError``
    a class is made                      ValueError by the declaration (``check_hook``); the two above name the line
    a hook, a timer, a reset             ``ModelMistake``, raised by ``mistaken``; the run goes on

A refusal (``VfioError``) is no mistake and passes unchanged, and so do MemoryError and an interrupt of the user:
``PASSED`` are these. Everything else that a method can raise is a mistake, SystemExit and an author's own class of
BaseException included, because a model must not end the process that it runs in.

The texts are made by ``explain.py``, when there is one to be made.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from uvfio.errors import ConfigError, ModelError, VfioError

if TYPE_CHECKING:
    from uvfio.kit.description import Description

__all__ = ["PASSED", "check_hook", "make"]

PASSED = (VfioError, MemoryError, KeyboardInterrupt)

_VARARGS, _NO_PLAIN_CALL = 0x04, 0x20 | 0x80 | 0x200  # generator, coroutine, asynchronous generator
_CALLED_WITH = {"read": ("self",), "store": ("self", "old", "new"), "write": ("self", "value")}


class _Device(Protocol):
    """What is made."""

    is_made: bool


T = TypeVar("T", bound=_Device)


def make(model: type[T], name: str, **arguments: Any) -> T:
    """An instance of ``model``. What it refuses on purpose is raised as it is, a mistake as ModelError."""
    try:
        device: T = cast("Any", model)(name, **arguments)
    except ConfigError as error:
        if isinstance(error.__cause__, ValueError):  # of a declaration
            from uvfio.kit.explain import defined

            raise ModelError(
                f"{defined(model)}: {model.__name__}: {error.__cause__}", error.hint
            ) from error
        raise
    except PASSED:
        raise
    except BaseException as error:
        from uvfio.kit.explain import unmade

        raise ModelError(*unmade(model, error)) from error
    if not device.is_made:
        from uvfio.kit.explain import uninitialised

        raise ModelError(*uninitialised(model))
    return device


def check_hook(owner: type, hook: Any, register: Description, kind: str, array: bool) -> None:
    """ValueError if ``hook``, which is on_``kind`` of ``register``, cannot be called as such."""
    code = getattr(hook, "__code__", None)
    if code is None:
        return  # an object with __call__: only a call can tell
    wanted = _CALLED_WITH[kind]
    if array:
        wanted = (wanted[0], "index", *wanted[1:])
    least = code.co_argcount - len(hook.__defaults__ or ())
    most = sys.maxsize if code.co_flags & _VARARGS else code.co_argcount
    named = code.co_kwonlyargcount - len(hook.__kwdefaults__ or ())
    wrong = ""
    if code.co_flags & _NO_PLAIN_CALL:
        wrong = f"is on_{kind} of register {register.name}, and must be a plain method: no async, no yield"
    elif not least <= len(wanted) <= most or named > 0:
        called = ", ".join(wanted)
        wrong = f"is on_{kind} of register {register.name} and is called with ({called})"
    if wrong:
        from uvfio.kit.explain import defined

        names = ", ".join(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        raise ValueError(f"{defined(hook)}: {owner.__name__}.{hook.__name__}({names}) {wrong}")
