"""What a task may do with a file of the machine, and with another task: the kernel's rules, from /proc/TID/status.

The kernel checks every open against the caller's filesystem ids, groups and capabilities (fs/namei.c,
acl_permission_check and generic_permission). Files of the machine are opened by the supervisor, so it applies the same
rules for the caller::

    owner        the bits of the owner; nobody else's count then
    a group      those of the group
    else         those of others
    refused      CAP_DAC_OVERRIDE, or CAP_DAC_READ_SEARCH for reading, of a user namespace that contains both the owner
                 and the group of the file

access(2) uses the real ids and, but for the namespace's root, no capability (fs/open.c, access_override_creds).

Ids are those of the supervisor's user namespace, as /proc shows them to it. Nothing is cached: a thread may change its
ids at any time, each for itself.

What this does not do: POSIX ACLs, security modules, securebits.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXECUTE", "READ", "WRITE", "Caller", "may_inspect"]

READ, WRITE, EXECUTE = 4, 2, 1
STATUS: Final = 1 << 20  # bytes: a status is longer than a page if the task is in many groups
# linux/capability.h
CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_FOWNER: Final = 3
CAP_SYS_PTRACE: Final = 19


class Caller(NamedTuple):
    """The credentials of a task: real, effective, saved and filesystem ids; groups; capabilities as masks."""

    tid: int
    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    permitted: int
    effective: int

    @classmethod
    def of(cls, tid: int) -> Caller:
        """The credentials of ``tid`` now. OSError if it is gone."""
        fd = os.open(f"/proc/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, STATUS)
        finally:
            os.close(fd)
        at = text.index(b"\nUid:")  # Uid, Gid, FDSize, Groups follow each other
        uid, gid, _, groups, _ = text[at + 1 :].split(b"\n", 4)
        real, effective, saved, filesystem = map(int, uid[4:].split())
        real_group, effective_group, saved_group, filesystem_group = map(int, gid[4:].split())
        at = text.index(b"\nCapPrm:", at)
        return cls(
            tid,
            (real, effective, saved, filesystem),
            (real_group, effective_group, saved_group, filesystem_group),
            tuple(map(int, groups[7:].split())),
            int(text[at + 8 : at + 25], 16),
            int(text[at + 33 : at + 50], 16),
        )

    def for_access(self) -> Caller:
        """The credentials that access(2) uses."""
        uid, gid = self.uids[0], self.gids[0]
        effective = self.permitted if uid == self._root() else 0
        return self._replace(
            uids=(*self.uids[:3], uid), gids=(*self.gids[:3], gid), effective=effective
        )

    def may(self, found: os.stat_result, mode: int, wanted: int) -> bool:
        """Whether ``wanted`` (READ, WRITE, EXECUTE) of a file with ``mode`` and the owner and group of ``found`` is
        allowed."""
        if self.uids[3] == found.st_uid:
            bits = mode >> 6
        elif self._in_group(found.st_gid):
            bits = mode >> 3
        else:
            bits = mode
        if not wanted & ~bits & 7:
            return True
        folder = stat.S_ISDIR(found.st_mode)
        if self._has(CAP_DAC_OVERRIDE, found) and (
            folder or not wanted & EXECUTE or mode & 0o111 != 0
        ):
            return True
        readable = READ | EXECUTE if folder else READ
        return not wanted & ~readable and self._has(CAP_DAC_READ_SEARCH, found)

    def owns(self, found: os.stat_result) -> bool:
        """Whether the task may change the mode of the file (inode_owner_or_capable)."""
        return self.uids[3] == found.st_uid or self._has(CAP_FOWNER, found)

    def may_give(self, found: os.stat_result, uid: int, gid: int) -> bool:
        """Whether the task may give the file to ``uid`` and ``gid``, -1 for no change (chown_ok, chgrp_ok)."""
        if self._has(CAP_CHOWN, found):
            return True
        mine = self.uids[3] == found.st_uid
        keeps = uid in (-1, found.st_uid)
        return mine and keeps and (gid in (-1, found.st_gid) or self._in_group(gid))

    def _in_group(self, gid: int) -> bool:
        return gid == self.gids[3] or gid in self.groups

    def _has(self, capability: int, found: os.stat_result) -> bool:
        """Whether a capability of the task counts for the file (capable_wrt_inode_uidgid)."""
        if not self.effective >> capability & 1:
            return False
        return _contains(self.tid, "uid_map", found.st_uid) and _contains(
            self.tid, "gid_map", found.st_gid
        )

    def _root(self) -> int:
        """The root of the task's user namespace, as an id of ours; -1 if it has none."""
        for inside, outside, count in _map(self.tid, "uid_map"):
            if inside <= 0 < inside + count:
                return outside
        return -1


def may_inspect(tid: int, target: int) -> bool:
    """Whether task ``tid`` may see the descriptors of ``target`` (kernel/ptrace.c, __ptrace_may_access with
    PTRACE_MODE_READ_FSCREDS): its own process, one of the same user, or any with CAP_SYS_PTRACE."""
    if tid == target or os.path.exists(f"/proc/{tid}/task/{target}"):
        return True
    try:
        caller, other = Caller.of(tid), Caller.of(target)
        owner = os.stat(
            f"/proc/{target}"
        ).st_uid  # root's, or the namespace's root's, if it is not dumpable
        same_namespace = os.stat(f"/proc/{tid}/ns/user") == os.stat(f"/proc/{target}/ns/user")
    except OSError:
        return False
    if caller.effective >> CAP_SYS_PTRACE & 1 and (
        same_namespace or _contains(tid, "uid_map", other.uids[1])
    ):
        return True
    return (
        set(other.uids[:3]) == {caller.uids[3]}
        and set(other.gids[:3]) == {caller.gids[3]}
        and owner == other.uids[1]
    )


def _contains(tid: int, name: str, outside: int) -> bool:
    """Whether the task's user namespace has the id that is ``outside`` here."""
    return any(start <= outside < start + count for _, start, count in _map(tid, name))


def _map(tid: int, name: str) -> Iterator[tuple[int, int, int]]:
    """The lines of /proc/TID/uid_map or gid_map: first id inside, first id here, how many."""
    try:
        with open(f"/proc/{tid}/{name}", "rb") as file:
            for line in file:
                inside, outside, count = line.split()
                yield int(inside), int(outside), int(count)
    except OSError:
        return
