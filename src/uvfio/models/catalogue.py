"""Which models there are, and how a name becomes a class.

``find`` takes what a user writes: a built-in name ("edu"), a class in a module ("package.module:Class") or in a
file ("path/to/dev.py:Class"), or a name that an installed package registered under the entry point group
``uvfio.models``. Entry points are looked at only when nothing else fits: reading them takes longer than
starting a small machine.

A model's module is imported when it is asked for, never before. Whatever goes wrong is a ``ConfigError`` that
names the model as it was written; an exception inside the model's own module is its cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from uvfio.kit.pci.model import PciModel
    from uvfio.kit.platform.model import PlatformModel

__all__ = ["ENTRY_POINTS", "builtin", "find", "names"]

ENTRY_POINTS = "uvfio.models"

_BUILTIN = {
    "edu": "uvfio.models.edu:Edu",
    "exerciser": "uvfio.models.exerciser:Exerciser",
    "timer": "uvfio.models.timer:Timer",
    "virtio-net": "uvfio.models.virtio.net:VirtioNet",
}


def names() -> tuple[str, ...]:
    """The built-in names; nothing is imported."""
    return tuple(_BUILTIN)


def builtin() -> dict[str, type[PciModel | PlatformModel]]:
    """The built-in models by name, all imported."""
    return {name: find(name) for name in _BUILTIN}


def find(spec: str) -> type[PciModel | PlatformModel]:
    """The model that ``spec`` names. ConfigError if there is none, or it cannot be loaded."""
    target = _BUILTIN.get(spec, spec)
    place, colon, name = target.rpartition(":")
    if colon:
        module = _file(place, spec) if place.endswith(".py") else _module(place, spec)
        return _model(module, name, spec)
    return _entry_point(spec)


def _module(place: str, spec: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(place)
    except ModuleNotFoundError as missing:
        if missing.name is not None and (place + ".").startswith(missing.name + "."):
            hint = "a class in a file is written path.py:Class"
            raise ConfigError(
                f"model {spec!r}: there is no module {missing.name!r}", hint
            ) from None
        raise _failed(spec, missing) from missing
    except BaseException as error:
        raise _failed(spec, error) from error


def _file(place: str, spec: str) -> ModuleType:
    """The module of a file, imported once per path under a name that no package has."""
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    alias = f"uvfio_model:{place}"
    if alias in sys.modules:
        return sys.modules[alias]
    found = spec_from_file_location(alias, place)
    if found is None or found.loader is None:
        raise ConfigError(f"model {spec!r}: {place} cannot be loaded")
    module = module_from_spec(found)
    sys.modules[alias] = module
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[alias]
        if isinstance(error, FileNotFoundError) and error.filename == place:
            raise ConfigError(f"model {spec!r}: there is no file {place}") from None
        raise _failed(spec, error) from error
    return module


def _entry_point(spec: str) -> type[PciModel | PlatformModel]:
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    point = points.get(spec)
    if point is not None:
        try:
            loaded = point.load()
        except BaseException as error:
            raise _failed(spec, error) from error
        return _checked(loaded, spec)

    from uvfio.kit.option import suggest

    known = {**_BUILTIN, **dict.fromkeys(points, "")}
    listed = f"there are {', '.join(sorted(known))}; a class of yours is path.py:Class"
    raise ConfigError(f"model {spec!r} is not known", suggest(spec, known) or listed)


def _model(module: ModuleType, name: str, spec: str) -> type[PciModel | PlatformModel]:
    from uvfio.kit.option import suggest

    if not hasattr(module, name):
        where = getattr(module, "__file__", None) or module.__name__
        raise ConfigError(f"model {spec!r}: {where} has no {name!r}", suggest(name, vars(module)))
    return _checked(getattr(module, name), spec)


def _checked(found: object, spec: str) -> type[PciModel | PlatformModel]:
    import sys

    from uvfio.kit.pci.model import PciModel

    if isinstance(found, type):
        if issubclass(found, PciModel):
            return found
        if "uvfio.kit.platform.model" in sys.modules:  # else it cannot be a subclass of it
            from uvfio.kit.platform.model import PlatformModel

            if issubclass(found, PlatformModel):
                return found
    raise ConfigError(
        f"model {spec!r} is no subclass of uvfio.kit.pci.model.PciModel",
        "nor of uvfio.kit.platform.model.PlatformModel",
    )


def _failed(spec: str, error: BaseException) -> ConfigError:
    return ConfigError(f"model {spec!r} cannot be loaded: {type(error).__name__}: {error}")
