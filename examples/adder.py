"""A PCI device that adds two numbers."""

from uvfio.kit import Msi, PciModel, Register, RegisterBar, RegisterMap


class AdderRegisters(RegisterMap):
    a = Register(0x00)
    b = Register(0x04)
    total = Register(0x08, access="ro")
    go = Register(0x0C, access="wo", doc="any value adds, then interrupts")


class Adder(PciModel):
    """Adds two 32-bit numbers."""

    vendor_id, device_id = 0x1234, 0x0ADD
    capabilities = (Msi(1),)
    regs = RegisterBar(0, AdderRegisters)

    @AdderRegisters.go.on_write
    def add(self, value: int) -> None:
        self.regs.total = self.regs.a + self.regs.b & 0xFFFFFFFF
        self.interrupt()
