"""Beam search around the decoder's steps in C++: the calls."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightconv_mt.ops.library import load_library

LINK_WORDS, ENDING_WORDS, SENTENCE_WORDS = 2, 4, 8  # of csrc/search.cpp, 8 bytes each
ENDED, DONE = 6, 7  # words of a `Sentence` that are written

_SEARCH = struct.Struct("=3Q2d9qQ")  # what `Search` of csrc/search.cpp has behind its step
_READ = struct.Struct("=Q5q4Q")  # `Reading` of csrc/search.cpp
_UNBOUNDED = 2**62


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How to search.

    Attributes:
        penalties: (lengths,) float64, the divisor of each length from 0 on, to 2 behind the limits.
        unk_penalty: taken from the unknown token's logit.
        word_reward: added to all but EOS.
        vocab_size: V.
        pad: never chosen.
        eos: ends a hypothesis.
        unk: the unknown token.
        ban_unk: whether it is never chosen either.
        early_stop: whether a sentence is done with as many hypotheses as the beam has rows.
    """

    penalties: Tensor
    unk_penalty: float
    word_reward: float
    vocab_size: int
    pad: int
    eos: int
    unk: int
    ban_unk: bool
    early_stop: bool


class Stretch(NamedTuple):
    """What became of some steps.

    Attributes:
        left: sentences that are not done.
        decoder_seconds: time in the decoder,
        choice_seconds: and in the choice of continuations.
    """

    left: int
    decoder_seconds: float
    choice_seconds: float


def search_steps(
    step: bytes,
    sentences: Tensor,
    totals: Tensor,
    rules: Rules,
    *,
    steps: int = _UNBOUNDED,
    few_sentences: int = -1,
    few_tokens: int = -1,
) -> Stretch:
    """Make steps until no sentence is left, or as many as are asked for.

    Args:
        step: the first one, as `pack_step` describes it; the arrays that it names are written, so
            that those of the sentences that are left come first.
        sentences: (B,) int64, where each one's `Sentence` of csrc/search.cpp lies.
        totals: (B, beam) float64, log-probability of each row; written.
        rules: how to search.
        steps: at most.
        few_sentences: stop when some left and so many remain at most,
        few_tokens: of so many source tokens.
    """
    result = torch.empty(3, dtype=torch.float64)
    call = step + _SEARCH.pack(
        sentences.data_ptr(),
        totals.data_ptr(),
        rules.penalties.data_ptr(),
        rules.unk_penalty,
        rules.word_reward,
        rules.vocab_size,
        rules.pad,
        rules.eos,
        rules.unk,
        rules.ban_unk,
        rules.early_stop,
        steps,
        few_sentences,
        few_tokens,
        result.data_ptr(),
    )
    if load_library().lcmt_search(call):
        raise MemoryError(f"a search: not enough memory for {totals.numel()} rows")
    left, decoder_seconds, choice_seconds = result.tolist()
    return Stretch(int(left), decoder_seconds, choice_seconds)


def read_search(
    sentences: Tensor, *, beam: int, nbest: int, room: int, eos: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What sentences that are done have found, the best first.

    Args:
        sentences: (B, SENTENCE_WORDS) int64.
        beam: rows of a sentence.
        nbest: hypotheses wanted, at most beam.
        room: for tokens of one with its EOS.
        eos: ends it.

    Returns:
        Tokens (B, nbest, room) int64, their log-probabilities, float64, the lengths (B, nbest)
        int64 of hypotheses, 0 for none, and scores, float64; only so much of them is written.
    """
    batch = len(sentences)
    tokens = torch.empty(batch, nbest, room, dtype=torch.int64)
    token_scores = torch.empty(batch, nbest, room, dtype=torch.float64)
    lengths = torch.empty(batch, nbest, dtype=torch.int64)
    scores = torch.empty(batch, nbest, dtype=torch.float64)
    call = _READ.pack(
        sentences.data_ptr(),
        batch,
        beam,
        nbest,
        room,
        eos,
        *(each.data_ptr() for each in (tokens, token_scores, lengths, scores)),
    )
    load_library().lcmt_read_search(call)
    return tokens, token_scores, lengths, scores
