"""Label-smoothed cross-entropy joined with the projection to the vocabulary, chunk by chunk."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Rows of logits alive at once: (512, V) stays in cache on CPUs, where (tokens, V) would go to
# memory and back.
CHUNK_ROWS = 512


class LossValue(NamedTuple):
    """Sums over target tokens.

    Attributes:
        loss: label-smoothed cross-entropy in nats, scalar float32 with gradient.
        nll: plain negative log-likelihood in nats, scalar float32 without gradient.
    """

    loss: Tensor
    nll: Tensor


class LabelSmoothedLoss(nn.Module):
    """`(1 - eps - eps_i) * nll + eps_i * sum_v(-log p_v)`, `eps_i = eps / (V - 1)`, summed.

    As in published fairseq models: reference values are compared in tests.
    """

    def __init__(self, label_smoothing: float) -> None:
        """Keep eps = label_smoothing, in [0, 1)."""
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, hidden: Tensor, weight: Tensor, target: Tensor, mask: Tensor) -> LossValue:
        """Project to the vocabulary and sum the loss of real tokens; logits are never stored whole.

        Args:
            hidden: (B, T, C) decoder output.
            weight: (V, C) output projection.
            target: (B, T) int64.
            mask: (B, T) bool, True = real token.

        Returns:
            Both sums.
        """
        loss, nll = _ProjectedLoss.apply(  # type: ignore[no-untyped-call]
            hidden[mask], weight, target[mask], self.label_smoothing
        )
        return LossValue(loss, nll)


class _ProjectedLoss(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        vocab_size = weight.shape[0]
        spread = smoothing / (vocab_size - 1)
        peak = 1.0 - smoothing - spread
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss, nll = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
        with_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        narrow_weight = weight.to(hidden.dtype)
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = hidden[start : start + CHUNK_ROWS]
            picked = target[start : start + CHUNK_ROWS, None]
            logits = (rows @ narrow_weight.T).to(wide)
            logits -= logits.amax(dim=-1, keepdim=True)
            picked_sum, logit_sum = logits.gather(1, picked).sum(), logits.sum()
            exponents = logits.exp_()
            partition = exponents.sum(dim=-1, keepdim=True)
            log_partition = partition.log().sum()
            nll += log_partition - picked_sum
            loss += peak * (log_partition - picked_sum) + spread * (
                vocab_size * log_partition - logit_sum
            )
            if with_gradient:
                # d loss / d logits = softmax - spread - peak * onehot
                gradient = exponents.div_(partition).sub_(spread)
                gradient.scatter_add_(1, picked, gradient.new_full((1, 1), -peak).expand_as(picked))
                narrow_gradient = gradient.to(hidden.dtype)
                hidden_gradient[start : start + CHUNK_ROWS] = narrow_gradient @ narrow_weight
                weight_gradient += narrow_gradient.T @ rows
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * upstream[0], weight_gradient * upstream[0], None, None
