"""Several models of one vocabulary that decode as one, by the mean of their probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from lightconv_mt.model.search_model import SearchModel
from lightconv_mt.model.token_lists import TokenLists
from lightconv_mt.model.transformer import Seq2SeqTransformer


@dataclass(frozen=True)
class EnsembleState:
    """The decoder states of all models; what is done to it is done to each."""

    states: tuple[Any, ...]

    def reorder(self, rows: Tensor) -> "EnsembleState":
        """Take the target rows `rows` (N',) int64, in that order; sources stay."""
        return self._each(lambda state: state.reorder(rows))

    def keep(self, sentences: Tensor) -> "EnsembleState":
        """Take the sources `sentences` (B',) int64; target rows are taken by `reorder`."""
        return self._each(lambda state: state.keep(sentences))

    def join(self, others: "EnsembleState") -> "EnsembleState":
        """Put sentences and rows of others behind its own, if the states of the models can."""
        pairs = zip(self.states, others.states, strict=True)
        return EnsembleState(tuple(state.join(other) for state, other in pairs))

    def _each(self, change: Callable[[Any], Any]) -> "EnsembleState":
        return EnsembleState(tuple(map(change, self.states)))


class JointDecoder:
    """Models that search together.

    Logits are the logarithm of the mean of the probabilities, and so normalised: what scores mean
    stays the same.
    """

    def __init__(self, models: Sequence[SearchModel]) -> None:
        """Join models with the same source and target vocabulary."""
        self.models = models

    def begin(
        self,
        src: Tensor,
        src_mask: Tensor,
        beam_size: int,
        *,
        groups: int = 1,
        lists: TokenLists | None = None,
    ) -> EnsembleState:
        """State before BOS, see `SearchModel`."""
        states = [
            each.begin(src, src_mask, beam_size, groups=groups, lists=lists) for each in self.models
        ]
        return EnsembleState(tuple(states))

    def decode_step(self, tokens: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """Read tokens (N, T) int64 of every row; log-probabilities (N, T, V), the next state."""
        pairs = zip(self.models, state.states, strict=True)
        steps = [model.decode_step(tokens, each) for model, each in pairs]
        return log_mean([found for found, _ in steps]), EnsembleState(
            tuple(following for _, following in steps)
        )


class Ensemble(nn.Module):
    """Has the methods of a `Seq2SeqTransformer` that a translator uses beside searches.

    Encoded sources stand beside each other in one tensor (B, S, C), with the C of all encoders
    together. What searches is a `JointDecoder`.
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
    def members(self) -> list[Seq2SeqTransformer]:
        """The models."""
        return [model for model in self.models if isinstance(model, Seq2SeqTransformer)]

    def forward(self, src: Tensor, src_mask: Tensor, tgt_in: Tensor, tgt_mask: Tensor) -> Tensor:
        """Outputs (B, T, C) of all decoders given the target; `project` turns them into logits."""
        return torch.cat([model(src, src_mask, tgt_in, tgt_mask) for model in self.members], -1)

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        """Encode src (B, S) int64 with src_mask (B, S) bool: (B, S, C)."""
        return torch.cat([model.encode(src, src_mask) for model in self.members], -1)

    def project(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., V) of decoder outputs (..., C)."""
        parts = hidden.split(self._target_dims, -1)
        return log_mean(
            [model.project(part) for model, part in zip(self.members, parts, strict=True)]
        )

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
            for model, part in zip(self.members, parts, strict=True)
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
