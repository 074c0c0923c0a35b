"""Files of sysfs that are made or take writes: registration, lookup, what one write is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from uvfio.core.waiting import Wait
from uvfio.errors import InvalidArgument
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs import attributes, tree
from uvfio.machine.sysfs.attributes import (
    Bound,
    Refused,
    find,
    parse_bool,
    parse_unsigned,
    register,
    shown,
)

A = "0000:06:0d.0"
FOLDER = "/sys/test/*"


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(autouse=True)
def _own_folder() -> Iterator[None]:
    yield
    attributes._folders.pop(FOLDER, None)
    attributes._folders.pop("/sys/test", None)


def found(machine: Machine, path: str) -> Bound:
    bound = find(machine, path)
    assert bound is not None, path
    return bound


def test_one_line_registers_a_file(machine: Machine) -> None:
    written: list[tuple[str, str]] = []
    register(
        f"{FOLDER}/power",
        show=lambda _, name: f"of {name}",
        store=lambda _, name, text: written.append((name, text)),
    )
    bound = found(machine, "/sys/test/x/power")
    assert bound.text() == b"of x\n"
    assert bound.read(3, 2) == b"x\n"
    assert bound.write(0, b"on\n") == (3, None)
    assert written == [("x", "on\n")]
    assert [each.path for each in shown(machine, FOLDER, "x")] == ["/sys/test/x/power"]
    with pytest.raises(ValueError, match="registered twice"):
        register(f"{FOLDER}/power")


def test_what_a_file_can_do_is_its_mode(machine: Machine) -> None:
    register("/sys/test/both", show=lambda *_: "", store=lambda *_: None)
    register("/sys/test/read", show=lambda *_: "")
    register("/sys/test/write", store=lambda *_: None)
    modes = {bound.path[-4:]: bound.mode for bound in shown(machine, "/sys/test")}
    assert modes == {"both": 0o644, "read": 0o444, "rite": 0o200}
    found(machine, "/sys/test/both").check_open(True, True)
    for path, reads, writes in (("read", False, True), ("write", True, False)):
        with pytest.raises(Refused) as caught:
            found(machine, f"/sys/test/{path}").check_open(reads, writes)
        assert caught.value.errno == 13
    with pytest.raises(Refused):
        found(machine, "/sys/test/read").write(0, b"x")


def test_a_file_that_only_some_have(machine: Machine) -> None:
    register(f"{FOLDER}/odd", show=lambda *_: "", exists=lambda _, name: len(name) % 2 == 1)
    assert find(machine, "/sys/test/abc/odd")
    assert find(machine, "/sys/test/ab/odd") is None
    assert not list(shown(machine, FOLDER, "ab"))


def test_other_paths_are_nobodys(machine: Machine) -> None:
    for path in ("", "/", "/sys/bus/pci", f"/sys/bus/pci/devices/{A}/vendor", "/etc/passwd"):
        assert find(machine, path) is None


def test_one_write_is_a_page_at_most_up_to_its_nul(machine: Machine) -> None:
    seen: list[str] = []

    def store(_: Machine, __: str, text: str) -> Wait | None:
        seen.append(text)
        return None

    register("/sys/test/file", store=store)
    bound = found(machine, "/sys/test/file")
    assert bound.write(0, b"") == (0, None)
    assert seen == []
    assert bound.write(7, b"ab\0cd") == (5, None)
    assert bound.write(0, b"x" * 5000) == (4096, None)
    assert seen == ["ab", "x" * 4096]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1\n", 1), ("0x1F\n", 31), ("010", 8), ("+5", 5), (str(2**64 - 1), 2**64 - 1)],
)
def test_numbers(text: str, value: int) -> None:
    assert parse_unsigned(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "x",
        "-1",
        "1 ",
        " 1",
        "1_0",
        "0x",
        "08",
        "1\n\n",
        "0x0x10",
        "00o17",
        "++1",
        "٣",
        "²",
    ],
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_unsigned(text)
    assert caught.value.errno == 22


def test_a_number_that_is_too_large() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_unsigned(str(2**64))
    assert caught.value.errno == 34


def test_yes_and_no() -> None:
    assert all(parse_bool(text) for text in ("1", "y", "Yes", "on", "T", "enable"))
    assert not any(parse_bool(text) for text in ("0", "n", "No\n", "off", "f", "Disabled"))
    for text in ("", "o", "2", "maybe"):
        with pytest.raises(InvalidArgument):
            parse_bool(text)


def test_every_registered_file_of_a_machine_is_in_its_tree(machine: Machine) -> None:
    files = tree.nodes(machine, "mainline")
    for path in (
        *(f"/sys/bus/pci/devices/{A}/{name}" for name in ("driver_override", "config", "remove")),
        "/sys/bus/pci/drivers/vfio-pci/bind",
        "/sys/bus/pci/drivers_probe",
        "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    ):
        assert files[path] == tree.attribute_text(found(machine, path)), path
