"""The rows of ``linux.tsv`` that uvfio answers, asked under ``uvfio run``, as it is and with ``--abi mainline``.

A row that differs is listed with what it is here and why.
Whatever is not listed must be Linux's answer, exactly.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.uvfio_cli import run_uvfio

HERE = Path(__file__).parent
A, B, S, DRIVER = "0000:00:05.0", "0000:02:01.0", "0000:02:02.0", "virtio-pci"
MACHINE = (f"edu@{A},group=5", f"edu@{B},group=6", f"edu@{S},group=6,driver={DRIVER}")

NO_DMABUF = "as a kernel without dma-buf"

DIFFERENT = {
    "device FEATURE probe|get 11": NO_DMABUF,
    "device FEATURE probe|set 11": NO_DMABUF,
}
Rows = list[tuple[str, str]]


def rows(text: str) -> dict[str, Rows]:
    """Section -> its rows, in order."""
    found: dict[str, Rows] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            section = found[line] = []
        elif not line.startswith("#"):
            case, _, answer = line.partition("\t")
            section.append((case, answer))
    return found


LINUX = rows((HERE / "linux.tsv").read_text())


@pytest.fixture(scope="module", params=["auto", "mainline"])
def ours(request: pytest.FixtureRequest) -> dict[str, Rows]:
    options = [word for device in MACHINE for word in ("-d", device)]
    options += ["--abi", request.param]
    program = ["python3", str(HERE / "probe.py"), A, B, S, DRIVER]
    return rows(run_uvfio("run", *options, "--", *program).ok().stdout)


def test_the_table_is_whole() -> None:
    assert sum(len(section) for section in LINUX.values()) == 495
    known = {case for section in LINUX.values() for case, _ in section}
    assert known >= set(DIFFERENT)


@pytest.mark.parametrize("section", LINUX)
def test_section(section: str, ours: dict[str, Rows]) -> None:
    asked, wanted = ours[section], LINUX[section]
    assert [case for case, _ in asked] == [case for case, _ in wanted]
    wrong = [
        f"{case}: {answer} here, {linux} on Linux"
        for (case, answer), (_, linux) in zip(asked, wanted, strict=True)
        if (answer != linux) != (case in DIFFERENT)
    ]
    assert not wrong, "\n".join(wrong)
