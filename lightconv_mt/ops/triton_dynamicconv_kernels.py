"""DynamicConv's kernels in Triton: softmax, weight dropout and convolution in one; its gradients.

Forward reads x and the weights once and writes y. Backward keeps nothing from forward: a first
kernel reads the weights and writes log(sum of exponentials) of every (position, head) to scratch;
the second reads x, the gradient of y and the weights, and writes both gradients. Rows between two
programs are read by both. No atomics.
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
def load_weights(weight_ptr, row, mask, first, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """CHUNK raw weights of rows (RUNS,) from tap `first` on, -inf behind the last: float32."""
    tap = first + tl.arange(0, CHUNK)[None, :]
    weight = tl.load(
        weight_ptr + row[:, None] * WIDTH + tap, mask=mask[:, None] & (tap < WIDTH), other=0.0
    )
    return tl.where(tap < WIDTH, weight.to(tl.float32), -float("inf"))


@triton.jit
def softmax_of_steps(
    weight_ptr,
    line,
    start,
    time,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Largest weight and 1 / (sum of exponentials) of every run (RUNS,), for each step."""
    # As many taps at once as threads share a row of x: no change of layout between the two.
    tops = ()
    totals = ()
    for step in tl.static_range(STEPS):
        top = tl.full((line.shape[0], CHUNK), -float("inf"), tl.float32)
        for first in range(0, WIDTH, CHUNK):
            rows = (weight_ptr, line + step * HEADS, start + step < time)
            top = tl.maximum(top, load_weights(*rows, first, WIDTH, CHUNK))
        tops += (tl.max(top, axis=1),)
    for step in tl.static_range(STEPS):
        total = tl.zeros((line.shape[0], CHUNK), tl.float32)
        for first in range(0, WIDTH, CHUNK):
            rows = (weight_ptr, line + step * HEADS, start + step < time)
            weight = load_weights(*rows, first, WIDTH, CHUNK)
            total += tl.exp(weight - tops[step][:, None])
        totals += (1.0 / tl.sum(total, axis=1),)
    return tops, totals


@triton.jit
def add_taps(
    sums,
    first,
    x,
    weights,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Add taps first..first + TAPS - 1 to the sums of all steps."""
    pointers, start, time, stride, padding_left, valid = x
    weight_ptr, line, softmax, random = weights
    for shift in tl.static_range(TAPS + STEPS - 1):
        row = load_rows(pointers, start, time, stride, first + shift - padding_left, valid)
        for step in tl.static_range(STEPS):
            if shift - step >= 0 and shift - step < TAPS:
                element = (line + step * HEADS) * WIDTH + (first + shift - step)
                inside = start + step < time
                tap = tl.load(weight_ptr + element, mask=inside, other=0.0).to(tl.float32)
                if NORMALIZE:
                    tap = tl.exp(tap - softmax[0][step]) * softmax[1][step]
                if DROPOUT:
                    tap *= keep(element, random)
                sums = add_to(sums, step, tap[:, None] * row)
    return sums


@triton.jit(do_not_specialize=VARYING)
def dynamicconv_forward_kernel(
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
    CHUNK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    PARTS: tl.constexpr,
    COLS: tl.constexpr,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """All channels of one head, PARTS blocks of them."""
    program = tl.program_id(0)
    head = program % HEADS
    sentence, start = locate_runs(program // HEADS, batch, time, WIDTH, RUNS, STEPS)
    line = (sentence * time + start) * HEADS + head
    softmax = ()
    if NORMALIZE:
        softmax = softmax_of_steps(weight_ptr, line, start, time, WIDTH, HEADS, CHUNK, STEPS)
    weights = (weight_ptr, line, softmax, (seed_low, seed_high, threshold, scale))
    rest: tl.constexpr = WIDTH % TAPS
    channels: tl.constexpr = HEADS * SHARE
    for part in range(PARTS):
        _, channel, valid = locate_columns(head * PARTS + part, HEADS, SHARE, COLS, False)
        pointers = point(x_ptr, sentence, start, channel, x_batch_stride, x_time_stride)
        x = (pointers, start, time, x_time_stride, padding_left, valid)
        sums = (tl.zeros((RUNS, COLS), tl.float32),) * STEPS
        for first in range(0, WIDTH - rest, TAPS):
            sums = add_taps(sums, first, x, weights, WIDTH, HEADS, NORMALIZE, DROPOUT, TAPS, STEPS)
        if rest > 0:
            sums = add_taps(
                *(sums, WIDTH - rest, x, weights, WIDTH, HEADS, NORMALIZE, DROPOUT, rest, STEPS)
            )
        sentence_stride = tl.cast(time, tl.int64) * channels
        y_pointers = point(y_ptr, sentence, start, channel, sentence_stride, channels)
        store_rows(y_pointers, sums, start, time, valid, channels, STEPS)


@triton.jit(do_not_specialize=VARYING)
def dynamicconv_normalizer_kernel(
    weight_ptr, normalizer_ptr, lines, WIDTH: tl.constexpr, WIDE: tl.constexpr, LINES: tl.constexpr
):
    """Log of the summed exponentials of each of `lines` rows of K weights."""
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    rows = load_weights(weight_ptr, line, line < lines, 0, WIDTH, WIDE)
    top = tl.max(rows, axis=1)
    total = tl.sum(tl.exp(rows - top[:, None]), axis=1)
    tl.store(normalizer_ptr + line, top + tl.log(total), mask=line < lines)


@triton.jit
def add_weight_gradients(
    gradients,
    first,
    grad_y,
    x,
    WIDE: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Put the gradients of taps first..first + TAPS - 1 in their columns of (RUNS, WIDE)."""
    pointers, start, time, stride, padding_left, valid = x
    column = tl.arange(0, WIDE)[None, :]
    for shift in tl.static_range(TAPS + STEPS - 1):
        row = load_rows(pointers, start, time, stride, first + shift - padding_left, valid)
        for step in tl.static_range(STEPS):
            if shift - step >= 0 and shift - step < TAPS:
                product = tl.sum(grad_y[step] * row, axis=1)[:, None]
                here = column == first + shift - step
                gradients = add_to(gradients, step, tl.where(here, product, 0.0))
    return gradients


@triton.jit
def add_input_gradients(
    sums,
    first,
    grad_y,
    weights,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DROPOUT: tl.constexpr,
    TAPS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Add what taps first..first + TAPS - 1 carry back to x."""
    pointers, start, time, stride, padding_left, valid = grad_y
    weight_ptr, normalizer_ptr, line, random = weights
    for shift in tl.static_range(TAPS + STEPS - 1):
        # x[s] meets grad_y[s + padding_left - tap], and the weights of that position.
        after = padding_left - first - (TAPS - 1) + shift
        row = load_rows(pointers, start, time, stride, after, valid)
        inside = (start + after >= 0) & (start + after < time)
        there = line + after * HEADS
        if NORMALIZE:
            normalizer = tl.load(normalizer_ptr + there, mask=inside, other=0.0)
        for step in tl.static_range(STEPS):
            if shift - step >= 0 and shift - step < TAPS:
                element = there * WIDTH + (first + TAPS - 1 - shift + step)
                tap = tl.load(weight_ptr + element, mask=inside, other=0.0).to(tl.float32)
                if NORMALIZE:
                    tap = tl.exp(tap - normalizer)
                if DROPOUT:
                    tap *= keep(element, random)
                sums = add_to(sums, step, tap[:, None] * row)
    return sums


@triton.jit(do_not_specialize=VARYING)
def dynamicconv_backward_kernel(
    grad_y_ptr,
    x_ptr,
    weight_ptr,
    normalizer_ptr,
    grad_x_ptr,
    grad_weight_ptr,
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
    PARTS: tl.constexpr,
    COLS: tl.constexpr,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """All channels of one head, PARTS blocks of them."""
    program = tl.program_id(0)
    head = program % HEADS
    sentence, start = locate_runs(program // HEADS, batch, time, WIDTH, RUNS, STEPS)
    line = (sentence * time + start) * HEADS + head
    random = (seed_low, seed_high, threshold, scale)
    weights = (weight_ptr, normalizer_ptr, line, random)
    rest: tl.constexpr = WIDTH % TAPS
    gradients = (tl.zeros((RUNS, WIDE), tl.float32),) * STEPS
    for part in range(PARTS):
        _, channel, valid = locate_columns(head * PARTS + part, HEADS, SHARE, COLS, False)
        grad_y_pointers = point(
            grad_y_ptr, sentence, start, channel, grad_y_batch_stride, grad_y_time_stride
        )
        x_pointers = point(x_ptr, sentence, start, channel, x_batch_stride, x_time_stride)
        grad_y = (grad_y_pointers, start, time, grad_y_time_stride, padding_left, valid)
        x = (x_pointers, start, time, x_time_stride, padding_left, valid)
        own = ()
        for step in tl.static_range(STEPS):
            own += (load_rows(grad_y_pointers, start, time, grad_y_time_stride, step, valid),)
        for first in range(0, WIDTH - rest, TAPS):
            gradients = add_weight_gradients(gradients, first, own, x, WIDE, TAPS, STEPS)
        if rest > 0:
            gradients = add_weight_gradients(gradients, WIDTH - rest, own, x, WIDE, rest, STEPS)
        sums = (tl.zeros((RUNS, COLS), tl.float32),) * STEPS
        for first in range(0, WIDTH - rest, TAPS):
            sums = add_input_gradients(
                *(sums, first, grad_y, weights, WIDTH, HEADS, NORMALIZE, DROPOUT, TAPS, STEPS)
            )
        if rest > 0:
            sums = add_input_gradients(
                *(sums, WIDTH - rest, grad_y, weights),
                *(WIDTH, HEADS, NORMALIZE, DROPOUT, rest, STEPS),
            )
        channels: tl.constexpr = HEADS * SHARE
        sentence_stride = tl.cast(time, tl.int64) * channels
        grad_x_pointers = point(grad_x_ptr, sentence, start, channel, sentence_stride, channels)
        store_rows(grad_x_pointers, sums, start, time, valid, channels, STEPS)
    tap = tl.arange(0, WIDE)[None, :]
    for step in tl.static_range(STEPS):
        inside = start + step < time
        row = line + step * HEADS
        gradient = gradients[step]
        if DROPOUT:
            gradient *= keep(row[:, None] * WIDTH + tap, random)
        if NORMALIZE:
            normalizer = tl.load(normalizer_ptr + row, mask=inside, other=0.0)
            rows = load_weights(weight_ptr, row, inside, 0, WIDTH, WIDE)
            taps = tl.exp(rows - normalizer[:, None])
            gradient = taps * (gradient - tl.sum(taps * gradient, axis=1, keep_dims=True))
        written = inside[:, None] & (tap < WIDTH)
        tl.store(grad_weight_ptr + row[:, None] * WIDTH + tap, gradient, mask=written)
