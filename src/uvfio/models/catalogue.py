"""Which models there are, and how a name becomes a class.

``find`` takes what a user writes: a built-in name ("edu"), a class in a module ("package.module:Class") or in a
file ("path/to/dev.py:Class"), or a name that an installed package registered under the entry point group
``uvfio.models``. Entry points are looked at only when nothing else fits: reading them takes longer than
starting a small machine.

``name_of`` gives a class a name of this kind, for machines that are described in Python.

A model's module is imported when it is asked for, never before. Whatever goes wrong is a ``ConfigError`` that
names the model as it was written; for an exception inside the model's own module, ``sys.exit()`` included, it is a
``ModelError`` that names file and line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from uvfio.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from types import ModuleType

    from uvfio.kit.pci.model import PciModel
    from uvfio.kit.platform.model import PlatformModel

__all__ = ["ENTRY_POINTS", "builtin", "find", "name_of", "names"]

ENTRY_POINTS = "uvfio.models"

_BUILTIN = {
    "edu": "uvfio.models.edu:Edu",
    "exerciser": "uvfio.models.exerciser:Exerciser",
    "timer": "uvfio.models.timer:Timer",
    "virtio-net": "uvfio.models.virtio.net:VirtioNet",
}


_given: dict[str, type[PciModel | PlatformModel]] = {}
"""Classes that were given as such, by the name that ``name_of`` made."""


def names() -> tuple[str, ...]:
    """The built-in names; nothing is imported."""
    return tuple(_BUILTIN)


def builtin() -> dict[str, type[PciModel | PlatformModel]]:
    """The built-in models by name, all imported."""
    return {name: find(name) for name in _BUILTIN}


def find(spec: str) -> type[PciModel | PlatformModel]:
    """The model that ``spec`` names. ConfigError if there is none, or it cannot be loaded."""
    if spec in _given:
        return _given[spec]
    target = _BUILTIN.get(spec, spec)
    place, colon, name = target.rpartition(":")
    if colon:
        if target is spec:  # not built in: its mistakes are to be explained without opening a file
            import uvfio.kit.explain  # noqa: F401

        module = _file(place, spec) if place.endswith(".py") else _module(place, spec)
        return _model(module, name, spec)
    return _entry_point(spec)


def name_of(model: type[PciModel | PlatformModel]) -> str:
    """A name by which ``find`` finds this very class. ConfigError if it is no model."""
    plain = f"{getattr(model, '__module__', '')}:{getattr(model, '__qualname__', repr(model))}"
    _checked(model, plain)
    name, number = plain, 1
    while _given.get(name, model) is not model:  # of another call of the function that defines it
        number += 1
        name = f"{plain}#{number}"
    _given[name] = model
    return name


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

    try:
        found = spec_from_file_location("uvfio_model", place)
    except ValueError as wrong:
        raise ConfigError(f"model {spec!r}: {place!r} is not a path: {wrong}") from wrong
    if found is None or found.loader is None or found.origin is None:
        raise ConfigError(f"model {spec!r}: {place} cannot be loaded")
    file = found.origin  # from the root on
    alias = f"uvfio_model:{file}"
    if alias in sys.modules:
        return sys.modules[alias]
    found = spec_from_file_location(alias, file)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    sys.modules[alias] = module
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[alias]
        if isinstance(error, FileNotFoundError) and error.filename == file:
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
        models = {key: "" for key, value in vars(module).items() if _is_model(value)}
        listed = f"it has {', '.join(models)}" if models else ""
        hint = suggest(name, models) or listed
        raise ConfigError(f"model {spec!r}: {where} has no {name!r}", hint)
    return _checked(getattr(module, name), spec)


def _is_model(found: object) -> TypeGuard[type[PciModel | PlatformModel]]:
    """Whether it is a model's class, and not one of the kit."""
    import sys

    from uvfio.kit.pci.model import PciModel

    if not isinstance(found, type) or found.__module__.startswith("uvfio.kit."):
        return False
    if issubclass(found, PciModel):
        return True
    if "uvfio.kit.platform.model" not in sys.modules:
        return False  # it cannot be a subclass of it
    from uvfio.kit.platform.model import PlatformModel

    return issubclass(found, PlatformModel)


def _checked(found: object, spec: str) -> type[PciModel | PlatformModel]:
    if _is_model(found):
        return found
    raise ConfigError(
        f"model {spec!r} is no subclass of uvfio.kit.pci.model.PciModel",
        "nor of uvfio.kit.platform.model.PlatformModel",
    )


def _failed(spec: str, error: BaseException) -> ConfigError:
    from uvfio.kit.explain import explain

    message, hint = explain(error)
    return ModelError(f"model {spec!r} cannot be loaded: {message}", hint)
