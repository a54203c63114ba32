"""What all Triton kernels share: which positions, channels and taps a program works on.

A program owns RUNS runs of STEPS neighbouring positions (of any sentences) and COLS channels.
Position u of all runs is one (RUNS, COLS) tile, so a row of x read once serves up to STEPS outputs
from registers. Taps come in passes of TAPS: unrolled when narrow, a loop over passes when wide.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv_mt.errors import ConfigError

_WORD = 2**32
# Values that change from call to call must not make a new kernel.
VARYING = [
    *("batch", "time", "padding_left", "tiles", "lines"),
    *("seed_low", "seed_high", "threshold", "scale"),
]


@triton.jit
def locate_runs(tile, batch, time, WIDTH: tl.constexpr, RUNS: tl.constexpr, STEPS: tl.constexpr):
    """Sentence (int64) and first position of each run, both (RUNS,)."""
    run = tile * RUNS + tl.arange(0, RUNS)
    per_sentence = tl.cdiv(time, STEPS)
    sentence = run // per_sentence
    # Runs after the last sentence start so far behind its end that all they touch is masked.
    start = tl.where(sentence < batch, (run - sentence * per_sentence) * STEPS, time + WIDTH)
    return tl.where(sentence < batch, sentence, 0).to(tl.int64), start


@triton.jit
def locate_columns(
    block, HEADS: tl.constexpr, SHARE: tl.constexpr, COLS: tl.constexpr, MIXED: tl.constexpr
):
    """Head, channel and validity of a block's columns; head is a scalar, or (1, COLS) if MIXED."""
    lane = tl.arange(0, COLS)[None, :]
    if MIXED:
        channel = block * COLS + lane
        valid = channel < HEADS * SHARE
        head = tl.minimum(channel, HEADS * SHARE - 1) // SHARE
    else:
        parts: tl.constexpr = (SHARE + COLS - 1) // COLS
        head = block // parts
        inner = block % parts * COLS + lane
        valid = inner < SHARE
        channel = head * SHARE + inner
    return head, channel, valid


@triton.jit
def point(pointer, sentence, position, channel, batch_stride, time_stride):
    """Pointers (RUNS, COLS) to the first row of each run."""
    row = sentence * batch_stride + position.to(tl.int64) * time_stride
    return pointer + row[:, None] + channel


@triton.jit
def store_rows(pointers, sums, start, time, valid, CHANNELS: tl.constexpr, STEPS: tl.constexpr):
    """Write the rows of all steps that lie inside the sentence."""
    for step in tl.static_range(STEPS):
        written = (start + step < time)[:, None] & valid
        tl.store(pointers + step * CHANNELS, sums[step], mask=written)


@triton.jit
def load_rows(pointers, position, time, stride, shift, valid):
    """Rows `shift` positions after `position`, zero outside the sentence: float32."""
    inside = (position + shift >= 0) & (position + shift < time)
    offset = tl.cast(shift, tl.int64) * stride
    return tl.load(pointers + offset, mask=inside[:, None] & valid, other=0.0).to(tl.float32)


@triton.jit
def add_to(sums, index: tl.constexpr, value):
    """The tuple `sums` with `value` added to one of its tiles."""
    return sums[:index] + (sums[index] + value,) + sums[index + 1 :]


@triton.jit
def keep(element, random):
    """`ops.masks.keep_mask`, kept = 1 / (1 - p); random: seed words, threshold, that value."""
    word = element.to(tl.uint32) ^ random[0].to(tl.uint32, bitcast=True)
    word = lowbias32(word) ^ random[1].to(tl.uint32, bitcast=True)
    kept = lowbias32(word) >= random[2].to(tl.uint32, bitcast=True)
    return tl.where(kept, random[3], 0.0)


@triton.jit
def lowbias32(word):
    """The 32-bit finaliser of `ops.masks`."""
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    return word ^ (word >> 16)


def random_words(dropout: float, seed: int) -> tuple[int, int, int, float]:
    """Seed words and threshold as signed 32 bits, and the factor of what is kept."""
    threshold = min(round(dropout * _WORD), _WORD - 1)
    low, high, limit = (
        (word + _WORD // 2) % _WORD - _WORD // 2 for word in (seed, seed >> 32, threshold)
    )
    return low, high, limit, 1.0 / (1.0 - dropout)


def threads_of_row(cols: int, x: Tensor) -> int:
    """How many threads share a row of `cols` elements of x, each reading 16 bytes; at least 4."""
    return max(4, cols * x.element_size() // 16)


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous output, not initialised; tests fill it with NaN."""
    return torch.empty(shape, dtype=dtype, device=device)


def channels_together(x: Tensor) -> Tensor:
    """Channels side by side; other strides as they are."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def check_types(*tensors: Tensor) -> None:
    """Refuse what the kernels do not compute in.

    Raises:
        ConfigError: for float64.
    """
    if any(tensor.dtype is torch.float64 for tensor in tensors):
        raise ConfigError(
            "the Triton kernels sum in float32 and take no float64; "
            "set runtime.kernels=torch, or give float32, bfloat16 or float16"
        )


def launch(
    kernel: Any, programs: int, near: Tensor, /, *arguments: Any, warps: int, **constants: Any
) -> None:
    """Run a kernel on the device of `near`; nothing to do is no launch."""
    if programs == 0:
        return
    with torch.cuda.device_of(near):
        # Sums of products: without fused multiply-adds, Triton's coming default, twice the work.
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
