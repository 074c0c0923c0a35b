"""The world around a platform model, made of fakes: clock, store, domain, interrupt sink.

``power_on(Timer, period=5)`` is a device at ``PATH``, attached to a domain with 1 MiB of memory at iova 0, its sink
connected; ``World`` has the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

from support.model_world import FakeClock, FakeDomain, FakeStore
from uvfio.kit.platform.model import PlatformModel

if TYPE_CHECKING:
    from uvfio.core.translation.domain import Domain
    from uvfio.drivers.platform.hardware import Resources

P = TypeVar("P", bound=PlatformModel)
PATH = "/soc/block@10010000"
NAME = "10010000.block"


class FakeSink:
    """Remembers (index, level) of what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[int, bool]] = []

    def irq(self, index: int, asserted: bool) -> bool:
        self.events.append((index, asserted))
        return True

    def take(self) -> list[tuple[int, bool]]:
        """What came since the last call."""
        events, self.events = self.events, []
        return events


class World(Generic[P]):
    """A powered-on model with its surroundings, and short names for what tests do to it."""

    def __init__(self, model: P, clock: FakeClock, store: FakeStore) -> None:
        self.model = model
        self.clock = clock
        self.store = store
        self.domain = FakeDomain()
        self.sink = FakeSink()
        model.attach(cast("Domain", self.domain))
        model.connect(self.sink)

    def read(self, offset: int, size: int = 4, region: int = 0) -> int:
        return self.model.read(region, offset, size)

    def write(self, offset: int, value: int, size: int = 4, region: int = 0) -> None:
        self.model.write(region, offset, value, size)


def power_on(kind: type[P], resources: Resources | None = None, **options: object) -> World[P]:
    """A device of class ``kind`` in a world of its own."""
    clock, store = FakeClock(), FakeStore()
    model = kind(
        NAME,
        resources=resources or kind.default_resources(PATH),
        group=3,
        unit=None,
        clock=clock,
        store=store,
        options=options,
    )
    return World(model, clock, store)
