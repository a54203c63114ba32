"""Compiles Triton kernels for GPUs that are not here, specialised as a launch on one would be."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernel_gate.resources import Resources, read_resources
from kernel_gate.targets import Target


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with the arguments of one launch."""

    kernel: JITFunction
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def num_warps(self) -> int:
        """Of a program."""
        return int(self.keywords["num_warps"])

    def compile(self, target: Target) -> tuple[Resources, float]:
        """What the kernel takes of the target, and the seconds that it took to compile."""
        start = time.perf_counter()
        return read_resources(self.build(target)), time.perf_counter() - start

    def build(self, target: Target) -> Any:
        """The result of `triton.compile` for the target."""
        gpu = GPUTarget(target.backend, target.arch, target.warp_size)
        backend = make_backend(gpu)
        kernel = self.kernel
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound = bind(*self.arguments, **self.keywords)
        options, signature, constants, attributes = kernel._pack_args(
            backend, self.keywords, *bound
        )
        source = ASTSource(kernel, signature, constants, attributes)
        return triton.compile(source, target=gpu, options=options.__dict__)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect what is launched instead of running it."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        launches.append(Launch(kernel=kernel, arguments=arguments, keywords=keywords))

    with patch.object(JITFunction, "run", run):
        yield launches
