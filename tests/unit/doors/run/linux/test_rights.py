"""What a task may do with a file, against the kernel's own answers where the test may change ids."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.requirements import require
from uvfio.doors.run.linux.rights import EXECUTE, READ, WRITE, Caller, may_inspect

OVERRIDE, READ_SEARCH, FOWNER, CHOWN = 1 << 1, 1 << 2, 1 << 3, 1 << 0


def caller(uid: int, gid: int = 0, groups: tuple[int, ...] = (), effective: int = 0) -> Caller:
    """A task of this process's namespace with ids that it need not have."""
    return Caller(os.getpid(), (uid,) * 4, (gid,) * 4, groups, effective, effective)


def file(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    kind = mode if stat.S_IFMT(mode) else stat.S_IFREG | mode
    return os.stat_result((kind, 1, 1, 1, uid, gid, 0, 0, 0, 0))


def test_the_class_that_fits_first_counts() -> None:
    found = file(0o640, uid=5, gid=6)
    assert caller(5).may(found, 0o640, READ | WRITE)
    assert caller(7, 6).may(found, 0o640, READ)
    assert caller(7, 8, (9, 6)).may(found, 0o640, READ)
    assert not caller(7, 6).may(found, 0o640, WRITE)
    assert not caller(7, 8).may(found, 0o640, READ)
    assert not caller(5).may(file(0o066, 5), 0o066, READ)  # others may, the owner may not


def test_capabilities() -> None:
    found = file(0o000, uid=5, gid=6)
    assert caller(7, effective=OVERRIDE).may(found, 0, READ | WRITE)
    assert not caller(7, effective=OVERRIDE).may(found, 0, EXECUTE)
    assert caller(7, effective=OVERRIDE).may(found, 0o100, EXECUTE)
    assert caller(7, effective=READ_SEARCH).may(found, 0, READ)
    assert not caller(7, effective=READ_SEARCH).may(found, 0, WRITE)
    folder = file(stat.S_IFDIR, uid=5, gid=6)
    assert caller(7, effective=READ_SEARCH).may(folder, 0, READ | EXECUTE)
    assert not caller(7, effective=READ_SEARCH).may(folder, 0, WRITE)
    assert caller(7, effective=OVERRIDE).may(folder, 0, READ | WRITE | EXECUTE)


def test_changing_mode_and_owner() -> None:
    found = file(0o600, uid=5, gid=6)
    assert caller(5).owns(found)
    assert not caller(7).owns(found)
    assert caller(7, effective=FOWNER).owns(found)
    assert caller(7, effective=CHOWN).may_give(found, 1, 2)
    assert caller(5, 8, (9,)).may_give(found, -1, 9)
    assert caller(5, 8).may_give(found, 5, 8)
    assert not caller(5, 8).may_give(found, -1, 9)
    assert not caller(5).may_give(found, 7, -1)
    assert not caller(7).may_give(found, -1, -1)


def test_access_takes_the_real_ids() -> None:
    me = Caller.of(os.getpid())
    assert me.uids == (*os.getresuid(), os.geteuid())
    assert me.groups == tuple(sorted(os.getgroups())) or set(me.groups) == set(os.getgroups())
    mixed = me._replace(uids=(7, 0, 0, 0), gids=(8, 0, 0, 0), effective=OVERRIDE)
    taken = mixed.for_access()
    assert (taken.uids[3], taken.gids[3], taken.effective) == (7, 8, 0)
    root = me._replace(uids=(0, 7, 7, 7), permitted=OVERRIDE, effective=0)
    assert root.for_access().effective == OVERRIDE


def test_which_tasks_may_be_seen() -> None:
    me = os.getpid()
    assert may_inspect(me, me)
    assert not may_inspect(me, 1 << 22)
    require(os.getuid() == 0, "only root can have a child of another user")
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os.write(tell, b"x")
        os.read(os.pipe()[0], 1)
    os.read(ready, 1)
    try:
        assert may_inspect(me, child)
        assert not may_inspect(child, me)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


@pytest.mark.parametrize("mode", [0o000, 0o004, 0o020, 0o040, 0o400, 0o200, 0o600, 0o666, 0o111])
@pytest.mark.parametrize(
    "ids", [(0, 0, ()), (5, 6, ()), (5, 9, (6,)), (7, 6, ()), (7, 8, (6,)), (7, 8, ())]
)
def test_as_the_kernel_answers(
    mode: int, ids: tuple[int, int, tuple[int, ...]], tmp_path: Path
) -> None:
    """access(2) of a child with these ids, and what is said of it here."""
    require(os.getuid() == 0, "only root can take other ids")
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    os.chown(path, 5, 6)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    uid, gid, groups = ids
    answers, tell = os.pipe()
    go_on, release = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.write(tell, bytes(os.access(path, wanted) for wanted in range(1, 8)))
        os.read(go_on, 1)
        os._exit(0)
    kernel = os.read(answers, 7)
    found = path.stat()
    task = Caller.of(child).for_access()
    ours = bytes(task.may(found, found.st_mode, wanted) for wanted in range(1, 8))
    os.write(release, b"x")
    os.waitpid(child, 0)
    for fd in (answers, tell, go_on, release):
        os.close(fd)
    assert ours == kernel
