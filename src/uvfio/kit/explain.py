"""The text of a message about a mistake of a model's author: which line, which method, what to do.

The line named is the innermost one of the author's: outside of uvfio (its own models count as outside) and of
Python's library.

Imported with the first model that is not built in (``models/catalogue.py``), so that no descriptor is needed when the
mistake happens, or with the first mistake. It formats no traceback.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Protocol

from uvfio.errors import ModelMistake

if TYPE_CHECKING:
    from types import TracebackType

    from uvfio.kit.register import RegisterMap

__all__ = [
    "Named",
    "defined",
    "explain",
    "hook_failed",
    "mistaken",
    "place",
    "uninitialised",
    "unmade",
]

_PACKAGE = __file__.rpartition("/kit/")[0] + "/"
_MODELS = _PACKAGE + "models/"
_CATALOGUE = _MODELS + "catalogue.py"
_LIBRARY = functools.__file__.rpartition("/")[0] + "/"
_INIT_HINT = (
    "define on_reset() for attributes of your own; an __init__ takes (self, *args, **kwargs) and calls "
    "super().__init__(*args, **kwargs) first"
)

_EXIT_HINT = "a model must not end the process that it runs in: return, or raise an Exception"


class Named(Protocol):
    """A device."""

    @property
    def name(self) -> str:
        """Its name on its bus."""


def unmade(model: type, error: BaseException) -> tuple[str, str]:
    """The message and the hint for ``error``, which ended the making of a ``model``."""
    at, name = place(error), model.__name__
    if not at:
        own = vars(model).get("__init__")
        if own is not None:  # it cannot even be called
            return f"{defined(own)}: {name}.__init__: {_text(error)}", _INIT_HINT
        return f"{defined(model)}: {name} cannot be made: {_text(error)}", ""
    method = _method(error)
    hints = {"on_reset": "on_reset() is called when the device is made and at each reset"}
    if isinstance(error, AttributeError | TypeError):
        hints["__init__"] = _INIT_HINT
    if not isinstance(error, Exception):
        hints[method] = _EXIT_HINT
    return f"{at}: {name}.{method} failed: {_text(error)}", hints.get(method, "")


def uninitialised(model: type) -> tuple[str, str]:
    """The message and the hint for an ``__init__`` without that of the kit."""
    own = getattr(model, "__init__", None)
    return f"{defined(own)}: {model.__name__}.__init__ does not call super().__init__()", _INIT_HINT


def mistaken(model: Named, what: str, error: BaseException) -> ModelMistake:
    """To be raised for ``error``, which the code of ``model`` raised in ``what`` ("on_reset")."""
    if isinstance(error, ModelMistake):
        return error
    at = place(error)
    where = f"{at}: " if at else ""
    hint = "the device is as the failed method left it, and the run goes on; mend the model"
    if not isinstance(error, Exception):
        hint = _EXIT_HINT
    return ModelMistake(f"{where}{model.name}: {what} failed: {_text(error)}", hint)


def hook_failed(
    model: Named, registers: RegisterMap, offset: int, way: str, error: BaseException
) -> ModelMistake:
    """The same for a "read" or "write" of the register at ``offset``."""
    name = registers.describe(offset)
    hooks = _hooks_at(model, registers, offset, ("read",) if way == "read" else ("store", "write"))
    said = _said(error)
    if isinstance(error, TypeError) and hooks and _raised_in(error, "uvfio.kit.register"):
        kind, hook = hooks[0]  # it returned, and what it returned is no number
        found = said.partition(" for &: ")[2].partition("'")[2].partition("'")[0]
        returned = found.removesuffix("Type") or "something else"
        return ModelMistake(
            f"{defined(hook)}: {model.name}: {hook.__qualname__}, on_{kind} of register {name}, returned "
            f"{returned} instead of a whole number",
            "return the value to be read" if kind == "read" else "return the value to be stored",
        )
    called = " or ".join(f"{hook.__qualname__}, on_{kind} of it," for kind, hook in hooks)
    what = f"a {way} of register {name}"
    return mistaken(model, f"{what}: {called}" if called else what, error)


def _hooks_at(
    model: Named, registers: RegisterMap, offset: int, kinds: tuple[str, ...]
) -> list[tuple[str, Any]]:
    from uvfio.kit.register import hooks_of

    hooks = {**hooks_of(type(registers)), **hooks_of(type(model))}
    touched = [register for _, register, _ in registers.touched(offset, 1)]
    return [(k, hooks[r, k]) for r in touched for k in kinds if (r, k) in hooks]


def _raised_in(error: BaseException, module: str) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == module


def explain(error: BaseException) -> tuple[str, str]:
    """``error`` of an import: file, line and what it is; and a hint."""
    at = place(error)
    where = f"{at}: " if at else ""
    if isinstance(error, SystemExit):
        hint = 'put what a script does under `if __name__ == "__main__":`'
        return f"{where}it calls sys.exit() when it is imported", hint
    return f"{where}{_text(error)}", _keyword_hint(error)


def place(error: BaseException) -> str:
    """``file.py:12`` of the author's innermost line; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    found = _innermost(error.__traceback__)
    return "" if found is None else f"{found.tb_frame.f_code.co_filename}:{found.tb_lineno}"


def defined(what: Any) -> str:
    """``file.py:12`` where a function or a class is defined; as much as is known."""
    code = getattr(what, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    if isinstance(what, type):
        methods = [getattr(value, "__code__", None) for value in vars(what).values()]
        line = getattr(what, "__firstlineno__", None)  # Python 3.13
        file = next((code.co_filename for code in methods if code is not None), None)
        file = getattr(sys.modules.get(what.__module__), "__file__", None) or file
        if line is None and file is not None:
            line = _class_line(what, file)
        return f"{file or what.__module__}" + (f":{line}" if line else "")
    return ""


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    found = None
    while trace is not None:
        if _is_authors(trace.tb_frame.f_code.co_filename):
            found = trace
        trace = trace.tb_next
    return found


def _is_authors(file: str) -> bool:
    if file.startswith(_MODELS):
        return file != _CATALOGUE
    if file.startswith("<"):
        return False
    library = file.startswith(_LIBRARY) and "site-packages" not in file
    return not library and not file.startswith(_PACKAGE)


def _method(error: BaseException) -> str:
    found = _innermost(error.__traceback__)
    return "" if found is None else found.tb_frame.f_code.co_name


def _said(error: BaseException) -> str:
    """The text of ``error``, which may raise, too: the author may have written ``__str__``."""
    try:
        return str(error)
    except Exception as second:
        return f"its text raises {type(second).__name__}"


def _text(error: BaseException) -> str:
    said = _said(error)
    if isinstance(error, SyntaxError):
        said = error.msg
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _class_line(what: type, file: str) -> int | None:
    import linecache

    starts = f"class {what.__name__}(", f"class {what.__name__}:"
    for number, line in enumerate(linecache.getlines(file), 1):
        if line.lstrip().startswith(starts):
            return number
    return None


def _keyword_hint(error: BaseException) -> str:
    """For a misspelt keyword of something of the kit: the one that is meant."""
    said = _said(error)
    head, found, rest = said.partition(" got an unexpected keyword argument ")
    if not isinstance(error, TypeError) or not found:
        return ""
    from uvfio.kit.option import suggest

    frame = _innermost(error.__traceback__)
    name = head.partition("(")[0].partition(".")[0]
    what = frame.tb_frame.f_globals.get(name) if frame is not None else None
    code = getattr(getattr(what, "__init__", None), "__code__", None)
    if code is None:
        return ""
    known = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    keyword = rest.removeprefix("'").partition("'")[0]  # since 3.13 Python's own guess may follow
    return suggest(keyword, dict.fromkeys(known)) or f"it takes {', '.join(known)}"
