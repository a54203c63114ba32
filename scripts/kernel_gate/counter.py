"""Counts the bytes that Triton kernels load and store while they are interpreted."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

# What a GPU's memory delivers at least.
SECTOR = 32


@dataclass
class Moved:
    """Bytes that one kernel moved in all its launches.

    Attributes:
        distinct: that each program touched, once a program and direction: what memory must deliver
            when programs share nothing.
        touched: addresses of elements by direction and size, from all programs.
        sectors: the same in whole sectors of 32 bytes.
        accessed: every access of every program, the ones that a cache near it serves too.
        programs: how many ran.
    """

    distinct: int = 0
    sectors: int = 0
    accessed: int = 0
    programs: int = 0
    touched: dict[tuple[str, int], NDArray[np.uint64]] = field(default_factory=dict)

    @property
    def compulsory(self) -> int:
        """Every byte that the kernel touches, once a direction."""
        return sum(len(addresses) * size for (_, size), addresses in self.touched.items())

    def add(self, direction: str, size: int, addresses: NDArray[np.uint64]) -> None:
        """Count one program's accesses to elements of one size."""
        self.accessed += len(addresses) * size
        distinct = np.unique(addresses)
        self.distinct += len(distinct) * size
        self.sectors += len(np.unique(distinct // SECTOR)) * SECTOR
        before = self.touched.get((direction, size), distinct)
        self.touched[direction, size] = np.union1d(before, distinct)


@dataclass
class Counter:
    """Bytes by kernel, and the accesses of the program that runs now."""

    kernels: dict[str, Moved] = field(default_factory=dict)
    running: str = ""
    accesses: dict[tuple[str, int], list[NDArray[np.uint64]]] = field(default_factory=dict)

    def access(self, direction: str, pointers: Any, mask: Any) -> None:
        """Note the addresses that a mask lets through."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = np.broadcast_to(pointers.data, np.shape(mask.data))[mask.data]
        self.accesses.setdefault((direction, size), []).append(addresses.ravel())

    def end_program(self) -> None:
        """Add up what it accessed."""
        if self.accesses:
            moved = self.kernels.setdefault(self.running, Moved())
            moved.programs += 1
            for (direction, size), found in self.accesses.items():
                moved.add(direction, size, np.concatenate(found))
            self.accesses = {}


@contextmanager
def counted() -> Iterator[dict[str, Moved]]:
    """Bytes by kernel of everything interpreted inside; needs TRITON_INTERPRET=1."""
    counter = Counter()

    def counting(name: str, *directions: str, mask_at: int) -> Any:
        original = getattr(InterpreterBuilder, name)

        def operation(builder: InterpreterBuilder, *arguments: Any) -> Any:
            pointers = arguments[1] if name == "create_atomic_rmw" else arguments[0]
            for direction in directions:
                counter.access(direction, pointers, arguments[mask_at])
            return original(builder, *arguments)

        return patch.object(InterpreterBuilder, name, operation)

    original_start, original_run = InterpreterBuilder.set_grid_idx, GridExecutor.__call__

    def start_program(builder: InterpreterBuilder, *place: int) -> None:
        counter.end_program()
        original_start(builder, *place)

    def run(executor: GridExecutor, *arguments: Any, **keywords: Any) -> None:
        counter.running = executor.fn.__name__
        original_run(executor, *arguments, **keywords)
        counter.end_program()

    with ExitStack() as stack:
        for change in (
            counting("create_masked_load", "read", mask_at=1),
            counting("create_masked_store", "write", mask_at=2),
            counting("create_atomic_rmw", "read", "write", mask_at=3),
            patch.object(InterpreterBuilder, "set_grid_idx", start_program),
            patch.object(GridExecutor, "__call__", run),
        ):
            stack.enter_context(change)
        yield counter.kernels
