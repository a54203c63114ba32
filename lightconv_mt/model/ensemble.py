"""Several models of one vocabulary that decode as one, by the mean of their probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn

from lightconv_mt.model.decoder import DecoderState
from lightconv_mt.model.transformer import Seq2SeqTransformer


@dataclass(frozen=True)
class EnsembleState:
    """The decoder states of all models."""

    states: tuple[DecoderState, ...]

    def reorder(self, rows: Tensor) -> "EnsembleState":
        """Take the target rows `rows` (N',) int64, in that order; sources stay."""
        return EnsembleState(tuple(state.reorder(rows) for state in self.states))

    def keep(self, sentences: Tensor) -> "EnsembleState":
        """Take the sources `sentences` (B',) int64; target rows are taken by `reorder`."""
        return EnsembleState(tuple(state.keep(sentences) for state in self.states))


class Ensemble(nn.Module):
    """Has the methods of a `Seq2SeqTransformer` that a translator uses.

    Encoded sources and decoder outputs of the models stand beside each other, so that each is one
    tensor (B, length, C) with the C of all models together. Logits are the logarithm of the mean of
    the models' probabilities, and so normalised: what scores mean stays the same.
    """

    def __init__(self, models: Sequence[Seq2SeqTransformer]) -> None:
        """Join models with the same source and target vocabulary."""
        super().__init__()
        assert models, "an ensemble has one model at least"
        self.models = nn.ModuleList(models)
        self.backend = models[0].backend
        self._source_dims = [model.config.dim for model in models]
        self._target_dims = [model.config.decoder_dim or model.config.dim for model in models]

    @property
    def _members(self) -> list[Seq2SeqTransformer]:
        return [model for model in self.models if isinstance(model, Seq2SeqTransformer)]

    def forward(self, src: Tensor, src_mask: Tensor, tgt_in: Tensor, tgt_mask: Tensor) -> Tensor:
        """Decoder outputs (B, T, C) given the target; `project` turns them into logits."""
        return torch.cat([model(src, src_mask, tgt_in, tgt_mask) for model in self._members], -1)

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        """Encode src (B, S) int64 with src_mask (B, S) bool: (B, S, C)."""
        return torch.cat([model.encode(src, src_mask) for model in self._members], -1)

    def project(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., V) of decoder outputs (..., C)."""
        parts = hidden.split(self._target_dims, -1)
        return log_mean(
            [model.project(part) for model, part in zip(self._members, parts, strict=True)]
        )

    def start(self, memory: Tensor, src_mask: Tensor, beam_size: int) -> EnsembleState:
        """State before BOS, beam_size rows for each of the B encoded sources."""
        parts = memory.split(self._source_dims, -1)
        return EnsembleState(
            tuple(
                model.start(part, src_mask, beam_size)
                for model, part in zip(self._members, parts, strict=True)
            )
        )

    def decode_step(self, tokens: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """Read tokens (N, T) int64 of every row; log-probabilities (N, T, V), the next state."""
        steps = [
            model.decode_step(tokens, each)
            for model, each in zip(self._members, state.states, strict=True)
        ]
        logits = log_mean([found for found, _ in steps])
        return logits, EnsembleState(tuple(following for _, following in steps))

    def source_attention(
        self,
        memory: Tensor,
        src_mask: Tensor,
        tgt_in: Tensor,
        tgt_mask: Tensor,
        *,
        layer: int | None = None,
    ) -> Tensor:
        """Mean (B, T, S) of the models' source attention; see `Seq2SeqTransformer`."""
        parts = memory.split(self._source_dims, -1)
        attended = [
            model.source_attention(part, src_mask, tgt_in, tgt_mask, layer=layer)
            for model, part in zip(self._members, parts, strict=True)
        ]
        return torch.stack(attended).mean(0)


def log_mean(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the probabilities that several logits (..., V) give."""
    total: Tensor | None = None
    for each in logits:
        wide = torch.promote_types(each.dtype, torch.float32)
        logp = each.log_softmax(-1, dtype=wide)
        total = logp if total is None else torch.logaddexp(total, logp)
    assert total is not None
    return total - log(len(logits))
