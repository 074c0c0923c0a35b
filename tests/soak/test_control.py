"""The control socket under clients that send garbage, half lines and floods, and leave; under changes of the machine
while a program opens and closes what is taken away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.storm import storm
from support.uvfio_cli import Uvfio

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.soak, pytest.mark.timeout(590)]

CLIENTS = """
import json, os, random, socket, sys
path, chance = sys.argv[1], random.Random(5)

def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client

def lines(client, count):
    with client.makefile("rb") as stream:
        return [json.loads(stream.readline()) for _ in range(count)]

def garbage(client):
    client.sendall(chance.randbytes(chance.randrange(1, 300)).replace(b"\\n", b" ") + b"\\n")
    assert lines(client, 1)[0]["ok"] is False

def half(client): client.sendall(b'{"verb": "sta')
def leaver(client): client.sendall(b'{"verb": "status"}\\n' * chance.randrange(1, 20))
def silent(client): pass
def ended(client):
    client.sendall(b'{"verb": "status"}\\n')
    client.shutdown(socket.SHUT_WR)
    assert lines(client, 1)[0]["ok"]
def absurd(client):
    values = [None, [], {}, -1, 1e400, "x" * 1000, True]
    verbs = ["plug", "unplug", "bind", "unbind", "numvfs", "status", "", None]
    keys = ["device", "address", "driver", "timeout", "revoke", "number", "more"]
    request = {key: chance.choice(values) for key in chance.sample(keys, 3)}
    client.sendall(json.dumps({"verb": chance.choice(verbs), **request}).encode() + b"\\n")
    lines(client, 1)
def long(client):
    try:
        client.sendall(b"x" * 70000)
        client.recv(1)
    except OSError:
        pass
KINDS = [garbage, half, leaver, silent, ended, absurd, long]
print("at rest", flush=True)
for line in sys.stdin:
    for n in range(int(line)):
        client = connect()
        KINDS[n % len(KINDS)](client)
        client.close()
    client = connect()
    client.sendall(b'{"verb": "status"}\\n' * 3)  # whoever left has been forgotten then
    for answer in lines(client, 3):
        assert answer["ok"], answer
    client.close()
    for _ in range(50): os.stat("/dev/vfio/241")  # between two calls a client that left is served
    print("at rest", flush=True)
"""

CHANGES = """
import fcntl, json, os, socket, sys, threading
path = sys.argv[1]
client = socket.socket(socket.AF_UNIX)
client.connect(path)
stream = client.makefile("rb")

def ask(**request):
    client.sendall(json.dumps(request).encode() + b"\\n")
    answer = json.loads(stream.readline())
    return answer

def use(ended):
    while not ended.is_set():
        for number in (9, 241):
            try:
                group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
            except OSError:
                continue
            try:
                address = b"0000:08:00.0" if number == 9 else b"0000:07:00.0"
                os.close(fcntl.ioctl(group, 0x40083B68, bytearray(address + b"\\0")))
            except OSError:
                pass
            os.close(group)
        try:
            os.listdir("/sys/bus/pci/devices")
        except OSError:
            pass

print("at rest", flush=True)
for line in sys.stdin:
    ended = threading.Event()
    users = [threading.Thread(target=use, args=[ended]) for _ in range(3)]
    for user in users: user.start()
    for n in range(int(line)):
        for request in (
            {"verb": "plug", "device": "edu@0000:08:00.0,group=9"},
            {"verb": "unbind", "address": "0000:07:00.0", "timeout": 60, "revoke": n % 2 == 0},
            {"verb": "unbind", "address": "0000:08:00.0", "timeout": 60, "revoke": n % 3 == 0},
            {"verb": "bind", "address": "0000:08:00.0", "driver": "vfio-pci"},
            {"verb": "unplug", "address": "0000:08:00.0", "timeout": 60, "revoke": n % 2 == 0},
            {"verb": "bind", "address": "0000:07:00.0", "driver": "vfio-pci"},
        ):
            answer = ask(**request)
            if not answer["ok"]:
                sys.exit(f"round {n}: {request}: {answer}")
    ended.set()
    for user in users: user.join()
    os.close(os.open("/dev/vfio/241", os.O_RDWR))
    for _ in range(50): assert not os.path.exists("/dev/vfio/9")
    print("at rest", flush=True)
"""


def test_clients(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    words = (sys.executable, "-c", CLIENTS, path)
    with Uvfio("run", "--control", path, "--", *words) as uvfio:
        storm(uvfio, 10_000, warm=100)
        uvfio.finish().ok()
    assert not Path(path).exists()


def test_changes_while_a_program_opens_and_closes(
    python: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = str(tmp_path / "control")
    with Uvfio("run", "--control", path, "--", *python(CHANGES, path)) as uvfio:
        storm(uvfio, 2000, warm=50)
        uvfio.finish().ok()
