"""Beam search: a pure function over a step function and its state, from logits to hypotheses."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.candidates import rank_continuations, rank_groups
from lightconv_mt.decode.config import DecodeConfig, length_penalty
from lightconv_mt.decode.constraints import FREE, Constraints
from lightconv_mt.decode.trace import Floats, Hypothesis, Integers, Trace
from lightconv_mt.ops.best_tokens import log_partition
from lightconv_mt.ops.dispatch import Backend


class SearchState(Protocol):
    """What a step function remembers of N = B x beam rows; row n belongs to sentence n // beam."""

    def reorder(self, rows: Tensor) -> Self:
        """Take the rows `rows` (N',) int64, in that order."""

    def keep(self, sentences: Tensor) -> Self:
        """Take what is held once a sentence for `sentences` (B',) int64; rows stay."""


class OpenState(SearchState, Protocol):
    """A state that sentences may enter at any time."""

    def join(self, others: Self) -> Self:
        """Put the sentences and rows of others behind its own."""


State = TypeVar("State", bound=SearchState)


@dataclass(frozen=True)
class Entering(Generic[State]):
    """Sentences that are about to enter a search.

    Attributes:
        start: makes the state, of B x beam_size rows before BOS.
        src_lengths: (B,) int64, source tokens with EOS.
        prefixes: tokens that the outputs of each sentence begin with.
    """

    start: Callable[[], State]
    src_lengths: Tensor
    prefixes: Sequence[Sequence[int]] | None = None


def beam_search(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    *,
    src_lengths: Tensor,
    ids: SpecialIds,
    config: DecodeConfig,
    prefixes: Sequence[Sequence[int]] | None = None,
    backend: Backend = Backend.torch,
    groups: int = 1,
    entering: Iterable[Entering[State]] = (),
    max_sentences: int = 0,
    max_source_tokens: int = 0,
) -> list[list[Hypothesis]]:
    """Find the best outputs of each sentence by the rules of fairseq's SequenceGenerator.

    At each step the 2 x beam_size best continuations of a sentence are ranked. EOS ends a
    hypothesis only from one of the first beam_size places; the best of the others live on. Equal
    totals rank by token id, then by the rank of what they continue. A sentence that is done leaves
    the batch, and others may enter. Padding is never chosen, and NaN counts as impossible: a
    sentence for which nothing is possible gets no hypothesis.

    Differs: the length limit follows each sentence's own source, not the longest of the batch;
    repeated n-grams are looked for after BOS.

    Args:
        step: reads tokens (N, 1) int64, returns logits (N, 1, V) and the next state.
        state: of N = B x beam_size rows before BOS; reordered at most once a step.
        src_lengths: (B,) int64, source tokens with EOS.
        ids: special ids of the target vocabulary.
        config: the search.
        prefixes: tokens that the outputs of each sentence begin with.
        backend: of the kernels that look through the vocabulary, resolved.
        groups: that many sentences in a row are beams of one, apart by config.diversity.
        entering: further sentences; the states are an `OpenState`. They enter as soon as the batch
            is empty or has room for them.
        max_sentences: that the batch has room for.
        max_source_tokens: that it has room for, EOS included.

    Returns:
        For each sentence, in order of entry, up to config.nbest hypotheses, best first.
    """
    device, beam = src_lengths.device, config.beam_size
    batch = _Batch(config, ids)
    batch.enter(src_lengths, prefixes)
    queue = iter(entering)
    fresh = next(queue, None)
    while True:
        while fresh is not None and batch.has_room(fresh, max_sentences, max_source_tokens):
            state = state.join(fresh.start())  # type: ignore[attr-defined]
            batch.enter(fresh.src_lengths, fresh.prefixes)
            fresh = next(queue, None)
        if not len(batch.sentences):
            return batch.trace.hypotheses(ids.eos, config)
        found, state = step(torch.from_numpy(batch.tokens).to(device)[:, None], state)
        logits = found[:, -1]
        partition = log_partition(logits, backend=backend)
        logits = batch.constraints.apply(logits, batch.positions, batch.history)
        totals = torch.from_numpy(batch.totals).to(device)
        ranked = (
            rank_continuations(logits, partition, totals, 2 * beam, backend=backend)
            if groups == 1
            else rank_groups(
                logits,
                partition,
                totals,
                2 * beam,
                places=torch.from_numpy(batch.sentences).to(device),
                groups=groups,
                diversity=config.diversity,
                backend=backend,
            )
        )
        rows, kept = batch.advance(*(each.cpu().numpy() for each in ranked))
        if rows is not None:
            state = state.reorder(torch.from_numpy(rows).to(device))
        if kept is not None:
            state = state.keep(torch.from_numpy(kept).to(device))


class _Batch:
    """The sentences a search is at: B of them, of N = B x beam rows.

    Attributes:
        sentences: (B,) their numbers, in order of entry.
        src_lengths: (B,) source tokens.
        positions: (B,) tokens of their live hypotheses.
        totals: (B, beam) log-probability of each live hypothesis, -inf for none.
        best: (B, beam) scores of those that have ended, the best first, -inf for none.
        tokens: (N,) what is read next.
        history: (N, T) tokens of each row, on the right, negative before them; only where n-grams
            must not repeat.
    """

    def __init__(self, config: DecodeConfig, ids: SpecialIds) -> None:
        """Begin with no sentence."""
        self.config, self.ids = config, ids
        self.trace = Trace()
        self.constraints = Constraints.build([], config, ids)
        self.sentences, self.src_lengths, self.positions, self.tokens = np.zeros((4, 0), np.int64)
        self.totals, self.best = np.zeros((2, 0, config.beam_size))
        self.history = np.zeros((0, 0), np.int64)
        self.penalties = np.ones(1)  # of lengths 0 and up

    def has_room(self, fresh: Entering[State], max_sentences: int, max_source_tokens: int) -> bool:
        """Whether further sentences may enter."""
        return not len(self.sentences) or (
            len(self.sentences) + len(fresh.src_lengths) <= max_sentences
            and self.src_lengths.sum() + int(fresh.src_lengths.sum()) <= max_source_tokens
        )

    def enter(self, src_lengths: Tensor, prefixes: Sequence[Sequence[int]] | None) -> None:
        """Add sentences before BOS."""
        config, count = self.config, len(src_lengths)
        fresh = Constraints.build(src_lengths.tolist(), config, self.ids, prefixes)
        self.constraints = self.constraints.join(fresh)
        self.sentences = np.append(self.sentences, self.trace.enter(count))
        self.src_lengths = np.append(self.src_lengths, src_lengths.cpu().numpy())
        self.positions = np.append(self.positions, np.zeros(count, np.int64))
        # The rows of a sentence begin alike, so only its first may be continued from BOS.
        totals = np.full((count, config.beam_size), -inf)
        self.best = np.concatenate([self.best, totals])
        totals[:, 0] = 0.0
        self.totals = np.concatenate([self.totals, totals])
        begun = np.full(totals.size, self.ids.bos)
        self.tokens = np.append(self.tokens, begun)
        before = np.full((totals.size, self.history.shape[1]), FREE)
        self.history = np.concatenate([self.history, before])
        lengths = range(len(self.penalties), int(max(fresh.limits, default=0)) + 3)
        more = [length_penalty(length, config) for length in lengths]
        self.penalties = np.append(self.penalties, more)

    def advance(
        self, scores: Floats, parents: Integers, words: Integers
    ) -> tuple[Integers | None, Integers | None]:
        """Choose among ranked continuations (B, 2 x beam); sentences that are done leave.

        Returns:
            Rows (N',) of the state that the next ones continue, and sentences (B',) that stay;
            None where these are all, in order.
        """
        config, beam = self.config, self.config.beam_size
        ends = (words == self.ids.eos) & (scores > -inf)
        final = ends[:, :beam]
        if config.early_stop:
            final = final & (final.cumsum(1) <= (self.best == -inf).sum(1, keepdims=True))
        if final.any():
            self.trace.end(final, self.sentences, parents, scores)
            ended = scores[:, :beam] / self.penalties[self.positions + 1, None]
            self.best = np.concatenate([self.best, np.where(final, ended, -inf)], 1)
            self.best = np.sort(self.best, 1)[:, ::-1][:, :beam]

        # Each row has one EOS at most, so beam_size of the 2 x beam_size others live on.
        live = ends.argsort(1, kind="stable")[:, :beam]
        each = np.arange(len(live))[:, None]
        self.totals, parents, words = scores[each, live], parents[each, live], words[each, live]
        words = np.where(self.totals == -inf, self.ids.eos, words)
        rows = parents + np.arange(0, words.size, beam)[:, None]
        kept = None
        done = self._is_done()
        if done.any():
            (kept,) = (~done).nonzero()
            rows, words = rows[kept], words[kept]
            self._keep(kept)
        rows, self.tokens = rows.ravel(), words.ravel()
        if config.no_repeat_ngram_size:
            self.history = np.concatenate([self.history[rows], self.tokens[:, None]], 1)
        self.trace.extend(rows, self.tokens, self.totals)
        self.positions = self.positions + 1
        moved = kept is not None or not np.array_equal(rows, np.arange(len(rows)))
        return rows if moved else None, kept

    def _keep(self, sentences: Integers) -> None:
        self.constraints = self.constraints.keep(sentences)
        self.sentences, self.src_lengths, self.positions = (
            held[sentences] for held in (self.sentences, self.src_lengths, self.positions)
        )
        self.totals, self.best = self.totals[sentences], self.best[sentences]

    def _is_done(self) -> NDArray[np.bool_]:
        """Which sentences (B,) need no further step."""
        config, limits = self.config, self.constraints.limits
        stuck = (self.totals[:, 0] == -inf) | (limits == self.positions)
        full = self.best[:, -1] > -inf
        if config.early_stop:
            return stuck | full
        if config.unk_penalty < 0 or config.word_reward > 0:
            return stuck  # totals may rise again, so nothing bounds them
        # Totals only fall: at best a live hypothesis ends as it is, under the kindest divisor.
        divisors = np.maximum(self.penalties[self.positions + 2], self.penalties[limits + 1])
        return stuck | (full & (self.best[:, -1] >= self.totals[:, 0] / divisors))
