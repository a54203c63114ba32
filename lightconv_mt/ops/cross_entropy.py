"""Label-smoothed cross-entropy of rows of logits, alone or in pairs that shall agree."""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.library import enough_memory, load_library
from lightconv_mt.ops.native import KERNEL_TYPES

_CALL = struct.Struct("=3Q6q4d")  # `Call` of csrc/cross_entropy.cpp


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What a row of logits is held against, and how two rows of one target are drawn together.

    Attributes:
        label_smoothing: eps in [0, 1).
        agreement: alpha of R-Drop (Liang et al., 2021, equation 4), all of it halved: rows r and
            r + R/2 are two predictions, p and q, of one target, and their loss is
            `1/2 (loss_p + loss_q + alpha/2 (KL(p | q) + KL(q | p)))`. 0: rows stand alone.
    """

    label_smoothing: float
    agreement: float = 0.0

    @property
    def paired(self) -> bool:
        """Whether rows come in pairs."""
        return self.agreement > 0.0

    @property
    def scale(self) -> float:
        """Weight of a row's own loss."""
        return 0.5 if self.paired else 1.0

    def spread(self, vocab_size: int) -> float:
        """Weight of every word: eps / (V - 1), as in published fairseq models; of a sole word 0."""
        return self.label_smoothing / (vocab_size - 1) if vocab_size > 1 else 0.0

    def peak(self, vocab_size: int) -> float:
        """Weight of the target beyond its spread."""
        if vocab_size == 1:
            return 1.0
        return 1.0 - self.label_smoothing - self.spread(vocab_size)


def cross_entropy_(
    logits: Tensor, target: Tensor, smoothing: Smoothing, *, gradient: bool, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Loss of rows of logits; overwrites the logits, by their gradient if it is wanted.

    A row's loss is `peak * nll + spread * sum_v(-log p_v)`, see `Smoothing`.

    Args:
        logits: (R, V) float, contiguous.
        target: (R,) int64 in 0..V-1.
        smoothing: the loss.
        gradient: whether the logits become the gradient of the loss.
        backend: `native` for the C++ kernel, `triton` for that of GPUs, any other for plain torch.

    Returns:
        The loss and the negative log-likelihood, both summed over rows (a pair counts once), in
        nats; scalars in float32, or float64 for float64 logits.

    Raises:
        IndexError: when a target is no word. On a GPU that is not known until the next wait for
            it: `triton` makes the losses and the row's gradient NaN instead.
        ConfigError: when `triton` is given float64.
    """
    rows, vocab_size = logits.shape
    if backend is Backend.native:
        losses = torch.empty(rows, 3, dtype=torch.float64)
        call = _CALL.pack(
            logits.data_ptr(),
            target.data_ptr(),
            losses.data_ptr(),
            rows,
            vocab_size,
            smoothing.paired,
            gradient,
            torch.get_num_threads(),
            KERNEL_TYPES[logits.dtype],
            smoothing.scale,
            smoothing.peak(vocab_size),
            smoothing.spread(vocab_size),
            smoothing.agreement / 4,
        )
        code = load_library().lcmt_cross_entropy(call)
        if enough_memory(code, "cross-entropy", logits.shape):
            raise IndexError(f"a target is not in 0..{vocab_size - 1}, the rows of the vocabulary")
        loss, nll, divergence = losses.sum(0).unbind()
    elif backend is Backend.triton:
        from lightconv_mt.ops.triton_cross_entropy import cross_entropy_triton_

        losses = cross_entropy_triton_(
            logits,
            target,
            peak=smoothing.peak(vocab_size),
            spread=smoothing.spread(vocab_size),
            agreement=smoothing.agreement / 4,
            paired=smoothing.paired,
            gradient=gradient,
        )
        loss, nll, divergence = losses.sum(0, dtype=torch.float64).unbind()
    else:
        loss, nll, divergence = _torch(logits, target, smoothing, gradient=gradient)
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = smoothing.scale * loss + smoothing.agreement / 4 * divergence
    return total.to(wide), (smoothing.scale * nll).to(wide)


def _torch(
    logits: Tensor, target: Tensor, smoothing: Smoothing, *, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of loss, likelihood and divergence over rows, in plain torch."""
    vocab_size = logits.shape[1]
    spread, peak = smoothing.spread(vocab_size), smoothing.peak(vocab_size)
    logp = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    p = logp.exp()
    nll = -logp.gather(1, target[:, None]).sum()
    loss = peak * nll - spread * logp.sum()
    slope = smoothing.scale * (p - spread)
    picked = slope.new_full((1, 1), -smoothing.scale * peak).expand(len(target), 1)
    slope.scatter_add_(1, target[:, None], picked)
    divergence = torch.zeros_like(nll)
    if smoothing.paired:
        log_ratio = logp - logp.roll(len(logp) // 2, 0)
        apart = (p * log_ratio).sum(1, keepdim=True)
        divergence = apart.sum()
        pull = p * (log_ratio - apart) + p - p.roll(len(p) // 2, 0)
        slope += smoothing.agreement / 4 * pull
    if gradient:
        logits.copy_(slope)
    return loss, nll, divergence
