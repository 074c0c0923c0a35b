"""The control socket of a run: plug, unplug, bind and unbind devices under programs that use them.

A client sends one JSON object per line and gets one answer per request, in order of completion::

    {"verb": "plug", "device": "edu@0000:08:00.0,group=9"}     {"ok": true, "address": "0000:08:00.0"}
    {"verb": "unplug", "address": "0000:08:00.0"}              {"ok": true}
    {"verb": "bind", "address": "...", "driver": "vfio-pci"}   {"ok": true}
    {"verb": "unbind", "address": "...", "timeout": 5.0, "revoke": true}
    {"verb": "numvfs", "address": "...", "number": 2}          {"ok": true}, with timeout and revoke as for unbind
    {"verb": "status"}                                         {"ok": true, "machine": {...}, "run": {...}}
    a request that fails                                       {"ok": false, "error": "...", "hint": "..."}

All requests are served on the supervisor's thread, between two trapped calls. An unbind that has to wait is one of the
supervisor's ``Waits``, and is cancelled when its client hangs up. When a request is answered, the files that programs
see (/dev/vfio, /sys) show its effect.

This module consumes no event: a request causes what it reports, and ``status`` is a query (``status.run_facts``). It
has no lock, because sockets are read and written on one thread.

The socket is accessible to the user who started the run (mode 0600) and is removed at the end of the run.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

from uvfio.doors.run.observe.status import run_facts
from uvfio.errors import ConfigError, InvalidArgument, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Wait
    from uvfio.doors.run.session.session import Session

__all__ = ["Control"]

LINE_MAX = 65536
ASK_INTERVAL = 1.0  # seconds between two requests to the users of a device that an unbind waits for


class Client:
    """One connection: the bytes of an incomplete line, and whether the client has hung up."""

    __slots__ = ("buffer", "gone", "socket", "stop")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = b""
        self.gone = False
        self.stop: Callable[[], None] = lambda: None

    def send(self, answer: dict[str, Any]) -> None:
        """Send one line; it is dropped if the client has hung up."""
        data = json.dumps(answer).encode() + b"\n"
        try:
            while data and not self.gone:
                data = data[self.socket.send(data) :]
        except OSError:
            self.gone = True


class Control:
    """Listen at ``path`` until ``close``. ConfigError if a socket cannot be made there."""

    def __init__(self, session: Session, path: str) -> None:
        self.session = session
        self.path = os.path.abspath(path)
        self.clients: set[Client] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            self._bind()
        except OSError as error:
            self._listener.close()
            raise ConfigError(
                f"--control {path}: {error.strerror or error}", "choose a path that is free"
            ) from error
        finally:
            os.umask(mask)
        self._listener.listen(16)
        self._stop = session.reactor.watch(self._listener.fileno(), self._accept)

    def _bind(self) -> None:
        try:
            self._listener.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self._answered():
                raise
            os.unlink(self.path)  # a run that was killed left it
            self._listener.bind(self.path)

    def _answered(self) -> bool:
        """Whether the path is taken: by a listening socket, or by a file that is no socket."""
        if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
            return True
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            probe.connect(self.path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        finally:
            probe.close()
        return True

    def close(self) -> None:
        """Hang up on all clients and remove the socket. Waiting unbinds are cancelled."""
        self._stop()
        self._listener.close()
        for client in list(self.clients):
            self._drop(client)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    # -- connections -------------------------------------------------------------------------------

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        client = Client(connection)
        self.clients.add(client)
        client.stop = self.session.reactor.watch(connection.fileno(), lambda: self._receive(client))

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(LINE_MAX)
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        *lines, client.buffer = (client.buffer + data).split(b"\n")
        if len(client.buffer) > LINE_MAX:
            client.send(_failure(InvalidArgument(f"a request has at most {LINE_MAX} bytes")))
            self._drop(client)
            return
        for line in lines:
            if line.strip():
                self._serve(client, line)

    def _drop(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)
            client.gone = True
            client.stop()
            client.socket.close()
            self.session.waits.poll()  # cancels the unbind that this client waits for

    # -- requests ----------------------------------------------------------------------------------

    def _serve(self, client: Client, line: bytes) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise InvalidArgument("a request is a JSON object")
            answer = self._dispatch(client, request)
        except VfioError as error:
            answer = _failure(error)
        except ValueError as error:
            answer = {"ok": False, "error": f"not JSON: {error}", "hint": "one object per line"}
        if answer is not None:
            client.send(answer)

    def _dispatch(self, client: Client, request: dict[str, Any]) -> dict[str, Any] | None:
        machine = self.session.machine
        self.session.settle()
        verb = request.get("verb")
        if verb == "status":
            return {"ok": True, "machine": machine.describe(), "run": run_facts(self.session)}
        if verb == "plug":
            slot = machine.plug(_text(request, "device"))
            self.session.refresh_tree()
            return {"ok": True, "address": slot.address}
        if verb == "unplug":
            machine.unplug(_text(request, "address"))
            self.session.refresh_tree()
            return {"ok": True}
        if verb == "bind":
            driver = request.get("driver")
            if driver is not None and not isinstance(driver, str):
                raise InvalidArgument(f"driver {driver!r} is not a string")
            machine.bind(_text(request, "address"), driver)
            self.session.refresh_tree()
            return {"ok": True}
        if verb == "unbind":
            wait = machine.begin_unbind(_text(request, "address"), **_patience(request))
            return self._answer(client, wait)
        if verb == "numvfs":
            number = request.get("number")
            if not isinstance(number, int) or isinstance(number, bool):
                raise InvalidArgument(f"number {number!r} is not a number")
            wait = machine.begin_numvfs(_text(request, "address"), number, **_patience(request))
            return self._answer(client, wait)
        raise InvalidArgument(
            f"there is no verb {verb!r}", "plug, unplug, bind, unbind, numvfs and status are known"
        )

    def _answer(self, client: Client, wait: Wait | None) -> dict[str, Any] | None:
        """The answer if there is nothing to wait for, else None: it is sent when ``wait`` is done."""
        self.session.refresh_tree()
        if wait is None:
            return {"ok": True}

        def finish(error: BaseException | None) -> None:
            self.session.refresh_tree()
            if error is not None and not isinstance(error, VfioError):
                raise error
            client.send({"ok": True} if error is None else _failure(error))

        self.session.waits.add(wait, finish, lambda: not client.gone)
        return None


def _patience(request: dict[str, Any]) -> dict[str, Any]:
    """The arguments ``timeout``, ``revoke`` and ``interval`` of an unbind. InvalidArgument if they are malformed."""
    timeout, revoke = request.get("timeout"), bool(request.get("revoke", False))
    if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
        raise InvalidArgument(f"timeout {timeout!r} is not a number of seconds")
    return {"timeout": timeout, "revoke": revoke, "interval": ASK_INTERVAL}


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise InvalidArgument(f"{request.get('verb')} needs {key}, a string")
    return value


def _failure(error: VfioError) -> dict[str, Any]:
    name = errno.errorcode.get(error.errno or 0, "")
    return {"ok": False, "error": str(error), "hint": error.hint, "errno": name}
