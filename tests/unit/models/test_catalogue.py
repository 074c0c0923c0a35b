"""From what a user writes to a class."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from uvfio.errors import ConfigError
from uvfio.kit.pci.model import PciModel
from uvfio.models import catalogue
from uvfio.models.edu import Edu
from uvfio.models.exerciser import Exerciser
from uvfio.models.timer import Timer
from uvfio.models.virtio.net import VirtioNet

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """
from uvfio.kit import PciModel
class Small(PciModel):
    vendor_id, device_id = 0x1234, 0x0042
class Helper:
    pass
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def test_builtin() -> None:
    assert catalogue.names() == ("edu", "exerciser", "timer", "virtio-net")
    assert catalogue.builtin() == {
        "edu": Edu,
        "exerciser": Exerciser,
        "timer": Timer,
        "virtio-net": VirtioNet,
    }
    assert catalogue.find("edu") is Edu


def test_class_in_a_module() -> None:
    assert catalogue.find("uvfio.models.exerciser:Exerciser") is Exerciser


def test_class_in_a_file_is_loaded_once(model_file: Path) -> None:
    small = catalogue.find(f"{model_file}:Small")
    assert issubclass(small, PciModel)
    assert small.device_id == 0x42
    assert catalogue.find(f"{model_file}:Small") is small
    assert small.describe()["summary"] == ""


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", "uvfio.models.edu:Edu", catalogue.ENTRY_POINTS)
    broken = importlib.metadata.EntryPoint("bad", "uvfio.models.edu:Nope", catalogue.ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point, broken])
    assert catalogue.find("mine") is Edu
    with pytest.raises(ConfigError, match=r"^model 'bad' cannot be loaded: AttributeError: "):
        catalogue.find("bad")
    with pytest.raises(ConfigError) as error:
        catalogue.find("mime")
    assert error.value.hint == "did you mean 'mine'?"


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("edo", "^model 'edo' is not known$", "did you mean 'edu'?"),
        (
            "zzz",
            "^model 'zzz' is not known$",
            "there are edu, exerciser, timer, virtio-net; a class of yours is path.py:Class",
        ),
        ("", "^model '' is not known$", None),
        (
            "no.such.module:Class",
            "^model 'no.such.module:Class': there is no module 'no'$",
            "a class in a file is written path.py:Class",
        ),
        ("/no/such/file.py:Class", "there is no file /no/such/file.py$", None),
        ("uvfio.models.edu:Edo", "uvfio/models/edu.py has no 'Edo'$", "did you mean 'Edu'?"),
        (
            "uvfio.models.edu:EduRegisters",
            "is no subclass of uvfio.kit.pci.model.PciModel$",
            None,
        ),
        ("uvfio.models.edu:factorial", "is no subclass of uvfio.kit.pci.model.PciModel$", None),
    ],
)
def test_errors(spec: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        catalogue.find(spec)
    if hint is not None:
        assert error.value.hint == hint


def test_what_breaks_inside_a_model_is_the_cause(model_file: Path) -> None:
    model_file.write_text(SMALL + "\n1 / 0\n")
    for _ in range(2):  # a failed file is tried anew
        with pytest.raises(
            ConfigError, match=r"cannot be loaded: .*/small.py:8: ZeroDivisionError: "
        ) as error:
            catalogue.find(f"{model_file}:Small")
        assert isinstance(error.value.__cause__, ZeroDivisionError)
    model_file.write_text("import no_such_thing_at_all\n")
    with pytest.raises(
        ConfigError, match=r"cannot be loaded: .*/small.py:1: ModuleNotFoundError: "
    ):
        catalogue.find(f"{model_file}:Small")
    model_file.write_text(SMALL)
    with pytest.raises(ConfigError, match=r"is no subclass of uvfio.kit.pci.model.PciModel$"):
        catalogue.find(f"{model_file}:Helper")


def test_module_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_model_module.py").write_text("import absent_dependency_of_mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"cannot be loaded: .*_module.py:1: ModuleNotFoundError: .*absent_dependency_of_mine"
    with pytest.raises(ConfigError, match=message):
        catalogue.find("broken_model_module:Class")


def test_platform_models_are_found_like_the_others(tmp_path: Path) -> None:
    path = tmp_path / "lamp.py"
    path.write_text(
        "from uvfio.kit.platform.model import PlatformModel\n"
        "class Lamp(PlatformModel):\n    compatible = ('acme,lamp',)\n"
    )
    assert catalogue.find(f"{path}:Lamp").describe()["compatible"] == ["acme,lamp"]


def test_light_imports() -> None:
    """Finding a built-in model imports no other and nothing heavy."""
    script = (
        "import sys; from uvfio.models.catalogue import find; find('edu');"
        "print([m for m in ('importlib.metadata', 'uvfio.models.exerciser', 'logging', 'difflib',"
        "'uvfio.kit.platform.model', 'uvfio.models.timer',"
        "'json', 'argparse', 'os.path') if m in sys.modules and m != 'os.path'])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_names_of_the_first_release_are_aliases() -> None:
    import uvfio.kit.pci.bar
    import uvfio.kit.pci.model
    import uvfio.kit.platform
    import uvfio.kit.register
    import uvfio.models.bar
    import uvfio.models.kit
    import uvfio.models.pci
    import uvfio.models.platform
    import uvfio.models.register

    assert uvfio.models.kit.__all__ == uvfio.kit.__all__
    assert uvfio.models.kit.PciModel is uvfio.kit.PciModel
    assert uvfio.models.platform.PlatformModel is uvfio.kit.platform.PlatformModel
    assert uvfio.models.pci.PciModel is uvfio.kit.PciModel
    assert uvfio.models.bar.__all__ == uvfio.kit.pci.bar.__all__
    assert uvfio.models.register.RegisterMap is uvfio.kit.register.RegisterMap


def test_a_misspelt_class_suggests_models_only(tmp_path: Path) -> None:
    file = tmp_path / "rings.py"
    file.write_text(
        "from uvfio.kit import *\nclass RingDMARegisters(RegisterMap):\n  a = Register(0)\n"
        "class RingDma(PciModel):\n  vendor_id = 1\nclass Other(PciModel):\n  vendor_id = 1\n"
    )
    for name, hint in (
        ("RingDMARegister", "it has RingDma, Other"),
        ("RingDMA", "did you mean 'RingDma'?"),
        ("PciMode", "it has RingDma, Other"),
    ):
        with pytest.raises(ConfigError, match=f"has no '{name}'$") as error:
            catalogue.find(f"{file}:{name}")
        assert error.value.hint == hint
    with pytest.raises(ConfigError, match="is no subclass"):
        catalogue.find(f"{file}:PciModel")
