"""Declarative registers: definition errors, access rules, lanes, hooks, decoding."""

from __future__ import annotations

from enum import IntEnum

import pytest

from uvfio.kit.register import Register, RegisterArray, RegisterMap, hooks_of


class Mode(IntEnum):
    IDLE = 0
    RUN = 2


class Sample(RegisterMap):
    control = Register(
        0x00, fields={"enable": 0, "mode": (3, 1, Mode), "level": (15, 8)}, reset=0x100
    )
    status = Register(0x04, access="ro", reset=0xA5A5_0001)
    events = Register(0x08, access="w1c", writable=0xFFFF_00FF)
    go = Register(0x0C, access="wo")
    wide = Register(0x10, 8)
    half = Register(0x18, 2, writable=0x0FF0)
    byte = Register(0x1A, 1)
    bank = RegisterArray(0x20, 4, count=3, stride=8, reset=7)


class TestValues:
    def test_reset_values_and_assignment(self) -> None:
        regs = Sample()
        assert regs.control == 0x100
        assert regs.status == 0xA5A5_0001
        regs.status = 0x1_2345_6789  # the silicon writes what the bus cannot, cut to the width
        assert regs.status == 0x2345_6789
        regs.reset()
        assert regs.status == 0xA5A5_0001

    def test_instances_share_nothing(self) -> None:
        one, other = Sample(), Sample()
        one.control = 5
        assert other.control == 0x100

    def test_class_access_gives_the_description(self) -> None:
        assert Sample.wide.offset == 0x10
        assert Sample.wide.size == 8
        assert repr(Sample.bank) == "<RegisterArray bank at 0x20, 4 bytes, count=3, stride=0x8>"
        assert Sample.span == 0x34
        assert list(Sample.registers)[:3] == ["control", "status", "events"]

    def test_array_is_a_sequence_of_fixed_length(self) -> None:
        regs = Sample()
        regs.bank[1] = 0x1_0000_0002
        assert list(regs.bank) == [7, 2, 7]
        assert len(regs.bank) == 3
        assert regs.bank[1] == 2
        with pytest.raises(IndexError, match=r"^bank\[3\]: it has 3 elements$"):
            regs.bank[3] = 1
        with pytest.raises(AttributeError, match=r"^assign the elements of bank, not the array$"):
            regs.bank = regs.bank

    def test_update_changes_fields_only(self) -> None:
        regs = Sample()
        regs.update(Sample.control, enable=1, level=0xFF)
        assert regs.control == 0xFF01


class TestAccessRules:
    def test_rw(self) -> None:
        regs = Sample()
        regs.write(0, 0xFFFF_FFFF_1234, 4)
        assert regs.read(0, 4) == 0xFFFF_1234

    def test_ro_ignores_writes(self) -> None:
        regs = Sample()
        regs.write(4, 0, 4)
        assert regs.read(4, 4) == 0xA5A5_0001

    def test_w1c_clears_the_writable_bits_that_are_written_as_one(self) -> None:
        regs = Sample()
        regs.events = 0xFFFF_FFFF
        regs.write(8, 0xFFFF_0F0F, 4)
        assert regs.read(8, 4) == 0x0000_FFF0

    def test_wo_stores_and_reads_as_absent(self) -> None:
        regs = Sample()
        regs.write(0x0C, 9, 4)
        assert regs.go == 9
        assert regs.read(0x0C, 4) == 0

    def test_writable_mask(self) -> None:
        regs = Sample()
        regs.half = 0x000F
        regs.write(0x18, 0xFFFF, 2)
        assert regs.half == 0x0FFF

    def test_gap(self) -> None:
        regs = Sample()
        regs.write(0x1C, 0xFFFF_FFFF, 4)
        assert regs.read(0x1C, 4) == 0
        assert regs.read(0x1000, 8) == 0

    def test_array_elements_and_the_gaps_between(self) -> None:
        regs = Sample()
        regs.write(0x28, 5, 4)
        assert [regs.read(0x20 + 4 * i, 4) for i in range(5)] == [7, 0, 5, 0, 7]


class TestLanes:
    def test_narrow_reads(self) -> None:
        regs = Sample()
        assert [regs.read(4 + i, 1) for i in range(4)] == [0x01, 0x00, 0xA5, 0xA5]
        assert regs.read(6, 2) == 0xA5A5

    def test_narrow_write_keeps_the_other_lanes(self) -> None:
        regs = Sample()
        regs.write(0, 0x1122_3344, 4)
        regs.write(1, 0xAA, 1)
        regs.write(2, 0xBBCC, 2)
        assert regs.control == 0xBBCC_AA44

    def test_halves_of_a_wide_register(self) -> None:
        regs = Sample()
        regs.write(0x10, 0x1111_1111, 4)
        regs.write(0x14, 0x2222_2222, 4)
        assert regs.wide == 0x2222_2222_1111_1111
        assert regs.read(0x14, 4) == 0x2222_2222

    def test_w1c_lane_does_not_clear_the_others(self) -> None:
        regs = Sample()
        regs.events = 0xFFFF_FFFF
        regs.write(8, 0xFF, 1)
        assert regs.events == 0xFFFF_FF00

    def test_wide_access_reaches_each_register_once_in_order(self) -> None:
        seen: list[tuple[str, int]] = []

        class Pair(RegisterMap):
            low = Register(0)
            high = Register(4)

            @low.on_write
            def low_written(self, value: int) -> None:
                seen.append(("low", value))

            @high.on_write
            def high_written(self, value: int) -> None:
                seen.append(("high", value))

        regs = Pair()
        regs.write(0, 0x2222_2222_1111_1111, 8)
        assert seen == [("low", 0x1111_1111), ("high", 0x2222_2222)]
        assert regs.read(0, 8) == 0x2222_2222_1111_1111

    def test_mixed_sizes_and_gap_in_one_access(self) -> None:
        regs = Sample()
        regs.half, regs.byte = 0x0AB0, 0xCD
        assert regs.read(0x18, 4) == 0x00CD_0AB0
        regs.write(0x18, 0xFF_11_0220, 4)
        assert (regs.half, regs.byte) == (0x0220, 0x11)

    def test_absent_byte(self) -> None:
        class Ones(RegisterMap):
            absent = 0xFF
            here = Register(4)
            command = Register(8, access="wo")

        regs = Ones()
        assert regs.read(0, 4) == 0xFFFF_FFFF
        assert regs.read(0, 8) == 0x0000_0000_FFFF_FFFF
        assert regs.read(8, 4) == 0xFFFF_FFFF


class TestWidths:
    class Strict(RegisterMap):
        widths = (4,)
        word = Register(0, reset=5)
        wide = Register(8, 8, widths=(4, 8), reset=6)
        pieces = Register(16, 8, widths=(4,), reset=1 << 32)

    @pytest.mark.parametrize("size", [1, 2, 8])
    def test_refused_width_reads_ones_and_changes_nothing(self, size: int) -> None:
        regs = self.Strict()
        regs.write(0, 0, size)
        assert regs.word == 5
        assert regs.read(0, size) == (1 << 8 * size) - 1

    def test_listed_widths_work(self) -> None:
        regs = self.Strict()
        assert regs.read(8, 8) == 6
        regs.write(12, 1, 4)
        assert regs.wide == 1 << 32 | 6

    def test_own_size_may_be_refused(self) -> None:
        regs = self.Strict()
        assert regs.read(16, 8) == (1 << 64) - 1
        assert regs.read(20, 4) == 1


class TestHooks:
    def test_hooks_of_the_map_and_of_the_owner(self) -> None:
        class Regs(RegisterMap):
            a = Register(0)
            b = Register(4)
            c = RegisterArray(8, count=2)

            @a.on_read
            def read_a(self) -> int:
                return self.b + 1

        class Owner:
            def __init__(self) -> None:
                self.seen: list[tuple[int, ...]] = []
                self.regs = Regs(self)

            @Regs.b.on_store
            def store_b(self, old: int, new: int) -> int:
                self.seen.append((old, new))
                return new + 1

            @Regs.c.on_write
            def wrote_c(self, index: int, value: int) -> None:
                self.seen.append((index, value, self.regs.c[index]))

            @Regs.c.on_read
            def read_c(self, index: int) -> int:
                return 0x1_0000_0100 + index

        owner = Owner()
        owner.regs.write(4, 9, 4)
        assert owner.regs.read(0, 4) == 11
        owner.regs.write(12, 3, 4)
        assert owner.seen == [(0, 9), (1, 3, 3)]
        assert owner.regs.read(12, 4) == 0x101
        assert Regs().read(0, 4) == 1  # without an owner the map's hooks work alone

    def test_on_write_comes_after_the_store_and_gets_the_word_written(self) -> None:
        class Regs(RegisterMap):
            a = Register(0, writable=0x0F)
            log: tuple[int, int] = (0, 0)

            @a.on_write
            def wrote(self, value: int) -> None:
                self.log = (value, self.a)

        regs = Regs()
        regs.write(0, 0xFF, 4)
        assert regs.log == (0xFF, 0x0F)

    def test_a_subclass_overrides_the_method_without_the_decorator(self) -> None:
        class Base:
            @Sample.status.on_read
            def read_status(self) -> int:
                return 1

        class Derived(Base):
            def read_status(self) -> int:
                return 2

        assert Sample(Base()).read(4, 4) == 1
        assert Sample(Derived()).read(4, 4) == 2

    def test_one_method_for_several_registers(self) -> None:
        class Owner:
            @Sample.control.on_store
            @Sample.wide.on_store
            def keep(self, old: int, new: int) -> int:
                return old

        regs = Sample(Owner())
        regs.write(0, 1, 4)
        regs.write(0x10, 1, 8)
        assert (regs.control, regs.wide) == (0x100, 0)

    def test_two_methods_for_one_register_are_an_error(self) -> None:
        class Owner:
            @Sample.control.on_write
            def first(self, value: int) -> None: ...

            @Sample.control.on_write
            def second(self, value: int) -> None: ...

        message = r"^Owner: first and second are both on_write of register control$"
        with pytest.raises(ValueError, match=message):
            hooks_of(Owner)

    def test_a_hook_that_never_runs_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"^on_write of register status, which is ro$"):
            Sample.status.on_write(lambda self, value: None)
        with pytest.raises(ValueError, match=r"^on_read of register go, which is wo$"):
            Sample.go.on_read(lambda self: 0)


class TestDecoding:
    def test_fields(self) -> None:
        assert Sample.control.unpack(0x1205) == {"enable": 1, "mode": 2, "level": 0x12}
        assert Sample.control.pack(enable=1, level=2) == 0x201
        assert Sample.control.decode(0x1205) == "0x1205 [enable mode=RUN level=0x12]"
        assert Sample.control.decode(0x2) == "0x2 [mode=0x1]"
        assert Sample.status.decode(3) == "0x3"

    def test_bad_fields(self) -> None:
        with pytest.raises(ValueError, match=r"^register control has no field 'speed'$"):
            Sample.control.pack(speed=1)
        with pytest.raises(ValueError, match=r"^0x8 does not fit field mode of register control$"):
            Sample.control.pack(mode=8)

    def test_names_of_offsets(self) -> None:
        assert Sample.describe(0) == "control"
        assert Sample.describe(0x13) == "wide+3"
        assert Sample.describe(0x29) == "bank[1]+1"
        assert Sample.describe(0x24) == "0x24"

    def test_accesses_for_people(self) -> None:
        assert Sample.decode(0, 0x1, 4) == "control = 0x1 [enable mode=IDLE]"
        assert Sample.decode(1, 0x1, 1) == "control+1 = 0x1"
        assert Sample.decode(0x1C, 0x0, 4) == "0x1c = 0x0"

    def test_json(self) -> None:
        assert Sample.registers["bank"].describe() == {
            "name": "bank",
            "offset": 0x20,
            "size": 4,
            "access": "rw",
            "reset": 7,
            "count": 3,
            "stride": 8,
            "fields": {},
            "doc": "",
        }
        fields = Sample.control.describe()["fields"]
        assert fields == {"enable": [0, 0], "mode": [3, 1], "level": [15, 8]}


class TestDefinitionErrors:
    @pytest.mark.parametrize(
        ("register", "message"),
        [
            (Register(0, 3), r"^Bad.a: size must be 1, 2, 4 or 8, not 3$"),
            (Register(2), r"^Bad.a: offset 0x2 is not a multiple of its size 4$"),
            (Register(-4), r"^Bad.a: offset -0x4 is not a multiple of its size 4$"),
            (Register(0, access="rx"), r"^Bad.a: access must be rw, ro, wo or w1c, not 'rx'$"),  # type: ignore[arg-type]
            (Register(0, 1, reset=256), r"^Bad.a: reset value 0x100 does not fit 1 bytes$"),
            (
                Register(0, writable=1 << 32),
                r"^Bad.a: writable mask 0x100000000 does not fit 4 bytes$",
            ),
            (Register(0, widths=(3,)), r"^Bad.a: widths must be some of 1, 2, 4, 8, not \(3,\)$"),
            (
                Register(0, fields={"f": 32}),
                r"^Bad.a: field f \(32, 32\) is not \(msb, lsb\) within 32 bits$",
            ),
            (
                Register(0, fields={"f": (0, 3)}),
                r"^Bad.a: field f \(0, 3\) is not \(msb, lsb\) within 32 bits$",
            ),
            (
                Register(0, fields={"f": (3, 0), "g": 3}),
                r"^Bad.a: field g shares bits with another field$",
            ),
            (RegisterArray(0, count=0), r"^Bad.a: count must be at least 1, not 0$"),
            (
                RegisterArray(0, count=2, stride=6),
                r"^Bad.a: stride 0x6 is not a multiple of its size 4$",
            ),
        ],
    )
    def test_one_register(self, register: Register | RegisterArray, message: str) -> None:
        register.__set_name__(RegisterMap, "a")
        with pytest.raises(ValueError, match=message):
            type("Bad", (RegisterMap,), {"a": register})

    def test_overlap(self) -> None:
        with pytest.raises(ValueError, match=r"^Bad.b at 0x4 overlaps a at 0x0$"):

            class Bad(RegisterMap):
                a = Register(0, 8)
                b = Register(4)

    def test_arrays_may_interleave_but_not_overlap(self) -> None:
        class Doorbells(RegisterMap):
            tail = RegisterArray(0, count=4, stride=8)
            head = RegisterArray(4, count=4, stride=8)

        assert Doorbells.describe(0x14) == "head[2]"
        with pytest.raises(ValueError, match=r"^Bad.b at 0x8 overlaps a at 0x8$"):

            class Bad(RegisterMap):
                a = RegisterArray(0, count=4)
                b = Register(8)

    def test_taken_names(self) -> None:
        for name in ("read", "values", "owner", "span"):
            with pytest.raises(
                ValueError, match=rf"^Bad.{name}: the name is taken by RegisterMap$"
            ):
                type("Bad", (RegisterMap,), {name: Register(0)})

    def test_one_register_under_two_names(self) -> None:
        with pytest.raises(ValueError, match=r"^Bad.b: declared before, as a$"):

            class Bad(RegisterMap):
                a = Register(0)
                b = a

    def test_inheritance_adds_and_replaces(self) -> None:
        class More(Sample):
            extra = Register(0x40, reset=1)
            status = Register(0x04, reset=2)

        regs = More()
        assert (regs.extra, regs.read(4, 4), regs.control) == (1, 2, 0x100)
        regs.write(4, 3, 4)
        assert regs.status == 3
        assert Sample().read(4, 4) == 0xA5A5_0001

        class Other(RegisterMap):
            a = Register(0)

        with pytest.raises(TypeError, match=r"^Both: only one base may have registers$"):
            type("Both", (Sample, Other), {})
