"""Numbers of Linux that the runner compares with arguments of a program's system calls, under their C names.

Each is from the header named beside it and has the same value on x86-64 and i386. Numbers that a single wrapper of
``doors/run/linux`` passes to the kernel stand next to that wrapper.
"""

from __future__ import annotations

from typing import Final

# linux/fcntl.h
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000
F_DUPFD: Final = 0
# asm-generic/ioctls.h and linux/fs.h: requests of every kind of file
FIONBIO: Final = 0x5421
FIONCLEX: Final = 0x5450
FIOCLEX: Final = 0x5451
FIOASYNC: Final = 0x5452
FIGETBSZ: Final = 0x2
F_GETFL: Final = 3
F_DUPFD_CLOEXEC: Final = 1030
O_LARGEFILE: Final = 0o100000
O_TMPFILE: Final = 0o20200000
# linux/limits.h, linux/uio.h; and the most that one read or write moves (linux/fs.h of the kernel)
PATH_MAX: Final = 4096
UIO_MAXIOV: Final = 1024
MAX_RW_COUNT: Final = 0x7FFFF000
# linux/sched.h
CLONE_FILES: Final = 0x400
# linux/mman.h, asm-generic/mman-common.h
PROT_READ: Final = 0x1
PROT_WRITE: Final = 0x2
PROT_EXEC: Final = 0x4
MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_TYPE: Final = 0x0F
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_LOCKED: Final = 0x2000
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
# linux/auxvec.h, linux/capability.h
AT_RANDOM: Final = 25
CAP_IPC_LOCK: Final = 14
# linux/magic.h
TMPFS_MAGIC: Final = 0x01021994
SYSFS_MAGIC: Final = 0x62656572
HUGETLBFS_MAGIC: Final = 0x958458F6
