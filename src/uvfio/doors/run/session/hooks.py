"""What the supervisor's thread is doing now: which hook of which model, in words. For another thread that asks.

A hook is Python code that uvfio calls and cannot interrupt. Nothing is recorded while one runs: the stack of the thread
tells it, and ``Reactor.since`` when the call or callback began. The stack is read while the thread runs on, so the
answer may be a moment old.

What this does not do: end a hook (``launch/front.py``).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from uvfio.kit.model import DeviceModel
from uvfio.kit.register import RegisterMap

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["describe"]

IDLE = frozenset({"Supervisor.serve", "Reactor.wait_for", "Reactor.poll", "Launched.wait"})
PARTS = ("kit", "core", "drivers", "fops", "doors", "machine", "cli")  # models are hooks as well
OURS = tuple(
    os.path.join(os.path.dirname(sys.modules["uvfio"].__path__[0]), "uvfio", part, "")
    for part in PARTS
)
LIBRARY = os.path.dirname(os.__file__) + os.sep


def describe(thread: int) -> str | None:
    """The hook that ``thread`` runs, else the function of uvfio; None while it waits for something to do."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return None
    if frame.f_code.co_qualname in IDLE and frame.f_code.co_filename.startswith(OURS):
        return None
    hook, device, register = None, "", ""
    innermost: FrameType | None = frame
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            owner = frame.f_locals.get("self")
            owner = getattr(getattr(owner, "_all", None), "model", owner)  # a pending call's
            if isinstance(owner, DeviceModel):
                device = device or f" of device {owner!r}"
            elif isinstance(owner, RegisterMap) and code.co_name in ("read", "write"):
                register = register or _register(owner, frame.f_locals.get("offset"))
        elif hook is None and _is_foreign(code.co_filename):
            hook = frame
        frame = frame.f_back
    hook = hook or innermost
    assert hook is not None
    name, where = hook.f_code.co_qualname, f"{hook.f_code.co_filename}:{hook.f_lineno}"
    return f"{name} ({where}){register}{device}"


def _is_foreign(name: str) -> bool:
    return "site-packages" in name or not name.startswith((LIBRARY, "<frozen"))


def _register(registers: RegisterMap, offset: object) -> str:
    for name, register in vars(type(registers)).items():
        if getattr(register, "offset", None) == offset:
            return f", register {name}"
    return f", register at {offset:#x}" if isinstance(offset, int) else ""
