"""The GPUs that kernels are compiled for, and how many warps of one kernel fit on them."""

from dataclasses import dataclass

from kernel_gate.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Target:
    """One multiprocessor (compute unit on AMD) of an architecture.

    Limits of NVIDIA: CUDA C++ Programming Guide, "Technical specifications per compute
    capability"; a warp's registers come in units of 256 from one of four equal files, and a block
    has 1 KiB of shared memory of its own. Limits of AMD: CDNA3 ISA guide; a wave's registers come
    in units of 8 a lane from one SIMD unit.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    registers: int  # 32-bit ones of one of the four files
    register_unit: int  # registers that a warp is given at a time
    warps: int  # of one of the four schedulers
    blocks: int
    shared: int
    shared_per_block: int  # taken besides what the kernel asks for

    def occupancy(self, resources: Resources, *, num_warps: int) -> float:
        """Share of the multiprocessor's warps that can be resident at once.

        blocks = min(block limit, warp limit / warps of a block, warps by registers / warps of a
        block, shared memory / shared memory of a block), all rounded down;
        warps by registers = 4 * floor(file / (registers of a thread * lanes, rounded up to units));
        occupancy = blocks * warps of a block / warp limit.
        """
        taken = -(-resources.registers * self.warp_size // self.register_unit) * self.register_unit
        by_registers = 4 * min(self.warps, self.registers // max(taken, 1)) // num_warps
        shared = resources.shared + self.shared_per_block
        by_shared = self.shared // shared if shared else self.blocks
        blocks = min(self.blocks, 4 * self.warps // num_warps, by_registers, by_shared)
        return blocks * num_warps / (4 * self.warps)


def _nvidia(arch: int, *, shared_kib: int) -> Target:
    return Target(
        name=f"sm_{arch}",
        backend="cuda",
        arch=arch,
        warp_size=32,
        registers=16384,
        register_unit=256,
        warps=16,
        blocks=32,
        shared=shared_kib * 1024,
        shared_per_block=1024,
    )


GFX942 = Target(
    name="gfx942",
    backend="hip",
    arch="gfx942",
    warp_size=64,
    registers=512 * 64,
    register_unit=8 * 64,
    warps=8,
    blocks=32,
    shared=64 * 1024,
    shared_per_block=0,
)
TARGETS = {
    target.name: target
    for target in (
        _nvidia(80, shared_kib=164),
        _nvidia(90, shared_kib=228),
        _nvidia(100, shared_kib=228),
        GFX942,
    )
}
