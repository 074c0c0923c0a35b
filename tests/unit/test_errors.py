"""Conditions: an ``OSError`` with a number, a sentence and a hint."""

from __future__ import annotations

import errno

import pytest

from uvfio import errors
from uvfio.errors import InvalidArgument, VfioError

CONDITIONS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, VfioError)
]

# What a Python caller, who speaks no ABI, gets.
NUMBERS = {
    "BadAddress": errno.EFAULT,
    "BadDescriptor": errno.EBADF,
    "BrokenRing": errno.EPROTO,
    "Busy": errno.EBUSY,
    "Cancelled": errno.EINTR,
    "ConfigError": errno.EINVAL,
    "DecodingOff": errno.EIO,
    "DmaFault": errno.EFAULT,
    "Gone": errno.ENODEV,
    "InvalidArgument": errno.EINVAL,
    "IovaInUse": errno.EADDRINUSE,
    "LimitExceeded": errno.ENOMEM,
    "ModelError": errno.EINVAL,
    "NoData": errno.ENOMSG,
    "NoMemory": errno.ENOMEM,
    "NoSpace": errno.ENOSPC,
    "NoSuchDevice": errno.ENODEV,
    "NoSuchGroup": errno.ENODEV,
    "NoSuchObject": errno.ENOENT,
    "NoVectors": errno.EINVAL,
    "NotMapped": errno.ENOENT,
    "NotOwner": errno.EPERM,
    "NotViable": errno.EBUSY,
    "Overlap": errno.EEXIST,
    "ReadOnly": errno.EPERM,
    "TooManyFiles": errno.EMFILE,
    "TooManyMappings": errno.ENOMEM,
    "UnknownCommand": errno.ENOTTY,
    "UnsafeInterrupts": errno.EPERM,
    "Unsupported": errno.EINVAL,
    "VfioError": errno.EINVAL,
    "WrapsAround": errno.EINVAL,
    "WrongToken": errno.EACCES,
}


def test_every_condition_is_public_and_has_a_number() -> None:
    assert sorted(c.__name__ for c in CONDITIONS) == sorted(NUMBERS)
    assert sorted({*NUMBERS, "ModelMistake"}) == sorted(errors.__all__)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.__name__)
def test_a_condition_is_an_oserror_with_its_number(condition: type[VfioError]) -> None:
    error = condition("what happened")
    assert isinstance(error, OSError)
    assert error.errno == NUMBERS[condition.__name__]
    assert error.strerror == "what happened"
    assert error.hint == ""


def test_the_text_is_the_sentence_without_number_and_hint() -> None:
    error = InvalidArgument("size is 0", "map at least a page")
    assert str(error) == "size is 0"
    assert error.hint == "map at least a page"


def test_a_condition_may_be_raised_with_another_number() -> None:
    assert InvalidArgument("no such path", errno=errno.ENOENT).errno == errno.ENOENT
