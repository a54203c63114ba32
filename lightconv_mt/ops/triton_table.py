"""How the Triton kernels are launched: a table, so that nothing is tuned while a model runs.

`UNTUNED` was chosen from the registers that the compiler reports, `UNTUNED_BLOCKS` likewise.
`TUNED` and `TUNED_BLOCKS` hold what scripts/tune_kernels.py measured on a GPU; it rewrites those
parts of this file.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from lightconv_mt.errors import ConfigError

WIDTH_CLASSES = (4, 8, 16, 32, 255)
# Upper ends of small and middling inputs, in positions of all sentences.
SIZE_CLASSES = (512, 8192)
# Programs with fewer columns get no more runs: their weights would not fit into registers.
NARROWEST = 16


@dataclass(frozen=True)
class Tiling:
    """What a program works on, whatever the number of channels.

    `tile` counts the elements of one tile of x, runs x columns; `taps` 0 means all of them,
    unrolled; `warps` are for 2-byte elements, wider ones get twice as many.
    """

    tile: int
    steps: int
    taps: int
    warps: int


@dataclass(frozen=True)
class Launch:
    """RUNS, STEPS, TAPS and COLS of a kernel (see ops/triton_tiles.py), and its warps."""

    runs: int
    steps: int
    taps: int
    cols: int
    warps: int

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time arguments of the kernel."""
        return {"RUNS": self.runs, "STEPS": self.steps, "TAPS": self.taps, "COLS": self.cols}


# Kernel and width class -> tiling.
UNTUNED: dict[tuple[str, int], Tiling] = {
    ("lightconv_forward", 4): Tiling(2048, 4, 0, 8),
    ("lightconv_forward", 8): Tiling(2048, 4, 0, 8),
    ("lightconv_forward", 16): Tiling(2048, 4, 5, 8),
    ("lightconv_forward", 32): Tiling(2048, 4, 8, 8),
    ("lightconv_forward", 255): Tiling(2048, 4, 8, 8),
    ("lightconv_backward", 4): Tiling(2048, 4, 0, 8),
    ("lightconv_backward", 8): Tiling(1024, 4, 4, 4),
    ("lightconv_backward", 16): Tiling(1024, 4, 4, 4),
    ("lightconv_backward", 32): Tiling(1024, 4, 4, 4),
    ("lightconv_backward", 255): Tiling(1024, 4, 4, 4),
    ("lightconv_step", 4): Tiling(1024, 1, 0, 4),
    ("lightconv_step", 8): Tiling(1024, 1, 0, 4),
    ("lightconv_step", 16): Tiling(1024, 1, 0, 4),
    ("lightconv_step", 32): Tiling(1024, 1, 0, 4),
    ("lightconv_step", 255): Tiling(1024, 1, 0, 4),
    ("dynamicconv_forward", 4): Tiling(2048, 4, 0, 8),
    ("dynamicconv_forward", 8): Tiling(2048, 4, 4, 8),
    ("dynamicconv_forward", 16): Tiling(2048, 4, 3, 8),
    ("dynamicconv_forward", 32): Tiling(2048, 4, 4, 8),
    ("dynamicconv_forward", 255): Tiling(2048, 4, 4, 8),
    ("dynamicconv_backward", 4): Tiling(2048, 4, 0, 8),
    ("dynamicconv_backward", 8): Tiling(2048, 4, 3, 8),
    ("dynamicconv_backward", 16): Tiling(2048, 4, 3, 8),
    ("dynamicconv_backward", 32): Tiling(2048, 4, 2, 8),
    ("dynamicconv_backward", 255): Tiling(1024, 1, 4, 8),
    ("dynamicconv_step", 4): Tiling(1024, 1, 0, 4),
    ("dynamicconv_step", 8): Tiling(1024, 1, 0, 4),
    ("dynamicconv_step", 16): Tiling(1024, 1, 0, 4),
    ("dynamicconv_step", 32): Tiling(1024, 1, 0, 4),
    ("dynamicconv_step", 255): Tiling(1024, 1, 0, 4),
}


@dataclass(frozen=True)
class Block:
    """What a program of the other kernels holds at once: neighbouring elements, and its warps."""

    elements: int
    warps: int


# Kernel -> block: of a row of logits, of two rows, of a flat tensor.
UNTUNED_BLOCKS: dict[str, Block] = {
    "cross_entropy": Block(8192, 8),
    "paired_cross_entropy": Block(4096, 16),
    "residual": Block(2048, 8),
}

# Kernel, architecture, width class, columns and size class -> tiling.
TUNED: dict[tuple[str, str, int, int, int], Tiling] = {}

# Kernel and architecture -> block.
TUNED_BLOCKS: dict[tuple[str, str], Block] = {}


def tiling_of(
    kernel: str, architecture: str, width_class: int, cols: int, size_class: int
) -> Tiling:
    """The tiling of a key of `TUNED`, measured or not."""
    tuned = TUNED.get((kernel, architecture, width_class, cols, size_class))
    if tuned is not None:
        return tuned
    tiling = UNTUNED[kernel, width_class]
    # Few positions: smaller programs, that there are enough of them for every processor.
    shrink = (4, 2, 1)[size_class]
    return replace(tiling, tile=tiling.tile // shrink, warps=max(1, tiling.warps // shrink))


def choose_launch(
    kernel: str, *, width: int, cols: int, itemsize: int, positions: int, architecture: str
) -> Launch:
    """The launch of a kernel for a width, columns of a program and positions of all sentences.

    Raises:
        ConfigError: when the kernel is wider than the compiled ones are checked for.
    """
    size_class = sum(positions > end for end in SIZE_CLASSES)
    return launch_of(kernel, width, cols, itemsize, size_class, architecture)


@cache
def launch_of(
    kernel: str, width: int, cols: int, itemsize: int, size_class: int, architecture: str
) -> Launch:
    """As `choose_launch`, which calls it at every call of a kernel."""
    if width > WIDTH_CLASSES[-1]:
        raise ConfigError(
            f"the Triton kernels have widths up to {WIDTH_CLASSES[-1]}, not {width}; "
            f"set runtime.kernels=torch"
        )
    width_class = next(end for end in WIDTH_CLASSES if width <= end)
    tiling = tiling_of(kernel, architecture, width_class, cols, size_class)
    return Launch(
        runs=max(1, tiling.tile // max(cols, NARROWEST)),
        steps=tiling.steps,
        taps=min(tiling.taps or width, width),
        cols=cols,
        warps=tiling.warps * (2 if itemsize > 2 else 1),
    )


def block_of(kernel: str, architecture: str) -> Block:
    """The block of a kernel, measured or not."""
    return TUNED_BLOCKS.get((kernel, architecture), UNTUNED_BLOCKS[kernel])


def choose_block(kernel: str, *, elements: int, architecture: str) -> Block:
    """The block of a kernel for rows, or a flat tensor, of so many elements; never much wider."""
    block = block_of(kernel, architecture)
    width = min(block.elements, power_of_two(max(1, elements)))
    return Block(width, max(1, block.warps * width // block.elements))


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below a value of at least 1."""
    return 1 << (value - 1).bit_length()


def ceil_div(value: int, unit: int) -> int:
    """Units needed to hold a value."""
    return -(-value // unit)


@cache
def architecture_of(device: torch.device) -> str:
    """A GPU's architecture as compilers spell it, like sm_90 or gfx942; `none` for a CPU."""
    if device.type != "cuda":
        return "none"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"
