"""Label-smoothed cross-entropy of rows of logits on GPUs, its gradient written over the logits.

A program owns a row, or both rows of a pair. It reads them once, block by block, keeping the
largest logit so far and the sums of exponentials relative to it; then, if the gradient is wanted,
once more from the last block to the first. The last block is still in registers then, so a
vocabulary of one block is read once. Sums are in float32. The definition is ops/cross_entropy.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv_mt.ops.triton_table import architecture_of, choose_block
from lightconv_mt.ops.triton_tiles import check_types, empty, launch

# Values that change from call to call must not make a new kernel.
VARYING = ["half"]


@triton.jit
def load_block(row_ptr, first, vocab, BLOCK: tl.constexpr):
    """Logits (BLOCK,) in float32 from `first` on, -inf behind the vocabulary; which are in it."""
    word = first + tl.arange(0, BLOCK)
    inside = word < vocab
    return tl.load(row_ptr + word, mask=inside, other=-float("inf")).to(tl.float32), inside


@triton.jit
def load_target(row_ptr, target, vocab):
    """The target's logit; NaN, which spoils the row, when the target is no word."""
    valid = (target >= 0) & (target < vocab)
    return tl.load(row_ptr + target, mask=valid, other=float("nan")).to(tl.float32)


@triton.jit
def add_block(row, values, inside, ratio):
    """Largest logit, and sums of exponentials, of exponentials times `ratio`, and of logits."""
    highest, partition, weighted, total = row
    # Begins with a finite number, so that a block of impossible words adds zero.
    higher = tl.maximum(highest, tl.max(values, axis=0))
    exponents = tl.exp(values - higher)
    shrink = tl.exp(highest - higher)
    partition = partition * shrink + tl.sum(exponents, axis=0)
    weighted = weighted * shrink + tl.sum(exponents * ratio, axis=0)
    return higher, partition, weighted, total + tl.sum(tl.where(inside, values, 0.0), axis=0)


@triton.jit
def begin_row():
    """Sums of no logits."""
    return -3.0e38, 0.0, 0.0, 0.0


@triton.jit
def end_row(row, picked, vocab, peak, spread):
    """Logarithm of the partition function, loss and negative log-likelihood.

    The first is NaN where the target's logit is, so that the gradient of such a row is NaN too.
    """
    highest, partition, _, total = row
    log_partition = highest + tl.log(partition) + 0.0 * picked
    nll = log_partition - picked
    return log_partition, peak * nll + spread * (vocab * log_partition - total), nll


@triton.jit
def store_losses(losses_ptr, row, loss, nll, divergence):
    """Write a row's three values."""
    tl.store(losses_ptr + 3 * row, loss)
    tl.store(losses_ptr + 3 * row + 1, nll)
    tl.store(losses_ptr + 3 * row + 2, divergence)


@triton.jit
def store_block(row_ptr, first, vocab, gradient, target, peak, BLOCK: tl.constexpr):
    """Write a block of the gradient, to which the target's word adds `-peak`."""
    word = first + tl.arange(0, BLOCK)
    tl.store(row_ptr + word, gradient - tl.where(word == target, peak, 0.0), mask=word < vocab)


@triton.jit
def cross_entropy_kernel(
    logits_ptr,
    target_ptr,
    losses_ptr,
    vocab,
    peak,
    spread,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * vocab
    target = tl.load(target_ptr + row)
    picked = load_target(row_ptr, target, vocab)
    values, inside = load_block(row_ptr, 0, vocab, BLOCK)
    sums = add_block(begin_row(), values, inside, 0.0)
    for first in range(BLOCK, vocab, BLOCK):
        values, inside = load_block(row_ptr, first, vocab, BLOCK)
        sums = add_block(sums, values, inside, 0.0)
    log_partition, loss, nll = end_row(sums, picked, vocab, peak, spread)
    store_losses(losses_ptr, row, loss, nll, 0.0)
    if GRADIENT:
        # Every thread has read the target's logit before any writes over it.
        tl.debug_barrier()
        last = (vocab - 1) // BLOCK * BLOCK
        gradient = tl.exp(values - log_partition) - spread
        store_block(row_ptr, last, vocab, gradient, target, peak, BLOCK)
        for done in range(BLOCK, last + BLOCK, BLOCK):
            values, inside = load_block(row_ptr, last - done, vocab, BLOCK)
            gradient = tl.exp(values - log_partition) - spread
            store_block(row_ptr, last - done, vocab, gradient, target, peak, BLOCK)


@triton.jit
def load_pair(one_ptr, two_ptr, first, vocab, BLOCK: tl.constexpr):
    """A block of both rows and its log-ratio before normalisation, zero behind the vocabulary."""
    one, inside = load_block(one_ptr, first, vocab, BLOCK)
    two, _ = load_block(two_ptr, first, vocab, BLOCK)
    return one, two, tl.where(inside, one - two, 0.0), inside


@triton.jit
def store_pair(
    rows, first, vocab, block, log_partitions, apart, targets, loss, BLOCK: tl.constexpr
):
    """Write a block of both gradients: `_torch` of ops/cross_entropy.py, one word after another."""
    one, two, ratio, _ = block
    peak, spread, scale, agreement = loss
    p, q = tl.exp(one - log_partitions[0]), tl.exp(two - log_partitions[1])
    log_ratio = ratio - log_partitions[0] + log_partitions[1]
    pull = p * (log_ratio - apart[0]) + p - q
    push = q - p - q * (log_ratio + apart[1])
    gradient = scale * (p - spread) + agreement * pull
    store_block(rows[0], first, vocab, gradient, targets[0], scale * peak, BLOCK)
    gradient = scale * (q - spread) + agreement * push
    store_block(rows[1], first, vocab, gradient, targets[1], scale * peak, BLOCK)


@triton.jit(do_not_specialize=VARYING)
def paired_cross_entropy_kernel(
    logits_ptr,
    target_ptr,
    losses_ptr,
    half,
    vocab,
    peak,
    spread,
    scale,
    agreement,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows r and r + half, p and q: two predictions of one target."""
    row = tl.program_id(0).to(tl.int64)
    one_ptr, two_ptr = logits_ptr + row * vocab, logits_ptr + (row + half) * vocab
    targets = tl.load(target_ptr + row), tl.load(target_ptr + row + half)
    picked = load_target(one_ptr, targets[0], vocab), load_target(two_ptr, targets[1], vocab)
    block = load_pair(one_ptr, two_ptr, 0, vocab, BLOCK)
    p_sums = add_block(begin_row(), block[0], block[3], block[2])
    q_sums = add_block(begin_row(), block[1], block[3], -block[2])
    for first in range(BLOCK, vocab, BLOCK):
        block = load_pair(one_ptr, two_ptr, first, vocab, BLOCK)
        p_sums = add_block(p_sums, block[0], block[3], block[2])
        q_sums = add_block(q_sums, block[1], block[3], -block[2])
    p_log, p_loss, p_nll = end_row(p_sums, picked[0], vocab, peak, spread)
    q_log, q_loss, q_nll = end_row(q_sums, picked[1], vocab, peak, spread)
    # KL(p | q) = E_p[log p - log q], KL(q | p) likewise.
    p_apart = p_sums[2] / p_sums[1] - p_log + q_log
    q_apart = q_sums[2] / q_sums[1] + p_log - q_log
    store_losses(losses_ptr, row, p_loss, p_nll, p_apart)
    store_losses(losses_ptr, row + half, q_loss, q_nll, q_apart)
    if GRADIENT:
        # Every thread has read the targets' logits before any writes over them.
        tl.debug_barrier()
        rows, logs, apart = (one_ptr, two_ptr), (p_log, q_log), (p_apart, q_apart)
        loss = (peak, spread, scale, agreement)
        last = (vocab - 1) // BLOCK * BLOCK
        store_pair(rows, last, vocab, block, logs, apart, targets, loss, BLOCK)
        for done in range(BLOCK, last + BLOCK, BLOCK):
            block = load_pair(one_ptr, two_ptr, last - done, vocab, BLOCK)
            store_pair(rows, last - done, vocab, block, logs, apart, targets, loss, BLOCK)


def cross_entropy_triton_(
    logits: Tensor,
    target: Tensor,
    *,
    peak: float,
    spread: float,
    agreement: float,
    paired: bool,
    gradient: bool,
) -> Tensor:
    """Losses of rows of logits, which become their gradient if that is wanted.

    Args:
        logits: (R, V) of any float type but float64, contiguous.
        target: (R,) int64; a row whose target is no word has NaN for loss and gradient.
        peak: weight of a row's negative log-likelihood.
        spread: weight of minus the log-probability of every word.
        agreement: weight of a row's divergence in the gradient.
        paired: whether rows r and r + R / 2 are two predictions of one target; each counts half.
        gradient: whether to write it.

    Returns:
        (R, 3) float32: smoothed loss, negative log-likelihood, divergence from the other row.
    """
    check_types(logits)
    rows, vocab = logits.shape
    name = "paired_cross_entropy" if paired else "cross_entropy"
    block = choose_block(name, elements=vocab, architecture=architecture_of(logits.device))
    losses = empty((rows, 3), dtype=torch.float32, device=logits.device)
    constants = {"GRADIENT": gradient, "BLOCK": block.elements}
    if paired:
        launch(
            *(paired_cross_entropy_kernel, rows // 2, logits),
            *(logits, target, losses, rows // 2, vocab, peak, spread, 0.5, agreement),
            **constants,
            warps=block.warps,
        )
    else:
        launch(
            *(cross_entropy_kernel, rows, logits),
            *(logits, target, losses, vocab, peak, spread),
            **constants,
            warps=block.warps,
        )
    return losses
