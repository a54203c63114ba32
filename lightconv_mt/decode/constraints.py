"""What each sentence of a batch may say: lengths, forced prefixes, bans, rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.candidates import ban_repeats
from lightconv_mt.decode.config import DecodeConfig

FREE = -1  # in a prefix: any token


@dataclass(frozen=True)
class Constraints:
    """Bounds of B sentences and the options that hold for all of them.

    Attributes:
        config: the options.
        ids: special ids of the target vocabulary.
        floors: (B,) int64, fewest tokens before EOS.
        limits: (B,) int64, most tokens before EOS; wins over floors.
        prefix: (B, P) int64, tokens to begin with, FREE behind them.
    """

    config: DecodeConfig
    ids: SpecialIds
    floors: Tensor
    limits: Tensor
    prefix: Tensor

    @classmethod
    def build(
        cls,
        src_lengths: Tensor,
        config: DecodeConfig,
        ids: SpecialIds,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> "Constraints":
        """Bounds by source lengths (B,), EOS counted; a prefix is always allowed its length."""
        prefixes = prefixes or [()] * len(src_lengths)
        width = max(map(len, prefixes), default=0)
        rows = [[*prefix, *[FREE] * (width - len(prefix))] for prefix in prefixes]
        lengths = src_lengths.tolist()
        limits = [
            max(config.length_limit(length), len(prefix))
            for length, prefix in zip(lengths, prefixes, strict=True)
        ]
        return cls(
            config=config,
            ids=ids,
            floors=src_lengths.new_tensor([config.length_floor(length) for length in lengths]),
            limits=src_lengths.new_tensor(limits),
            prefix=src_lengths.new_tensor(rows).view(len(lengths), width),
        )

    def keep(self, sentences: Tensor) -> "Constraints":
        """Those of the sentences (B',) int64."""
        return replace(
            self,
            floors=self.floors[sentences],
            limits=self.limits[sentences],
            prefix=self.prefix[sentences],
        )

    def apply(self, logp: Tensor, position: int, history: Tensor) -> Tensor:
        """Apply all of them, in place where the type is wide enough for penalties.

        Args:
            logp: (B x beam, V) float, logits or log-probabilities of the token after `position`
                others.
            position: tokens before it.
            history: (B x beam, position) int64, those tokens, where n-grams must not repeat.

        Returns:
            (B x beam, V), -inf where nothing may be.
        """
        config, ids = self.config, self.ids
        if config.unk_penalty or config.word_reward:
            logp = logp.to(torch.promote_types(logp.dtype, torch.float32))
        beam = len(logp) // max(1, len(self.limits))
        forced = self._forced(position).repeat_interleave(beam)
        own = logp.gather(1, forced.clamp(min=0)[:, None])
        logp[:, ids.pad] = -inf
        if config.ban_unk:
            logp[:, ids.unk] = -inf
        elif config.unk_penalty:
            logp[:, ids.unk] -= config.unk_penalty
        if config.word_reward:
            logp += config.word_reward
            logp[:, ids.eos] -= config.word_reward
        early = (self.floors > position) & (self.limits > position)
        if bool(early.any()):
            logp[:, ids.eos].masked_fill_(early.repeat_interleave(beam), -inf)
        if config.no_repeat_ngram_size:
            ban_repeats(logp, history, size=config.no_repeat_ngram_size, pad=ids.pad)
        rows = (forced != FREE).nonzero().squeeze(1)
        if len(rows):  # a forced token is never banned
            logp[rows] = -inf
            logp[rows, forced[rows]] = own[rows, 0]
        return logp

    def _forced(self, position: int) -> Tensor:
        """The only token (B,) after `position` others: EOS at the limit, the prefix, or FREE."""
        forced = torch.full_like(self.limits, FREE)
        if position < self.prefix.shape[1]:
            forced = self.prefix[:, position]
        return forced.masked_fill(self.limits == position, self.ids.eos)
