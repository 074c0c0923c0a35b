"""A model's author, who writes a file with a mistake in it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from support.model_world import World, power_on
from uvfio.kit.pci.model import PciModel
from uvfio.models import catalogue

HEAD = """
import sys
from uvfio.kit import *
class Regs(RegisterMap):
    status = Register(0x0)
    length = Register(0x4)
    array = RegisterArray(0x10, count=2)
"""
FIRST = HEAD.count("\n") + 1


class Author:
    """Writes a file; its lines are counted from 1, behind ``HEAD``."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, body: str) -> str:
        self.file.write_text(HEAD + textwrap.dedent(body))
        return f"{self.file}:M"

    def model(self, body: str) -> World[PciModel]:
        found = catalogue.find(self.write(body))
        assert issubclass(found, PciModel)
        return power_on(found)

    def line(self, number: int) -> str:
        return f"{self.file}:{FIRST + number - 1}: "
