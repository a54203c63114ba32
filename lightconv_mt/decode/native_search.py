"""Beam search in C++, many steps a call; `decode/beam_search.py` is its definition."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import Entering
from lightconv_mt.decode.config import DecodeConfig, length_penalty
from lightconv_mt.decode.constraints import Constraints
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.model.native_decoder import NativeDecoder, NativeState
from lightconv_mt.ops.search_steps import (
    DONE,
    ENDING_WORDS,
    LINK_WORDS,
    SENTENCE_WORDS,
    Rules,
    read_search,
    search_steps,
)


def has_options(config: DecodeConfig) -> bool:
    """Whether a search is more than C++ has: samples, groups, or n-grams that must not repeat."""
    return config.sampling or config.beam_groups > 1 or config.no_repeat_ngram_size > 0


def native_search(
    decoder: NativeDecoder,
    entering: Iterable[Entering[NativeState]],
    *,
    ids: SpecialIds,
    config: DecodeConfig,
    max_sentences: int,
    max_source_tokens: int,
) -> list[list[Hypothesis]]:
    """Find what `beam_search` finds; arguments as there, for all sentences enter.

    Args:
        decoder: whose steps are made.
        entering: the sentences.
        ids: special ids of the target vocabulary.
        config: the search, without what `has_options` names.
        max_sentences: that the batch has room for.
        max_source_tokens: that it has room for, EOS included.
    """
    assert not has_options(config)
    queue = iter(entering)
    fresh = next(queue, None)
    batch: _Batch | None = None
    parts: list[_Part] = []
    rules = Rules(
        penalties=torch.empty(0, dtype=torch.float64),
        unk_penalty=config.unk_penalty,
        word_reward=config.word_reward,
        vocab_size=decoder.vocab_size,
        pad=ids.pad,
        eos=ids.eos,
        unk=ids.unk,
        ban_unk=config.ban_unk,
        early_stop=config.early_stop,
    )
    while True:
        while fresh is not None and (
            batch is None or batch.has_room(fresh, max_sentences, max_source_tokens)
        ):
            parts.append(_Part.build(fresh, config, ids))
            entered = _Batch.build(fresh.start(), parts[-1], config, ids)
            batch = entered if batch is None else batch.join(entered)
            if parts[-1].room + 3 > len(rules.penalties):
                lengths = range(1, parts[-1].room + 3)
                penalties = [1.0, *(length_penalty(length, config) for length in lengths)]
                rules = replace(rules, penalties=torch.tensor(penalties, dtype=torch.float64))
            fresh = next(queue, None)
        if batch is None:
            return [found for part in parts for found in part.read(config, ids.eos)]
        few = (-1, -1)
        if fresh is not None:
            few = (
                max_sentences - len(fresh.src_lengths),
                max_source_tokens - int(fresh.src_lengths.sum()),
            )
        batch = batch.advance(decoder, rules, few)
        for part in parts:
            if part.found is None and part.is_done:
                part.read(config, ids.eos)


@dataclass
class _Part:
    """Sentences that entered together, and what is noted of them until they are read.

    Attributes:
        words: (B, SENTENCE_WORDS) int64.
        notes: what the words point to.
        room: the most tokens of a hypothesis, without EOS.
        found: what was read.
    """

    words: Tensor
    notes: tuple[Tensor, ...]
    room: int
    found: list[list[Hypothesis]] | None = None

    @classmethod
    def build(cls, fresh: Entering[NativeState], config: DecodeConfig, ids: SpecialIds) -> "_Part":
        """Before BOS."""
        bounds = Constraints.build(fresh.src_lengths.tolist(), config, ids, fresh.prefixes)
        (count, width), room = bounds.prefix.shape, int(bounds.limits.max())
        beam = config.beam_size
        links = torch.empty(count, room, beam, LINK_WORDS, dtype=torch.int64)
        endings = torch.empty(count, beam, ENDING_WORDS, dtype=torch.int64)
        prefix = torch.from_numpy(bounds.prefix)
        starts = [each.data_ptr() for each in (links, endings, prefix)]
        strides = [8 * (each[0].numel()) for each in (links, endings, prefix)]
        words = torch.tensor(
            [
                [
                    *(start + row * stride for start, stride in zip(starts, strides, strict=True)),
                    width,
                    floor,
                    limit,
                    0,
                    0,
                ]
                for row, (floor, limit) in enumerate(
                    zip(bounds.floors.tolist(), bounds.limits.tolist(), strict=True)
                )
            ]
        )
        assert words.shape[1] == SENTENCE_WORDS
        return cls(words, (links, endings, prefix), room)

    @property
    def addresses(self) -> Tensor:
        """Of each sentence's words, (B,) int64."""
        start, stride = self.words.data_ptr(), 8 * SENTENCE_WORDS
        return torch.arange(start, start + stride * len(self.words), stride)

    @property
    def is_done(self) -> bool:
        """Whether no sentence goes on."""
        return bool(self.words[:, DONE].all())

    def read(self, config: DecodeConfig, eos: int) -> list[list[Hypothesis]]:
        """The config.nbest best of each sentence; what was noted is forgotten."""
        if self.found is not None:
            return self.found
        read = read_search(
            self.words, beam=config.beam_size, nbest=config.nbest, room=self.room + 1, eos=eos
        )
        tokens, token_scores, lengths, scores = (each.numpy() for each in read)
        self.found = [
            [
                Hypothesis(
                    tokens=tuple(tokens[row, n, :length].tolist()),
                    score=score,
                    token_scores=tuple(token_scores[row, n, :length].tolist()),
                )
                for n, (length, score) in enumerate(zip(*both, strict=True))
                if length
            ]
            for row, both in enumerate(zip(lengths.tolist(), scores.tolist(), strict=True))
        ]
        self.notes = ()
        return self.found


@dataclass(frozen=True)
class _Batch:
    """The sentences a search is at: B of them, of N = B x beam rows.

    Attributes:
        state: the decoder's.
        tokens: (N,) int64, what is read next.
        totals: (B, beam) float64, log-probability of each live hypothesis, -inf for none.
        sentences: (B,) int64, addresses of the words of each.
    """

    state: NativeState
    tokens: Tensor
    totals: Tensor
    sentences: Tensor

    @classmethod
    def build(
        cls, state: NativeState, part: _Part, config: DecodeConfig, ids: SpecialIds
    ) -> "_Batch":
        """Sentences before BOS."""
        # The rows of a sentence begin alike, so only its first may be continued from BOS.
        totals = torch.full((len(part.words), config.beam_size), -inf, dtype=torch.float64)
        totals[:, 0] = 0.0
        return cls(state, torch.full((totals.numel(),), ids.bos), totals, part.addresses)

    def has_room(
        self, fresh: Entering[NativeState], max_sentences: int, max_source_tokens: int
    ) -> bool:
        """Whether further sentences may enter."""
        lengths = self.state.lengths
        return (
            len(lengths) + len(fresh.src_lengths) <= max_sentences
            and int(lengths.sum()) + int(fresh.src_lengths.sum()) <= max_source_tokens
        )

    def join(self, others: "_Batch") -> "_Batch":
        """Put others behind these."""
        return _Batch(
            self.state.join(others.state),
            torch.cat([self.tokens, others.tokens]),
            torch.cat([self.totals, others.totals]),
            torch.cat([self.sentences, others.sentences]),
        )

    def advance(
        self, decoder: NativeDecoder, rules: Rules, few: tuple[int, int]
    ) -> "_Batch | None":
        """Make steps until at most `few` sentences and source tokens, or none, are left."""
        state = decoder.make_room(self.state)
        logits = decoder.empty_logits(state)
        left = search_steps(
            decoder.pack_step(self.tokens, state, logits),
            self.sentences,
            self.totals,
            replace(rules, vocab_size=logits.shape[1]),
            steps=decoder.steps_ahead(state),
            few_sentences=few[0],
            few_tokens=few[1],
        ).left
        if not left:
            return None
        rows = left * self.totals.shape[1]
        return _Batch(
            state.first(left), self.tokens[:rows], self.totals[:left], self.sentences[:left]
        )
