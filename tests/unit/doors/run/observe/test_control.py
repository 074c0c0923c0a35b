"""The control socket: where it may be made, what a client may send, and what a client cannot break."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uvfio.doors.local import Process
from uvfio.doors.run.observe.control import CLIENTS_MAX, LINE_MAX, Control
from uvfio.errors import Busy, ConfigError
from uvfio.machine.machine import Machine
from uvfio.uapi.rfc import VFIO_GROUP_GET_DEVICE_FD

EDU = "0000:07:00.0"


class FakeReactor:
    """Calls what is watched when the test wants it."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.due: list[Callable[[], None]] = []

    def watch(
        self, fd: int, callback: Callable[[], None], *, writable: bool = False
    ) -> Callable[[], None]:
        self.watched[fd] = callback
        return lambda: self.watched.pop(fd, None) and None

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        assert delay == 0
        self.due.append(callback)

        def cancel() -> None:
            if callback in self.due:
                self.due.remove(callback)

        return SimpleNamespace(cancel=cancel)

    def run(self) -> None:
        for callback in tuple(self.watched.values()):
            callback()


class FakeWaits:
    """Keeps what is to be answered later."""

    def __init__(self) -> None:
        self.added: list[
            tuple[Any, Callable[[BaseException | None], None], Callable[[], bool]]
        ] = []
        self.polls = 0

    def add(self, *owed: Any) -> None:
        self.added.append(cast("Any", owed))

    def poll(self) -> None:
        self.polls += 1


class FakeSession:
    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.waits = FakeWaits()
        self.machine = Machine()
        self.processes = SimpleNamespace(by_tgid={})
        self.tokens: list[Any] = []
        self.refreshed = 0

    def settle(self) -> None: ...

    def refresh_tree(self) -> None:
        self.refreshed += 1


class Desk:
    """A control socket, and clients that talk to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.turns = 0
        self.session = FakeSession()
        self.control = Control(cast("Any", self.session), str(path))

    def client(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(str(self.path))
        while select.select([self.listener], [], [], 0)[0]:
            self.session.reactor.watched[self.listener]()
        return connection

    @property
    def listener(self) -> int:
        return self.control._listener.fileno()

    def serve(self) -> None:
        """Let the control receive what clients have sent."""
        for fd, callback in tuple(self.session.reactor.watched.items()):
            if fd != self.listener:
                callback()
        turns = 0
        while self.session.reactor.due:
            self.session.reactor.due.pop(0)()
            turns += 1
        self.turns = turns

    def ask(self, *lines: bytes) -> list[dict[str, Any]]:
        client = self.client()
        client.sendall(b"".join(line + b"\n" for line in lines))
        self.serve()
        got = b""
        while got.count(b"\n") < len(lines):
            got += client.recv(1 << 20)
        client.close()
        return [json.loads(line) for line in got.splitlines()]

    def request(self, **request: object) -> dict[str, Any]:
        return self.ask(json.dumps(request).encode())[0]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "control")
    yield desk
    desk.control.close()
    assert not desk.path.exists()


# -- where it is made -----------------------------------------------------------------------------


def test_only_the_user_may_connect(desk: Desk) -> None:
    assert stat.S_IMODE(os.stat(desk.path).st_mode) == 0o600


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    desk = Desk(path)
    assert desk.request(verb="plug", device="edu")["ok"]
    desk.control.close()


def test_a_socket_in_use_is_not_taken(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="--control"):
        Desk(desk.path)
    assert desk.request(verb="plug", device="edu")["ok"]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="precious"):
        Desk(path)
    assert path.read_text() == "data"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    before = os.umask(0o022)
    os.umask(before)
    with pytest.raises(ConfigError, match="No such file"):
        Desk(tmp_path / "nowhere" / "control")
    assert os.umask(before) == before, "the umask is as it was"


def test_a_socket_that_is_gone_already_can_be_closed(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "control")
    desk.path.unlink()
    desk.control.close()


# -- requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello", "not JSON"),
        (b"[1]", "a request is a JSON object"),
        (b"{}", "there is no verb None"),
        (b'{"verb": "fly"}', "there is no verb 'fly'"),
        (b'{"verb": "plug"}', "device"),
        (b'{"verb": "bind", "address": "0000:07:00.0", "driver": 5}', "driver 5 is not a string"),
        (b'{"verb": "numvfs", "address": "0000:07:00.0", "number": true}', "is not a number"),
        (b'{"verb": "numvfs", "address": "0000:07:00.0", "number": "2"}', "is not a number"),
        (b'{"verb": "unbind", "address": "0000:07:00.0", "timeout": "soon"}', "timeout"),
        (b'{"verb": "unplug", "address": "0000:09:00.0"}', "no device 0000:09:00.0"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_a_bad_request_is_refused_and_changes_nothing(desk: Desk, line: bytes, error: str) -> None:
    before = desk.session.machine.describe()
    (answer,) = desk.ask(line)
    assert answer["ok"] is False
    assert error in answer["error"]
    assert desk.session.machine.describe() == before


def test_requests_in_one_packet_are_answered_in_order(desk: Desk) -> None:
    answers = desk.ask(
        b'{"verb": "plug", "device": "edu@0000:09:00.0,group=9"}',
        b'{"verb": "unplug", "address": "0000:09:00.0"}',
        b'{"verb": "unplug", "address": "0000:09:00.0"}',
    )
    assert [answer["ok"] for answer in answers] == [True, True, False]
    assert desk.session.refreshed == 2


def test_a_request_in_pieces_is_one(desk: Desk) -> None:
    client = desk.client()
    for piece in (b'{"verb": "unp', b'lug", "address": ', b'"0000:07:00.0"}\n\n'):
        client.sendall(piece)
        desk.serve()
    assert json.loads(client.recv(4096)) == {"ok": True}
    client.close()


def test_a_request_that_is_too_long_ends_the_connection_and_no_other(desk: Desk) -> None:
    other, client = desk.client(), desk.client()
    sent = 0
    while sent <= LINE_MAX:
        sent += client.send(b"x" * 4096)
        desk_fd = max(fd for fd in desk.session.reactor.watched if fd != desk.listener)
        desk.session.reactor.watched[desk_fd]()
        if len(desk.control.clients) == 1:
            break  # it was refused and dropped
    assert "at most" in json.loads(client.recv(4096))["error"]
    assert client.recv(1) == b""
    other.sendall(b'{"verb": "unplug", "address": "0000:07:00.0"}\n')
    desk.serve()
    assert json.loads(other.recv(4096)) == {"ok": True}
    client.close()
    other.close()


# -- answers that take a while, and clients that hang up --------------------------------------------


def use(desk: Desk) -> Process:
    """A process that has the device open."""
    me = Process(cast("Any", desk.session.machine), abi="2011")
    group = me.open("/dev/vfio/241")
    me.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, EDU)
    return me


def test_an_unbind_is_answered_when_it_is_done(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    client, user = desk.client(), use(desk)
    client.sendall(b'{"verb": "unbind", "address": "0000:07:00.0", "timeout": 5}\n')
    desk.serve()
    ((wait, finish, alive),) = desk.session.waits.added
    assert alive()
    assert not wait.poll()
    user.exit()
    assert wait.poll()
    finish(None)
    assert json.loads(client.recv(4096)) == {"ok": True}
    finish(Busy("in use", "close it"))
    assert json.loads(client.recv(4096)) == {
        "ok": False,
        "error": "in use",
        "hint": "close it",
        "errno": "EBUSY",
    }
    finish(RuntimeError("a defect"))
    assert json.loads(client.recv(4096))["error"] == "RuntimeError: a defect"
    assert "RuntimeError: a defect" in capsys.readouterr().err
    client.close()


def test_a_client_that_hangs_up_gives_up_its_unbind(desk: Desk) -> None:
    client, user = desk.client(), use(desk)
    client.sendall(b'{"verb": "unbind", "address": "0000:07:00.0"}\n')
    desk.serve()
    ((wait, finish, alive),) = desk.session.waits.added
    client.close()
    desk.serve()
    assert not alive()
    assert desk.session.waits.polls == 1
    finish(None)  # the answer is dropped
    wait.cancel()
    user.exit()


def test_a_client_that_is_gone_before_the_answer(desk: Desk) -> None:
    client = desk.client()
    client.sendall(b'{"verb": "unplug", "address": "0000:07:00.0"}\n' * 3)
    client.close()
    desk.serve()
    desk.serve()
    assert desk.control.clients == set()


# -- what a client cannot do to the run ------------------------------------------------------------


def test_a_client_that_does_not_read_is_not_served_further(desk: Desk) -> None:
    """What waits for it is bounded by one answer; the programs and other clients are served."""
    silent = desk.client()
    silent.setblocking(False)
    (served,) = desk.control.clients
    for _ in range(400):
        try:
            silent.sendall(b'{"verb": "status"}\n' * 20)
        except BlockingIOError:
            break
        desk.serve()
    assert served.output, "an answer waits for it"
    assert len(served.output) < 1 << 20
    assert desk.request(verb="status")["ok"] is True
    silent.setblocking(True)
    got = b""
    while served.output or b"\n" in served.buffer:
        got += silent.recv(1 << 20)
        desk.serve()
    got += silent.recv(1 << 20)
    assert got.endswith(b"\n"), "and goes on where it was"
    silent.close()


def test_one_request_of_a_client_is_served_per_turn(desk: Desk) -> None:
    client = desk.client()
    client.sendall(b'{"verb": "?"}\n' * 5)
    desk.serve()
    assert desk.turns == 4, "the first one at once"
    assert client.recv(1 << 16).count(b"\n") == 5
    client.close()


def test_requests_before_the_end_of_input_are_answered(desk: Desk) -> None:
    client = desk.client()
    client.sendall(b'{"verb": "?"}\n' * 3)
    client.shutdown(socket.SHUT_WR)
    desk.serve()
    desk.serve()
    got = b""
    while data := client.recv(1 << 16):
        got += data
    client.close()
    assert got.count(b"\n") == 3
    assert not desk.control.clients


def test_deep_json_is_answered(desk: Desk) -> None:
    answer = desk.ask(b"[" * 60000)[0]
    assert answer["ok"] is False
    assert desk.request(verb="status")["ok"] is True


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), RuntimeError("boom")])
def test_a_request_in_which_a_model_raises_is_answered(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    def plug(device: str) -> None:
        raise error

    monkeypatch.setattr(desk.session.machine, "plug", plug)
    answer = desk.request(verb="plug", device="edu")
    assert answer["ok"] is False
    assert type(error).__name__ in answer["error"]
    assert "test_control.py" in answer["error"]
    assert "control socket" in capsys.readouterr().err


def test_statistics_that_json_cannot_say(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.session.machine, "describe", lambda: {"odd": object()})
    monkeypatch.setattr("uvfio.doors.run.observe.control.run_facts", lambda session: {})
    assert desk.request(verb="status")["ok"] is False


def test_more_clients_than_there_may_be(desk: Desk) -> None:
    clients = [desk.client() for _ in range(CLIENTS_MAX)]
    late = desk.client()
    assert json.loads(late.recv(4096))["errno"] == "EBUSY"
    assert late.recv(1) == b""
    for client in (late, *clients):
        client.close()
    desk.serve()
    assert desk.request(verb="status")["ok"] is True


def test_without_a_free_descriptor_a_client_is_turned_away(desk: Desk) -> None:
    waiting = socket.socket(socket.AF_UNIX)
    waiting.settimeout(10)
    waiting.connect(str(desk.path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, hard))
    try:
        while True:
            try:
                os.dup(taken)
            except OSError:
                break
        desk.session.reactor.watched[desk.listener]()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)
    assert waiting.recv(1) == b""
    waiting.close()
    assert desk.request(verb="status")["ok"] is True
