"""Compiles Triton kernels for GPUs that are not here."""

import time
from dataclasses import dataclass, field
from typing import Any

from kernel_gate.resources import Resources, read_resources
from kernel_gate.targets import Target


@dataclass(frozen=True, kw_only=True)
class AotCase:
    """One specialisation of a kernel.

    `signature` has the type of every argument that is not in `constants`; pointers and the
    integers named in `divisible` are multiples of 16, as a launch finds them.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    dtype: str
    width: int
    divisible: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    in_reduced: bool = False
    must_spill: bool = False


def compile_case(case: AotCase, target: Target) -> tuple[Resources, float]:
    """What the kernel takes of the target, and the seconds that it took."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    start = time.perf_counter()
    names = case.kernel.arg_names
    types = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [name for name in names if types[name].startswith("*") or name in case.divisible]
    source = ASTSource(
        fn=case.kernel,
        signature=types,
        constexprs=case.constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    compiled = triton.compile(source, target=gpu, options=case.options)
    return read_resources(compiled), time.perf_counter() - start
