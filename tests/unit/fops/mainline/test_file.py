"""fops.mainline.file: the errno of conditions in the mainline ABIs."""

from __future__ import annotations

import errno
from typing import Any, ClassVar, cast

import pytest

from uvfio.errors import (
    Busy,
    InvalidArgument,
    NotViable,
    NoVectors,
    TooManyMappings,
    UnknownCommand,
    VfioError,
    WrapsAround,
)
from uvfio.fops.file import File
from uvfio.fops.mainline.file import MainlineFile, context_of
from uvfio.fops.request import Request

TASK = cast("Any", None)


class Raising(MainlineFile):
    """Its one command raises ``error``, or gives back its argument."""

    __slots__ = ()
    kind = "container"
    error: ClassVar[VfioError | None] = None

    def command(self, task: object, arg: int) -> int:
        if self.error is not None:
            raise self.error
        return arg

    REQUESTS: ClassVar = {0x3B64: Request(command)}


def test_a_command_of_the_table_is_called_and_any_other_named() -> None:
    file = Raising("container")
    assert file.ioctl(TASK, 0x3B64, 7) == 7
    with pytest.raises(UnknownCommand, match="VFIO_SET_IOMMU") as caught:
        file.ioctl(TASK, 0x3B66, 0)
    assert caught.value.errno == errno.ENOTTY
    assert file.abi_of(0x3B64) == "mainline"


@pytest.mark.parametrize(
    ("condition", "number"),
    [
        (NotViable, errno.EPERM),
        (NoVectors, errno.ERANGE),
        (TooManyMappings, errno.ENOSPC),
        (WrapsAround, errno.EOVERFLOW),
        (Busy, errno.EBUSY),
    ],
)
def test_conditions_have_the_numbers_of_these_abis(
    condition: type[VfioError], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raising, "error", condition("no"))
    with pytest.raises(condition) as caught:
        Raising("container").ioctl(TASK, 0x3B64, 0)
    assert caught.value.errno == number


def test_a_number_that_a_call_chose_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raising, "error", InvalidArgument("no", errno=errno.E2BIG))
    with pytest.raises(InvalidArgument) as caught:
        Raising("container").ioctl(TASK, 0x3B64, 0)
    assert caught.value.errno == errno.E2BIG


def test_a_file_without_a_context_is_no_iommufd() -> None:
    for file in (None, File("x")):
        with pytest.raises(InvalidArgument, match="descriptor 5 is no iommufd") as caught:
            context_of(file, 5)
        assert caught.value.errno == errno.EBADFD
