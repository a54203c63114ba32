"""Beam search: a pure function over a step function and its state, from logits to hypotheses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf, isfinite
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.candidates import ban_repeats, force_token, rank_continuations
from lightconv_mt.errors import ConfigError

MAX_BEAM_SIZE = 1024


class LengthNormalization(Enum):
    """What divides the log-probability: length^a, ((5 + length) / 6)^a (Wu et al., 2016) or 1."""

    mean = "mean"
    gnmt = "gnmt"
    none = "none"


@dataclass(kw_only=True)
class DecodeConfig:
    """How to search; lengths count target tokens before EOS.

    Attributes:
        beam_size: hypotheses kept at each step; 1 is greedy.
        length_penalty: exponent of the length normalisation; more favours longer output.
        length_normalization: its formula.
        max_length_ratio: at most int(ratio * source tokens with EOS + extra) tokens.
        max_length_extra: see max_length_ratio.
        max_length: at most this many tokens, whatever the source.
        min_length: no EOS before this many tokens, as far as the maximum allows.
        unk_penalty: taken from the unknown token's log-probability; negative favours it.
        no_repeat_ngram_size: no n-gram of this size twice in one hypothesis; 0 is off.
        nbest: hypotheses returned for each sentence.
        early_stop: a sentence is done once beam_size hypotheses have ended (fairseq's rule).
            False goes on until no live one can beat the worst of the beam_size best.
    """

    beam_size: int = 5
    length_penalty: float = 1.0
    length_normalization: LengthNormalization = LengthNormalization.mean
    max_length_ratio: float = 2.0
    max_length_extra: int = 50
    max_length: int | None = None
    min_length: int = 1
    unk_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    nbest: int = 1
    early_stop: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.beam_size <= MAX_BEAM_SIZE:
            raise ConfigError(f"decode.beam_size is {self.beam_size}; give 1 to {MAX_BEAM_SIZE}")
        if not 1 <= self.nbest <= self.beam_size:
            raise ConfigError(
                f"decode.nbest is {self.nbest}; give 1 to decode.beam_size ({self.beam_size})"
            )
        for key in ("max_length_ratio", "max_length_extra", "min_length", "no_repeat_ngram_size"):
            if not 0 <= getattr(self, key) < inf:
                raise ConfigError(f"decode.{key} is {getattr(self, key)}; give 0 or more")
        for key in ("length_penalty", "unk_penalty"):
            if not isfinite(getattr(self, key)):
                raise ConfigError(f"decode.{key} is {getattr(self, key)}; give a finite number")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(
                f"decode.max_length is {self.max_length}, below decode.min_length, which is "
                f"{self.min_length}; lower decode.min_length or raise decode.max_length"
            )

    def length_limit(self, src_length: int) -> int:
        """Most tokens before EOS for a source of `src_length` tokens, its EOS included."""
        limit = int(self.max_length_ratio * src_length + self.max_length_extra)
        return limit if self.max_length is None else min(limit, self.max_length)


@dataclass(frozen=True)
class Hypothesis:
    """One finished output.

    Attributes:
        tokens: ids with EOS at the end, without BOS.
        score: sum of token_scores divided by the length penalty.
        token_scores: log-probability of each token (natural logarithm), penalties included.
    """

    tokens: tuple[int, ...]
    score: float
    token_scores: tuple[float, ...]


class SearchState(Protocol):
    """What a step function remembers of N = B x beam rows; row n belongs to sentence n // beam."""

    def reorder(self, rows: Tensor) -> Self:
        """Take the rows `rows` (N',) int64, in that order."""

    def keep(self, sentences: Tensor) -> Self:
        """Take what is held once a sentence for `sentences` (B',) int64; rows stay."""


State = TypeVar("State", bound=SearchState)


def length_penalty(length: int, config: DecodeConfig) -> float:
    """Divisor of the log-probability of a hypothesis of `length` tokens, EOS included."""
    match config.length_normalization:
        case LengthNormalization.mean:
            return float(length**config.length_penalty)
        case LengthNormalization.gnmt:
            return float(((5 + length) / 6) ** config.length_penalty)
        case LengthNormalization.none:
            return 1.0


def beam_search(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    *,
    src_lengths: Tensor,
    ids: SpecialIds,
    config: DecodeConfig,
) -> list[list[Hypothesis]]:
    """Find the best outputs of each sentence by the rules of fairseq's SequenceGenerator.

    At each step the 2 x beam_size best continuations of a sentence are ranked. EOS ends a
    hypothesis only from one of the first beam_size places; the best of the others live on. Equal
    totals rank by token id, then by the rank of what they continue. A sentence that is done leaves
    the batch. Padding is never chosen, and NaN counts as impossible: a sentence for which nothing
    is possible gets no hypothesis.

    Differs: the length limit follows each sentence's own source, not the longest of the batch;
    repeated n-grams are looked for after BOS.

    Args:
        step: reads tokens (N, 1) int64, returns logits (N, 1, V) and the next state.
        state: of N = B x beam_size rows before BOS; reordered at most once a step.
        src_lengths: (B,) int64, source tokens with EOS.
        ids: special ids of the target vocabulary.
        config: the search.

    Returns:
        For each sentence up to config.nbest hypotheses, best first.
    """
    device, beam = src_lengths.device, config.beam_size
    limits = torch.tensor([config.length_limit(n) for n in src_lengths.tolist()], device=device)
    sentences = torch.arange(len(src_lengths), device=device)
    tokens = torch.full((len(src_lengths) * beam,), ids.bos, device=device)
    history = tokens.new_empty(len(tokens), 0)
    # The rows of a sentence begin alike, so only its first may be continued from BOS.
    totals = torch.full((len(src_lengths), beam), -inf, dtype=torch.float64, device=device)
    best = totals.clone()
    totals[:, 0] = 0.0
    trace = _Trace()
    position = 0
    while len(sentences):
        logits, state = step(tokens[:, None], state)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logp = logits[:, -1].log_softmax(-1, dtype=dtype)
        _constrain(logp, position, limits, history, ids, config)
        scores, parents, words = rank_continuations(logp, totals, 2 * beam)

        ends = (words == ids.eos) & (scores > -inf)
        final = ends[:, :beam]
        if config.early_stop:
            final = final & (final.cumsum(1) <= (best == -inf).sum(1, keepdim=True))
        trace.end(position, final, sentences, parents, scores)
        ended = scores[:, :beam] / length_penalty(position + 1, config)
        best = torch.cat([best, ended.masked_fill(~final, -inf)], 1).topk(beam).values

        # Each row has one EOS at most, so beam_size of the 2 x beam_size others live on.
        live = ends.sort(dim=1, stable=True).indices[:, :beam]
        totals, parents, words = (ranked.gather(1, live) for ranked in (scores, parents, words))
        words = words.masked_fill(totals == -inf, ids.eos)
        rows = parents + torch.arange(0, words.numel(), beam, device=device)[:, None]
        done = _is_done(best, totals, position, limits, config)
        shrinks = bool(done.any())
        if shrinks:
            kept = (~done).nonzero().squeeze(1)
            sentences, limits, totals, best = (
                held[kept] for held in (sentences, limits, totals, best)
            )
            rows, words = rows[kept], words[kept]
        rows, tokens = rows.flatten(), words.flatten()
        if shrinks or not torch.equal(rows, torch.arange(len(rows), device=device)):
            state = state.reorder(rows)
        if shrinks:
            state = state.keep(kept)
        if config.no_repeat_ngram_size:
            history = torch.cat([history[rows], tokens[:, None]], 1)
        trace.extend(rows, tokens, totals)
        position += 1
    return trace.hypotheses(len(src_lengths), ids.eos, config)


def _constrain(
    logp: Tensor,
    position: int,
    limits: Tensor,
    history: Tensor,
    ids: SpecialIds,
    config: DecodeConfig,
) -> None:
    """Apply penalties and bans, in place, to logp (N, V) of the token after `position` others."""
    logp[:, ids.pad] = -inf
    if config.unk_penalty:
        logp[:, ids.unk] -= config.unk_penalty
    if position < config.min_length:
        early = (limits > position).repeat_interleave(config.beam_size)
        logp[:, ids.eos].masked_fill_(early, -inf)
    full = limits == position
    if bool(full.any()):
        force_token(logp, full.repeat_interleave(config.beam_size), ids.eos)
    if config.no_repeat_ngram_size:
        ban_repeats(logp, history, size=config.no_repeat_ngram_size, pad=ids.pad)


def _is_done(
    best: Tensor, totals: Tensor, position: int, limits: Tensor, config: DecodeConfig
) -> Tensor:
    """Which sentences (B,) need no further step, by their best (B, beam) and live totals."""
    stuck = (totals[:, 0] == -inf) | (limits == position)
    full = best[:, -1] > -inf
    if config.early_stop:
        return stuck | full
    if config.unk_penalty < 0:  # totals may rise again, so nothing bounds them
        return stuck
    # Totals only fall: at best a live hypothesis ends as it is, under the kindest divisor.
    divisors = [
        max(length_penalty(position + 2, config), length_penalty(limit + 1, config))
        for limit in limits.tolist()
    ]
    bounds = totals[:, 0] / torch.tensor(divisors, dtype=totals.dtype, device=totals.device)
    return stuck | (full & (best[:, -1] >= bounds))


class _Trace:
    """Which row continued which; read back once at the end, so a step costs the same at any length.

    Row n at position p of a step's layout continues row `rows[n]` of the layout at p - 1.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.endings: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def extend(self, rows: Tensor, tokens: Tensor, totals: Tensor) -> None:
        """Continue `rows` (N,) of the last layout by `tokens` (N,), reaching totals (B, beam)."""
        self.steps.append((rows, tokens, totals.flatten()))

    def end(
        self, position: int, final: Tensor, sentences: Tensor, parents: Tensor, scores: Tensor
    ) -> None:
        """Note that EOS follows `position` tokens where final (B, beam) is set."""
        places = final.nonzero()
        if len(places):
            sentence, rank = places.unbind(1)
            row = sentence * final.shape[1] + parents[sentence, rank]
            length = torch.full_like(row, position)
            self.endings.append((length, sentences[sentence], row, scores[sentence, rank]))

    def hypotheses(
        self, num_sentences: int, eos: int, config: DecodeConfig
    ) -> list[list[Hypothesis]]:
        """Read the config.nbest best of each sentence; equal scores as they ended."""
        found: list[list[Hypothesis]] = [[] for _ in range(num_sentences)]
        if not self.endings:
            return found
        length, sentence, row, total = _joined(self.endings)
        divisors = np.array([length_penalty(n + 1, config) for n in range(length.max() + 1)])
        score = total / divisors[length]
        order = np.lexsort((-score, sentence))
        first = np.searchsorted(sentence[order], np.arange(num_sentences))
        order = order[np.arange(len(order)) - first[sentence[order]] < config.nbest]

        tokens, totals = self._read(length[order], row[order], total[order], eos)
        token_scores = np.diff(totals, prepend=0.0)
        for n, index in enumerate(order):
            end = length[index] + 1
            hypothesis = Hypothesis(
                tokens=tuple(tokens[n, :end].tolist()),
                score=float(score[index]),
                token_scores=tuple(token_scores[n, :end].tolist()),
            )
            found[sentence[index]].append(hypothesis)
        return found

    def _read(
        self,
        length: NDArray[np.int64],
        row: NDArray[np.int64],
        total: NDArray[np.float64],
        eos: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens and running totals, (hypotheses, longest + 1), of those that ended as given."""
        tokens = np.full((len(length), length.max() + 1), eos)
        totals = np.zeros(tokens.shape)
        totals[np.arange(len(length)), length] = total
        if self.steps:
            parents, words, sums = _joined(self.steps)
            starts = np.cumsum([0, *(len(step[0]) for step in self.steps)])
            for position in range(length.max(), 0, -1):
                alive = length >= position
                place = starts[position - 1] + row[alive]
                tokens[alive, position - 1] = words[place]
                totals[alive, position - 1] = sums[place]
                row[alive] = parents[place]
        return tokens, totals


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> list[NDArray[Any]]:
    return [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
