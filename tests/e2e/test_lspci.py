"""lspci and setpci, unmodified, see the machine as they would see hardware."""

from __future__ import annotations

import re

from support.requirements import require_program
from support.uvfio_cli import run_uvfio

EDU, OTHER, FOREIGN = "0000:00:05.0", "0000:02:01.0", "0000:02:02.0"
MACHINE = (
    *("-d", f"edu@{EDU},group=5", "-d", f"edu@{OTHER},group=6,driver=none"),
    *("-d", f"exerciser@{FOREIGN},group=6,driver=virtio-pci"),
)
KMOD = "lspci: Unable to load libkmod resources: error -2\n"  # where the host has no /lib/modules


def tool(name: str, *words: str) -> str:
    """What it prints; a word of its own on stderr would mean that something is missing."""
    command = ("run", *MACHINE, "--", require_program(name), *words)
    done = run_uvfio(*command).ok()
    assert done.stderr in ("", KMOD)
    return done.stdout


def paragraphs(text: str) -> dict[str, str]:
    """Address -> its lines."""
    return {part.split(" ")[0]: part for part in text.strip().split("\n\n")}


def test_list() -> None:
    lines = tool("lspci", "-nn").splitlines()
    assert [line.split()[0] for line in lines] == [EDU[5:], OTHER[5:], FOREIGN[5:]]
    assert [re.findall(r"\[[0-9a-f:]{4,9}\]", line) for line in lines] == [
        ["[00ff]", "[1234:11e8]"],
        ["[00ff]", "[1234:11e8]"],
        ["[ff00]", "[1234:0e8e]"],
    ]


def test_everything_of_a_simple_function() -> None:
    shown = paragraphs(tool("lspci", "-nnvv"))
    edu = shown[EDU[5:]]
    assert "Control: I/O+ Mem+ BusMaster-" in edu
    assert "Region 0: Memory at " in edu
    assert "(32-bit, non-prefetchable) [size=1M]" in edu
    assert "Capabilities: [40] MSI: Enable- Count=1/1 Maskable- 64bit+" in edu
    assert "Interrupt: pin A routed to IRQ" in edu
    assert "IOMMU group: 5\n" in edu
    assert "Kernel driver in use: vfio-pci" in edu
    assert "Kernel driver" not in shown[OTHER[5:]]
    assert "<access denied>" not in edu
    assert "unassigned" not in edu


def test_everything_of_an_express_function() -> None:
    shown = paragraphs(tool("lspci", "-vv"))[FOREIGN[5:]]
    for fact in (
        "IOMMU group: 6",
        "Region 2: Memory at 3800000000 (64-bit, prefetchable) [size=1M]",
        "Region 4: I/O ports at 1000 [size=16]",
        "Expansion ROM at ",
        "Power Management version 3",
        "MSI-X: Enable- Count=8 Masked-",
        "Express (v2) Endpoint",
        "LnkCap:\tPort #0, Speed 8GT/s, Width x4",
        "Advanced Error Reporting",
        "Kernel driver in use: virtio-pci",
    ):
        assert fact in shown, fact


def test_tree() -> None:
    drawn = tool("lspci", "-t")
    assert re.findall(r"\[([0-9a-f:]+)\]", drawn) == ["0000:00", "0000:02"]
    assert re.findall(r"[0-9a-f]{2}\.[0-7]", drawn) == ["05.0", "01.0", "02.0"]


def test_drivers() -> None:
    drivers = re.findall(r"Kernel driver in use: (\S+)", tool("lspci", "-k"))
    assert drivers == ["vfio-pci", "virtio-pci"]


def test_all_bytes_of_configuration_space() -> None:
    for address, size in ((EDU, 256), (FOREIGN, 4096)):
        rows = re.findall(
            r"^([0-9a-f]+): ((?:[0-9a-f]{2} ?){16})",
            tool("lspci", "-xxxx", "-s", address),
            re.MULTILINE,
        )
        space = bytes.fromhex("".join(row for _, row in rows))
        assert len(space) == size
        assert space[:2] == b"\x34\x12"


def test_setpci_reads_and_writes() -> None:
    names = ("VENDOR_ID.w", "COMMAND.w", "BASE_ADDRESS_0", "CAP_MSI+2.w")
    values = tool("setpci", "-s", EDU, *names).split()
    assert values[:2] == ["1234", "0103"]
    assert values[3] == "0080"
    script = (
        f"setpci -s {EDU} COMMAND=0007; setpci -s {EDU} COMMAND; lspci -vs {EDU}; lspci -vvs {EDU}"
    )
    require_program("setpci")
    done = run_uvfio("run", *MACHINE, "--", "sh", "-c", script).ok()
    assert done.stdout.startswith("0007\n")
    assert "Control: I/O+ Mem+ BusMaster+" in done.stdout


def test_lspci_of_2011() -> None:
    command = ("run", "--abi", "2011", *MACHINE, "--", require_program("lspci"), "-vv")
    shown = paragraphs(run_uvfio(*command).ok().stdout)
    assert "Kernel driver in use: vfio-pci" in shown[EDU[5:]]
