"""One step of both convolutions on GPUs: reads a row's ring once, writes y and the new input."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lightconv_mt.ops.triton_dynamicconv_kernels import softmax_of_steps
from lightconv_mt.ops.triton_lightconv import NARROWEST_HEAD
from lightconv_mt.ops.triton_lightconv_kernels import load_tap, softmax_of_heads
from lightconv_mt.ops.triton_table import (
    architecture_of,
    ceil_div,
    choose_launch,
    power_of_two,
)
from lightconv_mt.ops.triton_tiles import (
    VARYING,
    channels_together,
    check_types,
    empty,
    launch,
    locate_columns,
    threads_of_row,
)

WIDEST_BLOCK = 64


@triton.jit(do_not_specialize=VARYING)
def step_kernel(
    x_ptr,
    ring_ptr,
    position_ptr,
    weight_ptr,
    y_ptr,
    batch,
    time,
    x_batch_stride,
    x_time_stride,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DYNAMIC: tl.constexpr,
    MIXED: tl.constexpr,
    BLOCKS: tl.constexpr,
    COLS: tl.constexpr,
    RUNS: tl.constexpr,
):
    """RUNS rows and COLS channels, one new position after the other."""
    program = tl.program_id(0)
    head, channel, valid = locate_columns(program % BLOCKS, HEADS, SHARE, COLS, MIXED)
    row = program // BLOCKS * RUNS + tl.arange(0, RUNS)
    inside = row < batch
    mask = inside[:, None] & valid
    channels: tl.constexpr = HEADS * SHARE
    slots: tl.constexpr = WIDTH - 1
    x_pointers = x_ptr + (row.to(tl.int64) * x_batch_stride)[:, None] + channel
    y_pointers = y_ptr + (row.to(tl.int64) * time * channels)[:, None] + channel
    ring_pointers = ring_ptr + (row.to(tl.int64) * slots * channels)[:, None] + channel
    position = tl.load(position_ptr + row, mask=inside, other=0)
    if not DYNAMIC:
        softmax = softmax_of_heads(weight_ptr, head, WIDTH, WIDE, NORMALIZE, MIXED)
    for new in range(time):
        if DYNAMIC:
            line = (row.to(tl.int64) * time + new) * HEADS + head
            if NORMALIZE:
                softmax = softmax_of_steps(weight_ptr, line, row, batch, WIDTH, HEADS, CHUNK, 1)
        total = tl.zeros((RUNS, COLS), tl.float32)
        for tap in tl.range(0, WIDTH, loop_unroll_factor=4):
            # Inputs of this call come from x, those before it from the ring.
            old = slots - tap > new
            slot = (position + new + tap) % max(slots, 1)
            offset = tl.cast(new - slots + tap, tl.int64) * x_time_stride
            slot_pointers = ring_pointers + (slot * channels)[:, None]
            # Two loads, one of them masked: AMD's compiler takes no choice between two pointers.
            frame = tl.load(slot_pointers, mask=mask & old, other=0.0).to(tl.float32)
            frame += tl.load(x_pointers + offset, mask=mask & (not old), other=0.0).to(tl.float32)
            if DYNAMIC:
                value = tl.load(weight_ptr + line * WIDTH + tap, mask=inside, other=0.0)
                value = value.to(tl.float32)
                if NORMALIZE:
                    value = tl.exp(value - softmax[0][0]) * softmax[1][0]
                total += value[:, None] * frame
            else:
                value = load_tap(
                    weight_ptr, head, tap, softmax, (0, 0, 0, 0.0), WIDTH, NORMALIZE, False
                )
                total += value * frame
        tl.store(y_pointers + tl.cast(new, tl.int64) * channels, total, mask=mask)
    # Every thread has read its ring before any writes to it.
    tl.debug_barrier()
    if slots > 0:
        for new in range(tl.maximum(time - slots, 0), time):
            frame = tl.load(x_pointers + tl.cast(new, tl.int64) * x_time_stride, mask=mask)
            slot = (position + new) % slots
            tl.store(ring_pointers + (slot * channels)[:, None], frame, mask=mask)


def lightconv_step_triton(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool = True
) -> Tensor:
    """Same as `lightconv_step_reference`; weight (H, K) of any type but float64."""
    return _step("lightconv", x, ring, position, weight, normalize=normalize)


def dynamicconv_step_triton(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool = True
) -> Tensor:
    """Same as `dynamicconv_step_reference`; weight (N, T, H, K) of any type but float64."""
    return _step("dynamicconv", x, ring, position, weight, normalize=normalize)


def _step(
    kind: str, x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool
) -> Tensor:
    check_types(x, weight)
    x, position, weight = channels_together(x), position.contiguous(), weight.contiguous()
    y = empty(x.shape, dtype=x.dtype, device=x.device)
    (batch, time, channels), (heads, width) = x.shape, weight.shape[-2:]
    share, dynamic = channels // heads, kind == "dynamicconv"
    mixed = share < NARROWEST_HEAD and not dynamic
    plan = choose_launch(
        f"{kind}_step",
        width=width,
        cols=min(power_of_two(channels if mixed else share), WIDEST_BLOCK),
        itemsize=x.element_size(),
        positions=batch,
        architecture=architecture_of(x.device),
    )
    blocks = ceil_div(channels, plan.cols) if mixed else heads * ceil_div(share, plan.cols)
    constants: dict[str, Any] = {
        **{"HEADS": heads, "SHARE": share, "WIDTH": width, "WIDE": power_of_two(width)},
        **{"CHUNK": threads_of_row(plan.cols, x), "NORMALIZE": normalize, "DYNAMIC": dynamic},
        **{"MIXED": mixed, "BLOCKS": blocks, "COLS": plan.cols, "RUNS": plan.runs},
    }
    launch(
        *(step_kernel, ceil_div(batch, plan.runs) * blocks if time else 0, x),
        *(x, ring, position, weight, y, batch, time, *x.stride()[:2]),
        **constants,
        warps=plan.warps,
    )
    return y
