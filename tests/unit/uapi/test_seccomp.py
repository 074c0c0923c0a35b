"""Layouts and numbers of uapi.seccomp that can be known without a compiler."""

from __future__ import annotations

from uvfio.uapi import seccomp


def test_struct_sizes() -> None:
    assert seccomp.seccomp_data.size == 64
    assert seccomp.seccomp_notif.size == 80
    assert seccomp.seccomp_notif_resp.size == 24
    assert seccomp.seccomp_notif_addfd.size == 24
    assert seccomp.seccomp_notif_sizes.size == 6
    assert seccomp.sock_filter.size == 8
    assert seccomp.sock_fprog.size == 16


def test_requests_encode_the_sizes() -> None:
    assert seccomp.SECCOMP_IOCTL_NOTIF_RECV == 0xC0502100
    assert seccomp.SECCOMP_IOCTL_NOTIF_SEND == 0xC0182101
    assert seccomp.SECCOMP_IOCTL_NOTIF_ID_VALID == 0x40082102
    assert seccomp.SECCOMP_IOCTL_NOTIF_ADDFD == 0x40182103
    assert seccomp.SECCOMP_IOCTL_NOTIF_SET_FLAGS == 0x40082104


def test_notification_fields() -> None:
    raw = bytes(range(80))
    ident, pid, flags, nr, arch, ip, *args = seccomp.seccomp_notif.unpack(raw)
    assert ident == int.from_bytes(raw[:8], "little")
    assert pid == int.from_bytes(raw[8:12], "little")
    assert flags == int.from_bytes(raw[12:16], "little")
    assert nr == int.from_bytes(raw[16:20], "little")
    assert arch == int.from_bytes(raw[20:24], "little")
    assert ip == int.from_bytes(raw[24:32], "little")
    assert args == [int.from_bytes(raw[at : at + 8], "little") for at in range(32, 80, 8)]


def test_known_numbers() -> None:
    for name, x86_64, i386 in (
        ("read", 0, 3),
        ("open", 2, 5),
        ("ioctl", 16, 54),
        ("pread64", 17, 180),
        ("execve", 59, 11),
        ("openat", 257, 295),
        ("seccomp", 317, 354),
        ("close_range", 436, 436),
        ("openat2", 437, 437),
        ("file_setattr", 469, 469),
    ):
        assert (seccomp.X86_64[name], seccomp.I386[name]) == (x86_64, i386), name
    assert seccomp.X86_64["newfstatat"] == 262
    assert seccomp.I386["fstatat64"] == 300
    assert seccomp.I386["mmap2"] == 192


def test_no_number_has_two_names() -> None:
    for table in (seccomp.X86_64, seccomp.I386):
        assert len(set(table.values())) == len(table)
