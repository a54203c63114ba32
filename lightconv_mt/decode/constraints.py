"""What each sentence of a batch may say: lengths, forced prefixes, bans, rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.candidates import ban_repeats
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.trace import Integers

FREE = -1  # in a prefix: any token


@dataclass(frozen=True)
class Constraints:
    """Bounds of B sentences and the options that hold for all of them.

    Attributes:
        config: the options.
        ids: special ids of the target vocabulary.
        floors: (B,) fewest tokens before EOS.
        limits: (B,) most tokens before EOS; wins over floors.
        prefix: (B, P) tokens to begin with, FREE behind them.
    """

    config: DecodeConfig
    ids: SpecialIds
    floors: Integers
    limits: Integers
    prefix: Integers

    @classmethod
    def build(
        cls,
        src_lengths: Sequence[int],
        config: DecodeConfig,
        ids: SpecialIds,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> "Constraints":
        """Bounds by source lengths, EOS counted; a prefix is always allowed its length."""
        prefixes = prefixes or [()] * len(src_lengths)
        width = max(map(len, prefixes), default=0)
        rows = [[*prefix, *[FREE] * (width - len(prefix))] for prefix in prefixes]
        limits = [
            max(config.length_limit(length), len(prefix))
            for length, prefix in zip(src_lengths, prefixes, strict=True)
        ]
        return cls(
            config=config,
            ids=ids,
            floors=np.array([config.length_floor(length) for length in src_lengths], np.int64),
            limits=np.array(limits, np.int64),
            prefix=np.array(rows, np.int64).reshape(len(limits), width),
        )

    def keep(self, sentences: Integers) -> "Constraints":
        """Those of the sentences (B',)."""
        return replace(
            self,
            floors=self.floors[sentences],
            limits=self.limits[sentences],
            prefix=self.prefix[sentences],
        )

    def join(self, others: "Constraints") -> "Constraints":
        """Those of other sentences behind these."""
        width = max(self.prefix.shape[1], others.prefix.shape[1])
        prefixes = [
            np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=FREE)
            for each in (self.prefix, others.prefix)
        ]
        return replace(
            self,
            floors=np.concatenate([self.floors, others.floors]),
            limits=np.concatenate([self.limits, others.limits]),
            prefix=np.concatenate(prefixes),
        )

    def apply(self, logp: Tensor, positions: Integers, history: Integers) -> Tensor:
        """Apply all of them, in place where the type is wide enough for penalties.

        Args:
            logp: (B x beam, V) float, logits or log-probabilities of the next token.
            positions: (B,) tokens before it.
            history: (B x beam, T) those tokens, on the right, where n-grams must not repeat.

        Returns:
            (B x beam, V), -inf where nothing may be.
        """
        config, ids = self.config, self.ids
        if config.unk_penalty or config.word_reward:
            logp = logp.to(torch.promote_types(logp.dtype, torch.float32))
        beam = len(logp) // max(1, len(self.limits))
        forced = self._forced(positions)
        own = None
        if (forced != FREE).any():
            forced = forced.repeat(beam)
            (bound,) = (forced != FREE).nonzero()
            rows, words = torch.from_numpy(bound), torch.from_numpy(forced[bound])
            own = logp[rows, words]
        logp[:, ids.pad] = -inf
        if config.ban_unk:
            logp[:, ids.unk] = -inf
        elif config.unk_penalty:
            logp[:, ids.unk] -= config.unk_penalty
        if config.word_reward:
            logp += config.word_reward
            logp[:, ids.eos] -= config.word_reward
        early = (self.floors > positions) & (self.limits > positions)
        if early.all():
            logp[:, ids.eos] = -inf
        elif early.any():
            logp[torch.from_numpy(early.repeat(beam)), ids.eos] = -inf
        if config.no_repeat_ngram_size:
            ban_repeats(
                logp,
                torch.from_numpy(history).to(logp.device),
                size=config.no_repeat_ngram_size,
                pad=ids.pad,
            )
        if own is not None:  # a forced token is never banned
            logp[rows] = -inf
            logp[rows, words] = own
        return logp

    def _forced(self, positions: Integers) -> Integers:
        """The only token (B,) that may follow: EOS at the limit, that of the prefix, or FREE."""
        forced = np.full_like(self.limits, FREE)
        inside = positions < self.prefix.shape[1]
        if inside.any():
            forced[inside] = self.prefix[inside, positions[inside]]
        forced[self.limits == positions] = self.ids.eos
        return forced
