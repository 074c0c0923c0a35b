"""Machine descriptions as data: ``-d`` strings, addresses, sizes, placing, validation."""

from __future__ import annotations

import pytest

from uvfio.errors import ConfigError
from uvfio.machine.spec import (
    DeviceSpec,
    IommuSpec,
    MachineSpec,
    default_machine,
    parse_address,
    parse_device,
    parse_number,
    parse_size,
    place,
)


def test_default_machine_is_that_of_the_documentation() -> None:
    devices = default_machine().devices
    assert [(d.address, d.group, d.model, d.driver) for d in devices] == [
        ("0000:06:0d.0", 240, "edu", "vfio-pci"),
        ("0000:06:0d.1", 240, "edu", "vfio-pci"),
        ("0000:07:00.0", 241, "edu", "vfio-pci"),
    ]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0000:06:0d.0", "0000:06:0d.0"),
        ("6:d.0", "0000:06:0d.0"),
        ("06:0D.7", "0000:06:0d.7"),
        ("1:6:d.1", "0001:06:0d.1"),
        ("ffff:ff:1f.7", "ffff:ff:1f.7"),
    ],
)
def test_addresses_are_normalised(text: str, canonical: str) -> None:
    assert parse_address(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "06:0d", "06:0d.8", "06:0d.", "0000:06:0d.00", "10000:06:0d.0", "0:100:0.0"),
        *("6:20.0", "+6:d.0", "6: d.0", "6:_d.0", "a:b:c:d.0", "zz:00.0", ":06.0", "06:.0"),
        "\uff16:d.0",  # a digit, but not an ASCII one
    ],
)
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_address(text, "m.toml: device[0]")
    assert str(info.value).startswith("m.toml: device[0]: address")
    assert "SSSS:BB:DD.F" in info.value.hint


def test_device_string_with_everything() -> None:
    dev = parse_device("edu@6:d.0,group=240,driver=none,dma_bits=32,name=a=b")
    assert dev == DeviceSpec("edu", "0000:06:0d.0", 240, "none", {"dma_bits": "32", "name": "a=b"})
    assert "edu@6:d.0" in dev.source


@pytest.mark.parametrize(
    ("text", "model", "address"),
    [
        ("edu", "edu", None),
        ("pkg.mod:Class", "pkg.mod:Class", None),
        ("pkg.mod:Class@06:0d.0", "pkg.mod:Class", "0000:06:0d.0"),
        ("./my/dev.py:Thing@6:d.1", "./my/dev.py:Thing", "0000:06:0d.1"),
        ("/home/me@work/dev.py:Thing", "/home/me@work/dev.py:Thing", None),
        ("/home/me@work/dev.py:Thing@6:d.1", "/home/me@work/dev.py:Thing", "0000:06:0d.1"),
    ],
)
def test_model_and_address(text: str, model: str, address: str | None) -> None:
    dev = parse_device(text)
    assert (dev.model, dev.address) == (model, address)


def test_doubled_comma_is_a_comma() -> None:
    assert parse_device("edu,a=1,,2,b=,,").options == {"a": "1,2", "b": ","}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "model is empty"),
        ("@06:0d.0", "model is empty"),
        ("edu@", "address is empty"),
        ("edu@6:d", "address '6:d' is not a PCI address"),
        ("edu,", "option is empty"),
        ("edu,fast", "option 'fast' is not key=value"),
        ("edu,=1", "option '=1' is not key=value"),
        ("edu,group=x", "group 'x' is not a number"),
        ("edu,group=-1", "group -1 is out of range, 0 to 2147483647"),
        ("edu,group=2147483648", "out of range"),
        ("edu,group=1,group=2", "group '2' is given twice"),
        ("edu,a=1,a=2", "a '2' is given twice"),
        ("edu,driver=", "driver is not a driver's name"),
        ("edu,driver=a/b", "driver 'a/b' is not a driver's name"),
        ("edu,driver=..", "driver '..' is not a driver's name"),
        ("edu,driver=vfio_pci", "driver 'vfio_pci' is not how the driver is spelt"),
        ("edu,driver=VFIO-PCI", "driver 'VFIO-PCI' is not how the driver is spelt"),
        (f"edu,driver={'d' * 256}", "is not a driver's name"),
        (f"timer@/soc/{'n/' * 130}t", "characters"),
        ("timer@/soc/..", "is not the path of a device tree node: '..'"),
        ("timer@/./timer", "is not the path of a device tree node: '.'"),
        ("timer@/soc/..@10010000", "is not the path of a device tree node"),
        ("timer@/soc/a\0b", "is not the path of a device tree node"),
        ("edu,address=6:d.0", "has a place of its own"),
    ],
)
def test_wrong_device_strings(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_device(text)
    assert says in str(info.value)
    assert str(info.value).startswith(f"-d {text!r}: ")


def test_numbers() -> None:
    assert parse_number("0xff", "", "n") == 255
    assert parse_number("12", "", "n") == 12
    assert parse_number(12, "", "n") == 12
    for bad in ("", "x", "1.5", None, 1.5, True, "0b1"):
        with pytest.raises(ConfigError, match="is not a number"):
            parse_number(bad, "", "n")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("4K", 4096),
        ("2M", 2 << 20),
        ("1g", 1 << 30),
        ("1T", 1 << 40),
        ("4096", 4096),
        ("0x1000", 4096),
        (4096, 4096),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value, "", "page_sizes") == size


@pytest.mark.parametrize("value", ["", "K", "4X", "4KB", "four", "4KK", None, 1.5])
def test_wrong_sizes(value: object) -> None:
    with pytest.raises(ConfigError):
        parse_size(value, "m.toml: iommu", "page_sizes")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"page_sizes": ()}, "page_sizes [] is empty"),
        ({"page_sizes": (4096, 5000)}, "page_sizes 5000 is not a power of two"),
        ({"page_sizes": (2048,)}, "page_sizes 2048 is not a power of two of at least 4K"),
        ({"page_sizes": (4096, 4096)}, "names a size twice"),
        ({"address_bits": 20}, "address_bits 20 is out of range, 32 to 64"),
        ({"dma_entry_limit": 0}, "dma_entry_limit 0 is out of range"),
        ({"reserved": ((2, 1),)}, "reserved '0x2-0x1' is not a range"),
        ({"reserved": ((0, 2**64),)}, "is not a range"),
        ({"reserved": ((0, 9), (9, 12))}, "reserved '0x9-0xc' overlaps"),
    ],
)
def test_wrong_iommu(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as info:
        IommuSpec(**fields, source="m.toml: iommu")  # type: ignore[arg-type]
    assert says in str(info.value)
    assert str(info.value).startswith("m.toml: iommu: ")


def test_iommu_lists_are_sorted() -> None:
    iommu = IommuSpec(page_sizes=(1 << 30, 4096), reserved=((8, 9), (0, 1)))
    assert iommu.page_sizes == (4096, 1 << 30)
    assert iommu.reserved == ((0, 1), (8, 9))


def test_free_addresses_and_groups_avoid_the_given_ones() -> None:
    spec = MachineSpec(
        devices=(
            DeviceSpec("edu"),
            DeviceSpec("edu", "00:01.3"),
            DeviceSpec("edu", group=0),
            DeviceSpec("edu"),
            DeviceSpec("edu", group=2),
        )
    )
    assert [(d.address, d.group) for d in spec.devices] == [
        ("0000:00:02.0", 1),
        ("0000:00:01.3", 3),
        ("0000:00:03.0", 0),
        ("0000:00:04.0", 4),
        ("0000:00:05.0", 2),
    ]


def test_place_beside_what_is_there() -> None:
    (dev,) = place([DeviceSpec("edu")], taken=["0000:00:01.0"], groups=[0, 1])
    assert (dev.address, dev.group) == ("0000:00:02.0", 2)
    with pytest.raises(ConfigError, match="is taken by a device of the machine"):
        place([DeviceSpec("edu", "0:1.0")], taken=["0000:00:01.0"])


def test_two_devices_at_one_address() -> None:
    with pytest.raises(ConfigError) as info:
        MachineSpec(devices=(parse_device("edu@6:d.0"), parse_device("serial@0000:06:0d.0")))
    assert str(info.value) == (
        "-d 'serial@0000:06:0d.0': address '0000:06:0d.0' is where -d 'edu@6:d.0' is"
    )
    assert info.value.hint


def test_automatic_addresses_go_on_to_the_next_bus_and_end() -> None:
    spec = MachineSpec(devices=tuple(DeviceSpec("edu") for _ in range(33)))
    assert spec.devices[30].address == "0000:00:1f.0"
    assert spec.devices[31].address == "0000:01:00.0"
    with pytest.raises(ConfigError, match="no slot is left"):
        MachineSpec(devices=tuple(DeviceSpec("edu") for _ in range(256 * 32)))
