"""What a compiled kernel takes of a GPU, read from the machine code that was emitted."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Registers of a thread, shared memory of a block in bytes, stack of a thread in bytes.

    A kernel here has no arrays of its own, so any stack is registers spilled to memory.
    `spilled_scalars` are AMD's scalar registers parked in lanes of vector registers: they cost
    instructions, not memory.
    """

    registers: int
    shared: int
    stack: int
    spilled_scalars: int = 0


def read_resources(compiled: Any) -> Resources:
    """Of a `triton.compile` result."""
    shared = compiled.metadata.shared
    if "cubin" in compiled.asm:
        return cubin_resources(compiled.asm["cubin"], shared=shared)
    return amdgcn_resources(compiled.asm["amdgcn"], shared=shared)


def cubin_resources(cubin: bytes, *, shared: int) -> Resources:
    """STACK, not LOCAL, holds spills (LOCAL stays 0), and only of the cubin that will run."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (registers,), (stack,) = (re.findall(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK"))
    return Resources(registers=int(registers), shared=shared, stack=int(stack))


def amdgcn_resources(assembly: str, *, shared: int) -> Resources:
    """From the metadata that the loader reads; accumulation registers are in the vector count."""

    def entry(name: str) -> int:
        (value,) = re.findall(rf"\.{name}: +(\d+)", assembly)
        return int(value)

    return Resources(
        registers=entry("vgpr_count"),
        shared=max(shared, entry("group_segment_fixed_size")),
        stack=max(entry("private_segment_fixed_size"), 4 * entry("vgpr_spill_count")),
        spilled_scalars=entry("sgpr_spill_count"),
    )
