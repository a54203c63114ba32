"""Label-smoothed cross-entropy joined with the projection to the vocabulary, chunk by chunk."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightconv_mt.data.batching import Batch
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.products import PIECES, add_matmul_, matmul

# Logits alive at once, where (tokens, V) would not fit: more of them pack the weight less often.
CHUNK_LOGITS = 1 << 24
# On GPUs, where every chunk reads and writes the (V, C) gradient: 256 MiB in bfloat16.
GPU_CHUNK_LOGITS = 1 << 27


def chunk_rows(vocab_size: int, *, device: torch.device) -> int:
    """Rows of logits alive at once, an even number: R-Drop's pairs stay together.

    Twice a piece of `matmul`, or a multiple of that, where there are as many.
    """
    logits = CHUNK_LOGITS if device.type == "cpu" else GPU_CHUNK_LOGITS
    rows, pair = max(2, logits // vocab_size // 2 * 2), 2 * PIECES[-1]
    return rows if rows < pair else rows // pair * pair


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

    def __init__(
        self, label_smoothing: float, *, agreement: float = 0.0, backend: Backend = Backend.torch
    ) -> None:
        """Keep the settings.

        Args:
            label_smoothing: eps in [0, 1).
            agreement: alpha of R-Drop; above 0 a batch holds every sentence twice, the second
                half repeating the first, and a token counts once. See `Smoothing`.
            backend: implementation of the cross-entropy, resolved.
        """
        super().__init__()
        self.smoothing = Smoothing(label_smoothing=label_smoothing, agreement=agreement)
        self.backend = backend

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
            hidden[mask], weight, target[mask], self.smoothing, self.backend
        )
        return LossValue(loss, nll)


class Objective(nn.Module):
    """Model and loss as one module, for what wraps a module to share it among processes."""

    def __init__(self, model: Seq2SeqTransformer, loss: LabelSmoothedLoss) -> None:
        """Join them."""
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> LossValue:
        """Sums over the target tokens of a batch on the model's device."""
        hidden = self.model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
        return self.loss(hidden, self.model.output_weight, batch.tgt_out, batch.tgt_mask)


class _ProjectedLoss(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        smoothing: Smoothing,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss, nll = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
        with_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        # Here once, where autocast would for every chunk.
        kind = hidden.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        hidden, narrow_weight = hidden.to(narrow), weight.to(narrow)
        # The two predictions of a token stay together: chunks cut both halves alike.
        copies = 2 if smoothing.paired else 1
        halves, targets = hidden.unflatten(0, (copies, -1)), target.unflatten(0, (copies, -1))
        gradients = hidden_gradient.unflatten(0, (copies, -1))
        step = chunk_rows(len(weight), device=hidden.device) // copies
        for start in range(0, halves.shape[1], step):
            chunk = slice(start, start + step)
            rows = halves[:, chunk].flatten(0, 1)
            logits = matmul(rows, narrow_weight.T)
            losses = cross_entropy_(
                logits,
                targets[:, chunk].flatten(),
                smoothing,
                gradient=with_gradient,
                backend=backend,
            )
            loss += losses[0]
            nll += losses[1]
            if with_gradient:
                products = matmul(logits, narrow_weight)
                gradients[:, chunk] = products.unflatten(0, (copies, -1))
                add_matmul_(weight_gradient, logits, rows)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            hidden_gradient * upstream[0],
            weight_gradient * upstream[0],
            None,
            None,
            None,
        )


def sum_loss(
    model: Seq2SeqTransformer, batches: Iterator[Batch], loss: LabelSmoothedLoss
) -> tuple[float, float, int]:
    """Smoothed loss and negative log-likelihood, in nats, and target tokens, all summed."""
    total: Tensor = torch.zeros(2, dtype=torch.float64)
    tokens = 0
    with torch.inference_mode():
        for batch in batches:
            hidden = model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
            value = loss(hidden, model.output_weight, batch.tgt_out, batch.tgt_mask)
            total += torch.stack([value.loss, value.nll]).double().cpu()
            tokens += batch.num_tokens
    return float(total[0]), float(total[1]), tokens
