"""LightConv's kernels in Triton: softmax, weight dropout and convolution in one, and its gradients.

Forward reads x once (rows between two programs twice) and writes y; backward reads x and the
gradient of y once and writes that of x. The weight gradient is summed in a fixed order: every
program writes its share to scratch, a second kernel adds the shares. No atomics.
"""

import triton
import triton.language as tl

from lightconv_mt.ops.triton_tiles import (
    VARYING,
    add_to,
    keep,
    load_rows,
    locate_columns,
    locate_runs,
    point,
    store_rows,
)


@triton.jit
def softmax_of_heads(
    weight_ptr,
    head,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    MIXED: tl.constexpr,
):
    """Largest weight and 1 / (sum of exponentials) of a head, or of heads (1, COLS) if MIXED."""
    # A single head stays a scalar: as a tensor it would cost a change of layout at every use.
    if not NORMALIZE:
        top, total = 0.0, 1.0
    elif MIXED:
        top = tl.load(weight_ptr + head * WIDTH).to(tl.float32)
        for tap in range(1, WIDTH):
            top = tl.maximum(top, tl.load(weight_ptr + head * WIDTH + tap).to(tl.float32))
        total = tl.zeros(head.shape, tl.float32)
        for tap in range(WIDTH):
            total += tl.exp(tl.load(weight_ptr + head * WIDTH + tap).to(tl.float32) - top)
    else:
        tap = tl.arange(0, WIDE)
        weight = tl.load(weight_ptr + head * WIDTH + tap, mask=tap < WIDTH, other=-float("inf"))
        top = tl.max(weight.to(tl.float32), axis=0)
        total = tl.sum(tl.exp(weight.to(tl.float32) - top), axis=0)
    return top, 1.0 / total


@triton.jit
def load_tap(
    weight_ptr,
    head,
    tap,
    softmax,
    random,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """One tap of a head, or of heads (1, COLS), normalised and dropped out."""
    element = head * WIDTH + tap
    value = tl.load(weight_ptr + element).to(tl.float32)
    if NORMALIZE:
        value = tl.exp(value - softmax[0]) * softmax[1]
    if DROPOUT:
        value = value * keep(element, random)
    return value


@triton.jit
def add_taps(
    sums,
    first,
    x,
    weights,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Add taps first..first + TAPS - 1 to the sums of all steps."""
    pointers, start, time, stride, padding_left, valid = x
    weight_ptr, head, softmax, random = weights
    taps = ()
    for tap in tl.static_range(TAPS):
        taps += (
            load_tap(weight_ptr, head, first + tap, softmax, random, WIDTH, NORMALIZE, DROPOUT),
        )
    for shift in tl.static_range(TAPS + STEPS - 1):
        row = load_rows(pointers, start, time, stride, first + shift - padding_left, valid)
        for step in tl.static_range(STEPS):
            if shift - step >= 0 and shift - step < TAPS:
                sums = add_to(sums, step, taps[shift - step] * row)
    return sums


@triton.jit(do_not_specialize=VARYING)
def lightconv_forward_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    batch,
    time,
    x_batch_stride,
    x_time_stride,
    padding_left,
    seed_low,
    seed_high,
    threshold,
    scale,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    MIXED: tl.constexpr,
    BLOCKS: tl.constexpr,
    COLS: tl.constexpr,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """RUNS runs of STEPS positions, COLS channels of one head, or of several if MIXED."""
    program = tl.program_id(0)
    head, channel, valid = locate_columns(program % BLOCKS, HEADS, SHARE, COLS, MIXED)
    sentence, start = locate_runs(program // BLOCKS, batch, time, WIDTH, RUNS, STEPS)
    pointers = point(x_ptr, sentence, start, channel, x_batch_stride, x_time_stride)
    softmax = softmax_of_heads(weight_ptr, head, WIDTH, WIDE, NORMALIZE, MIXED)
    x = (pointers, start, time, x_time_stride, padding_left, valid)
    weights = (weight_ptr, head, softmax, (seed_low, seed_high, threshold, scale))
    sums = (tl.zeros((RUNS, COLS), tl.float32),) * STEPS
    rest: tl.constexpr = WIDTH % TAPS
    for first in range(0, WIDTH - rest, TAPS):
        sums = add_taps(sums, first, x, weights, WIDTH, NORMALIZE, DROPOUT, TAPS, STEPS)
    if rest > 0:
        sums = add_taps(sums, WIDTH - rest, x, weights, WIDTH, NORMALIZE, DROPOUT, rest, STEPS)
    channels: tl.constexpr = HEADS * SHARE
    sentence_stride = tl.cast(time, tl.int64) * channels
    y_pointers = point(y_ptr, sentence, start, channel, sentence_stride, channels)
    store_rows(y_pointers, sums, start, time, valid, channels, STEPS)


@triton.jit
def add_gradients(
    sums,
    first,
    rows,
    grad_y,
    weights,
    partial_pointers,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    MIXED: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Add taps first..first + TAPS - 1 to the gradients of x; write this program's of the taps."""
    pointers, start, time, stride, padding_left, valid = grad_y
    weight_ptr, head, softmax, random = weights
    taps = ()
    products = ()
    for tap in tl.static_range(TAPS):
        taps += (
            load_tap(weight_ptr, head, first + tap, softmax, random, WIDTH, NORMALIZE, DROPOUT),
        )
        products += (tl.zeros(rows[0].shape, tl.float32),)
    for shift in tl.static_range(TAPS + STEPS - 1):
        # x[s] meets grad_y[s + padding_left - tap].
        after = padding_left - first - (TAPS - 1) + shift
        row = load_rows(pointers, start, time, stride, after, valid)
        for step in tl.static_range(STEPS):
            if shift - step >= 0 and shift - step < TAPS:
                sums = add_to(sums, step, taps[TAPS - 1 - shift + step] * row)
                products = add_to(products, TAPS - 1 - shift + step, rows[step] * row)
    for tap in tl.static_range(TAPS):
        if MIXED:
            gradient = tl.sum(products[tap], axis=0, keep_dims=True)
            tl.store(partial_pointers + first + tap, gradient, mask=valid)
        else:
            tl.store(partial_pointers + first + tap, tl.sum(products[tap]))
    return sums


@triton.jit(do_not_specialize=VARYING)
def lightconv_backward_kernel(
    grad_y_ptr,
    x_ptr,
    weight_ptr,
    grad_x_ptr,
    partial_ptr,
    batch,
    time,
    grad_y_batch_stride,
    grad_y_time_stride,
    x_batch_stride,
    x_time_stride,
    padding_left,
    seed_low,
    seed_high,
    threshold,
    scale,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    MIXED: tl.constexpr,
    BLOCKS: tl.constexpr,
    COLS: tl.constexpr,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """As forward; the weights' gradient goes to scratch, before dropout and softmax."""
    program = tl.program_id(0)
    block, tile = program % BLOCKS, program // BLOCKS
    head, channel, valid = locate_columns(block, HEADS, SHARE, COLS, MIXED)
    sentence, start = locate_runs(tile, batch, time, WIDTH, RUNS, STEPS)
    x_pointers = point(x_ptr, sentence, start, channel, x_batch_stride, x_time_stride)
    rows = ()
    for step in tl.static_range(STEPS):
        rows += (load_rows(x_pointers, start, time, x_time_stride, step, valid),)
    softmax = softmax_of_heads(weight_ptr, head, WIDTH, WIDE, NORMALIZE, MIXED)
    weights = (weight_ptr, head, softmax, (seed_low, seed_high, threshold, scale))
    pointers = point(grad_y_ptr, sentence, start, channel, grad_y_batch_stride, grad_y_time_stride)
    grad_y = (pointers, start, time, grad_y_time_stride, padding_left, valid)
    # Scratch (tiles, columns, K); a column is a channel when heads are mixed, else a block.
    if MIXED:
        partial = partial_ptr + (tl.cast(tile, tl.int64) * (HEADS * SHARE) + channel) * WIDTH
    else:
        partial = partial_ptr + tl.cast(program, tl.int64) * WIDTH
    sums = (tl.zeros((RUNS, COLS), tl.float32),) * STEPS
    rest: tl.constexpr = WIDTH % TAPS
    for first in range(0, WIDTH - rest, TAPS):
        sums = add_gradients(
            *(sums, first, rows, grad_y, weights, partial),
            *(WIDTH, NORMALIZE, DROPOUT, MIXED, TAPS, STEPS),
        )
    if rest > 0:
        sums = add_gradients(
            *(sums, WIDTH - rest, rows, grad_y, weights, partial),
            *(WIDTH, NORMALIZE, DROPOUT, MIXED, rest, STEPS),
        )
    channels: tl.constexpr = HEADS * SHARE
    sentence_stride = tl.cast(time, tl.int64) * channels
    grad_x_pointers = point(grad_x_ptr, sentence, start, channel, sentence_stride, channels)
    store_rows(grad_x_pointers, sums, start, time, valid, channels, STEPS)


@triton.jit(do_not_specialize=VARYING)
def lightconv_weight_kernel(
    partial_ptr,
    weight_ptr,
    grad_weight_ptr,
    tiles,
    seed_low,
    seed_high,
    threshold,
    scale,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_HEAD: tl.constexpr,
    LINES: tl.constexpr,
):
    """Add one head's shares (tiles, PER_HEAD of COLUMNS, K), then back through the softmax."""
    head = tl.program_id(0)
    tap = tl.arange(0, WIDE)[None, :]
    inside = tap < WIDTH
    sums = tl.zeros((LINES, WIDE), tl.float32)
    for first in range(0, tiles * PER_HEAD, LINES):
        line = first + tl.arange(0, LINES)[:, None]
        column = (line // PER_HEAD).to(tl.int64) * COLUMNS + head * PER_HEAD + line % PER_HEAD
        mask = (line < tiles * PER_HEAD) & inside
        sums += tl.load(partial_ptr + column * WIDTH + tap, mask=mask, other=0.0)
    gradient = tl.sum(sums, axis=0, keep_dims=True)
    element = head * WIDTH + tap
    if DROPOUT:
        gradient *= keep(element, (seed_low, seed_high, threshold, scale))
    if NORMALIZE:
        weight = tl.load(weight_ptr + element, mask=inside, other=-float("inf")).to(tl.float32)
        taps = tl.exp(weight - tl.max(weight, axis=1, keep_dims=True))
        taps /= tl.sum(taps, axis=1, keep_dims=True)
        gradient = taps * (gradient - tl.sum(taps * gradient, axis=1, keep_dims=True))
    tl.store(grad_weight_ptr + element, gradient, mask=inside)
