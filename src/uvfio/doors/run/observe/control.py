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

No client delays the run: sockets do not block, each client has one request served per turn of the loop, a client that
does not take its answers has no further request served, and there are ``CLIENTS_MAX`` at a time. Every request
that was read gets an answer, also if a model raises SystemExit.

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
from uvfio.doors.run.session.report import culprit, report_bug
from uvfio.errors import Busy, ConfigError, InvalidArgument, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Wait
    from uvfio.doors.run.session.session import Session

__all__ = ["Control"]

LINE_MAX = 65536
OUTPUT_MAX = 1 << 20  # bytes that may wait for a client, besides the last answer
CLIENTS_MAX = 64
ASK_INTERVAL = 1.0  # seconds between two requests to the users of a device that an unbind waits for


class Client:
    """One connection: what it sent and is not served yet, and what it was answered and has not taken yet.

    While an answer waits for the client, none of its requests is served and nothing is read from it.
    """

    __slots__ = ("buffer", "ended", "gone", "output", "socket", "stop")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.buffer = b""
        self.output = b""
        self.ended = False  # it sends nothing more
        self.gone = False
        self.stop: Callable[[], None] = lambda: None

    def send(self, answer: dict[str, Any]) -> None:
        """Queue one line and send what the client takes. Dropped if it has hung up or leaves too much untaken."""
        if len(self.output) < OUTPUT_MAX:
            self.output += _encode(answer)
        self.flush()

    def flush(self) -> None:
        """Send what the client takes now."""
        try:
            while self.output and not self.gone:
                self.output = self.output[self.socket.send(self.output) :]
        except BlockingIOError:
            return
        except OSError:
            self.gone = True
            self.output = b""


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
                f"--control {path}: {error.strerror or error}",
                "choose a path of 107 bytes at most, in a folder that exists, where no file is",
            ) from error
        finally:
            os.umask(mask)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
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
        os.close(self._spare)
        for client in list(self.clients):
            self._drop(client)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    # -- connections -------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return  # it left meanwhile
        client = Client(connection)
        if len(self.clients) >= CLIENTS_MAX:
            client.send(
                _failure(Busy(f"{CLIENTS_MAX} clients are connected", "close one and try again"))
            )
            connection.close()
            return
        self.clients.add(client)
        self._await(client)

    def _turn_away(self) -> None:
        """Without a free descriptor: hang up on the next client, or the listener would stay readable for ever."""
        os.close(self._spare)
        try:
            self._listener.accept()[0].close()
        except OSError:
            pass  # it left
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _await(self, client: Client) -> None:
        """Watch for what is next: room for an answer, or the next request."""
        client.stop()
        client.stop = lambda: None
        if client.gone or (client.ended and not client.output and b"\n" not in client.buffer):
            self._drop(client)
        elif client.output:
            fd = client.socket.fileno()
            client.stop = self.session.reactor.watch(fd, lambda: self._turn(client), writable=True)
        elif b"\n" in client.buffer:
            client.stop = self.session.reactor.call_later(0, lambda: self._turn(client)).cancel
        else:
            fd = client.socket.fileno()
            client.stop = self.session.reactor.watch(fd, lambda: self._receive(client))

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.ended = not data
        client.buffer += data
        self._turn(client)

    def _turn(self, client: Client) -> None:
        """Serve one request of a client that has taken all answers: clients and programs take turns."""
        client.flush()
        if not client.output and b"\n" in client.buffer:
            line, _, client.buffer = client.buffer.partition(b"\n")
            if line.strip():
                self._serve(client, line)
        if b"\n" not in client.buffer and len(client.buffer) > LINE_MAX:
            client.send(_failure(InvalidArgument(f"a request has at most {LINE_MAX} bytes")))
            client.gone = True
        self._await(client)

    def _drop(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)
            client.gone = True
            client.stop()
            client.socket.close()
            self.session.waits.poll()  # cancels the unbind that this client waits for

    # -- requests ----------------------------------------------------------------------------------

    def _serve(self, client: Client, line: bytes) -> None:
        answer: dict[str, Any] | None
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise InvalidArgument("a request is a JSON object")
            answer = self._dispatch(client, request)
        except VfioError as error:
            answer = _failure(error)
        except RecursionError:
            answer = _failure(InvalidArgument("a request is one flat JSON object: too deep"))
        except ValueError as error:
            answer = {"ok": False, "error": f"not JSON: {error}", "hint": "one object per line"}
        except BaseException as error:
            answer = _mistake(error)
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
            if error is None:
                client.send({"ok": True})
            else:
                client.send(_failure(error) if isinstance(error, VfioError) else _mistake(error))
            self._await(client)

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


def _mistake(error: BaseException) -> dict[str, Any]:
    """The answer to a request in which a model, or uvfio, raised what is no refusal; the stack goes to stderr."""
    report_bug("a request to the control socket; it is refused", error)
    found = culprit(error)
    where = f" in {found[0]}:{found[1]}" if found is not None else ""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its text raises
        text = type(error).__name__
    return {
        "ok": False,
        "error": f"{text}{where}",
        "hint": "a mistake of a model; the stack is on the run's stderr",
        "errno": "EIO",
    }


def _encode(answer: dict[str, Any]) -> bytes:
    """One line. What JSON cannot say (a model's statistics may be anything) makes it a failure."""
    try:
        return json.dumps(answer).encode() + b"\n"
    except BaseException as error:
        return json.dumps(_mistake(error)).encode() + b"\n"
