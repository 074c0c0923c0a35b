"""``DeviceModel``: what ``PciModel`` and ``PlatformModel`` have in common. Authors subclass those two.

A device is a class: what it has (regions, options, identity) are class attributes, its behaviour are methods hooked to
registers. An instance is the silicon, powered on. Its life::

    made --reset--> made
    made --unplug--> gone       windows absent, no calls pending, memory back with the store; final

What a subclass supplies while it is made: ``_mappings`` (regions that programs can map), ``_volatile`` (memories that a
reset clears), and a window for each region in ``_answering``. What it overrides: ``_reset_bus`` and ``_disconnect``.

Invariants

- ``_windows`` is what answers now, by region number: ``_answering``, or other windows while the device does not answer.
- A DMA fault that a register hook or a timer does not catch ends that hook and no more: the domain has recorded it. A
  read returns ones then. Anything else that a hook raises, but a ``VfioError``, is a mistake of the author's, and is
  raised as a ``ModelMistake`` (``kit/mistake.py``).
- A reset cancels what ``after`` has pending, restores registers, clears memory that is not kept, calls ``on_reset``,
  and shows mapped registers anew. The attachment to a domain and the interrupt sink stay.

Threads: accesses come from one thread at a time, the serving loop's or under the driver's lock. Timers run on the
clock's thread under ``lock``. Accesses do not take it: an order between two locks would be a deadlock, since an
interrupt goes from here into the driver. The driver uses ``lock`` as its own, so there is one lock for silicon
and driver.

It does not know drivers, configuration space, device trees, files or programs.
"""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar

from uvfio.errors import DmaFault
from uvfio.kit.mistake import PASSED, check_hook
from uvfio.kit.option import Option, resolve
from uvfio.kit.pending import PendingCalls
from uvfio.kit.polled import Polling
from uvfio.kit.register import RegisterArray, RegisterMap, hooks_of
from uvfio.kit.window import zero

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from uvfio.core.events import Observed
    from uvfio.core.seams import Clock, Store, Timer
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.errors import ModelMistake
    from uvfio.kit.dma import PlainDma
    from uvfio.kit.window import Window

__all__ = ["DeviceModel"]


class DeviceModel:
    """One device in silicon, whatever its bus. See the module's head."""

    option_declarations: ClassVar[dict[str, Option[Any]]] = {}
    """The options that the class and its bases declare, by name."""

    dma: PlainDma
    observed: Observed | None = None
    """Whose observer is told of interrupts that are lost; the machine sets it."""
    is_made: bool = False
    """Whether the constructor of the kit ran to its end."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared = cls._declarations().items()
        cls.option_declarations = {k: v for k, v in declared if isinstance(v, Option)}

    def __init__(
        self,
        name: str,
        *,
        group: int | None,
        unit: IommuUnit | None,
        clock: Clock,
        store: Store,
        options: Mapping[str, object],
    ) -> None:
        """Check the options (ConfigError names a wrong one). Takes nothing from ``store`` yet."""
        self.option_values = resolve(
            self.option_declarations, options, f"{name}: {type(self).__name__}"
        )
        self.lock: Any = RLock()
        self.clock = clock
        self._name = name
        self._group = group
        self._unit = unit
        self._store = store
        self._gone = False
        self._pending = PendingCalls(self)
        self._mappings: dict[int, tuple[int, bool]] = {}  # size in bytes, polled; by region
        self._volatile: tuple[int, ...] = ()
        self.register_maps: dict[int, RegisterMap] = {}
        self.memories: dict[int, memoryview] = {}
        self._answering: list[Window] = []
        self._windows = self._answering
        self._polling = Polling(self, store, self._answering, self._write, self._hook_failed)

    # -- for authors -----------------------------------------------------------------------------

    def on_reset(self) -> None:
        """Set the attributes of your own to their power-on values; called when made and at each reset."""

    def statistics(self) -> dict[str, int]:
        """Counters that `uvfio ctl status` shows; override to have some. They survive a reset."""
        return {}

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now or later, unless a reset or unplug comes first.

        0 means: when the serving loop comes around, never within this call.
        """
        return self._pending.after(seconds, callback)

    # -- BusDevice -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The device's name on its bus."""
        return self._name

    @property
    def group(self) -> int | None:
        """The number of its IOMMU group, or None."""
        return self._group

    @property
    def unit(self) -> IommuUnit | None:
        """The IOMMU in front of it, or None."""
        return self._unit

    def attach(self, domain: Domain) -> None:
        """DMA is translated by ``domain`` from now on."""
        self.dma.domain = domain

    def detach(self) -> None:
        """DMA faults from now on."""
        self.dma.domain = None

    # -- accesses --------------------------------------------------------------------------------

    def _read(self, index: int, offset: int, size: int) -> int:
        """An aligned access of 1, 2, 4 or 8 bytes inside region ``index``; ones after a DMA fault."""
        try:
            return self._windows[index].read(offset, size)
        except DmaFault:
            return (1 << 8 * size) - 1
        except PASSED:
            raise
        except BaseException as error:
            raise self._failed("read", index, offset, error) from error

    def _write(self, index: int, offset: int, value: int, size: int) -> None:
        """An aligned access of 1, 2, 4 or 8 bytes inside region ``index``."""
        try:
            self._windows[index].write(offset, value, size)
        except DmaFault:
            pass  # recorded; the write was posted
        except PASSED:
            raise
        except BaseException as error:
            raise self._failed("write", index, offset, error) from error

    def _failed(self, way: str, index: int, offset: int, error: BaseException) -> ModelMistake:
        """The mistake in a hook of the register at ``offset`` of region ``index``."""
        from uvfio.kit.explain import hook_failed, mistaken

        registers = self.register_maps.get(index)
        if registers is None:
            return mistaken(self, f"a {way} of region {index} + {offset:#x}", error)
        return hook_failed(self, registers, offset, way, error)

    def _hook_failed(self, error: BaseException) -> ModelMistake:
        """The mistake in a hook that was called for a store in mapped registers."""
        from uvfio.kit.explain import mistaken

        return mistaken(self, "the hook of a mapped register", error)

    def _memory(self, index: int) -> memoryview:
        """The bytes of a mappable region; a polled one is mapped from now on. KeyError for any other."""
        _, polled = self._mappings[index]
        return self._polling.start(index) if polled else self.memories[index]

    def end_mappings(self) -> None:
        """No program has a region mapped any more. Stores made until now take effect."""
        self._polling.stop()

    # -- life ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Registers take their power-on values; see the module's head."""
        with self.lock:
            self._pending.cancel_all()
            self._reset_bus()
            for registers in self.register_maps.values():
                registers.reset()
            for index in self._volatile:
                if index in self._mappings and not self._gone:
                    self._store.clear(self._name, index)
                else:
                    zero(self.memories[index])
            try:
                self.on_reset()
            except PASSED:
                raise
            except BaseException as error:
                from uvfio.kit.explain import mistaken

                raise mistaken(self, "on_reset", error) from error
            finally:
                self._polling.refresh()

    def unplug(self) -> None:
        """The device is gone: nothing answers, nothing is sent. Its memory goes back to the store."""
        with self.lock:
            if self._gone:
                return
            self._gone = True
            self._pending.cancel_all()
            self._disconnect()
            self._polling.end()
            self.dma.domain = None
            if self._mappings:
                self._store.release(self._name)

    def renew_memory(self) -> None:
        """Give mappable regions other, zeroed memory: what a program still has mapped leads nowhere from now on."""
        self._polling.stop()
        self._store.release(self._name)
        self._take_memory()

    def _lost(self, irq: str, vector: int, reason: str, pending: bool = False) -> None:
        """Tell the observer that an interrupt is not sent, and whether it will be."""
        observer = None if self.observed is None else self.observed.observer
        if observer is not None:
            from uvfio.core.events import InterruptLost

            observer(InterruptLost(self._name, irq, vector, reason, pending))

    def _reset_bus(self) -> None:
        """Reset what is beside registers and memory: configuration, power, interrupts."""

    def _disconnect(self) -> None:
        """Let no region answer, and forget the interrupt sink."""

    def _take_memory(self) -> None:
        """Get the memory of ``_mappings`` from the store. NoMemory, NoSpace."""
        if self._mappings:
            late = [index for index, (_, polled) in self._mappings.items() if polled]
            sizes = {index: size for index, (size, _) in self._mappings.items()}
            found = self._store.allocate(self._name, sizes, late)
            self._polling.shadows.update((index, found[index]) for index in late)
            self.memories.update((i, memory) for i, memory in found.items() if i not in late)

    # -- the class -------------------------------------------------------------------------------

    @classmethod
    def _declarations(cls) -> dict[str, object]:
        """All attributes of the class and its bases by name, the most derived one of each."""
        attributes: dict[str, object] = {}
        for base in reversed(cls.__mro__):
            attributes.update(vars(base))
        return attributes

    @classmethod
    def _check_hooks(cls, maps: Iterable[type[RegisterMap]], where: str) -> None:
        """ValueError for a hook of a register that is in none of ``maps``, which are behind ``where``."""
        known = {register for m in maps for register in m.registers.values()}
        for (register, kind), hook in hooks_of(cls).items():
            check_hook(cls, hook, register, kind, isinstance(register, RegisterArray))
            if register not in known:
                raise ValueError(
                    f"{cls.__name__}: on_{kind} of register {register.name}, "
                    f"which is in none of its {where}"
                )

    @classmethod
    def describe_as(cls, bus: str, facts: Mapping[str, object]) -> dict[str, object]:
        """The model as JSON values: class, bus and summary, then ``facts``, then the options."""
        return {
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "bus": bus,
            "summary": (cls.__doc__ or "").strip().partition("\n")[0],
            **facts,
            "options": [option.describe() for option in cls.option_declarations.values()],
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"
