"""Beam search: a pure function over a step function and its state, from logits to hypotheses."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.candidates import rank_continuations, rank_groups
from lightconv_mt.decode.config import DecodeConfig, length_penalty
from lightconv_mt.decode.constraints import Constraints
from lightconv_mt.decode.trace import Hypothesis, Trace
from lightconv_mt.ops.best_tokens import log_partition
from lightconv_mt.ops.dispatch import Backend


class SearchState(Protocol):
    """What a step function remembers of N = B x beam rows; row n belongs to sentence n // beam."""

    def reorder(self, rows: Tensor) -> Self:
        """Take the rows `rows` (N',) int64, in that order."""

    def keep(self, sentences: Tensor) -> Self:
        """Take what is held once a sentence for `sentences` (B',) int64; rows stay."""


State = TypeVar("State", bound=SearchState)


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
        prefixes: tokens that the outputs of each sentence begin with.
        backend: of the kernels that look through the vocabulary, resolved.
        groups: that many sentences in a row are beams of one, apart by config.diversity.

    Returns:
        For each sentence up to config.nbest hypotheses, best first.
    """
    device, beam = src_lengths.device, config.beam_size
    constraints = Constraints.build(src_lengths, config, ids, prefixes)
    sentences = torch.arange(len(src_lengths), device=device)
    tokens = torch.full((len(src_lengths) * beam,), ids.bos, device=device)
    history = tokens.new_empty(len(tokens), 0)
    # The rows of a sentence begin alike, so only its first may be continued from BOS.
    totals = torch.full((len(src_lengths), beam), -inf, dtype=torch.float64, device=device)
    best = totals.clone()
    totals[:, 0] = 0.0
    trace = Trace()
    position = 0
    while len(sentences):
        found, state = step(tokens[:, None], state)
        logits = found[:, -1]
        partition = log_partition(logits, backend=backend)
        logits = constraints.apply(logits, position, history)
        scores, parents, words = (
            rank_continuations(logits, partition, totals, 2 * beam, backend=backend)
            if groups == 1
            else rank_groups(
                logits,
                partition,
                totals,
                2 * beam,
                places=sentences,
                groups=groups,
                diversity=config.diversity,
                backend=backend,
            )
        )

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
        done = _is_done(best, totals, position, constraints.limits, config)
        shrinks = bool(done.any())
        if shrinks:
            kept = (~done).nonzero().squeeze(1)
            constraints = constraints.keep(kept)
            sentences, totals, best = (held[kept] for held in (sentences, totals, best))
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


def _is_done(
    best: Tensor, totals: Tensor, position: int, limits: Tensor, config: DecodeConfig
) -> Tensor:
    """Which sentences (B,) need no further step, by their best (B, beam) and live totals."""
    stuck = (totals[:, 0] == -inf) | (limits == position)
    full = best[:, -1] > -inf
    if config.early_stop:
        return stuck | full
    if (
        config.unk_penalty < 0 or config.word_reward > 0
    ):  # totals may rise again, so nothing bounds them
        return stuck
    # Totals only fall: at best a live hypothesis ends as it is, under the kindest divisor.
    divisors = [
        max(length_penalty(position + 2, config), length_penalty(limit + 1, config))
        for limit in limits.tolist()
    ]
    bounds = totals[:, 0] / torch.tensor(divisors, dtype=totals.dtype, device=totals.device)
    return stuck | (full & (best[:, -1] >= bounds))
