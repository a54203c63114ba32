"""What may follow a hypothesis: pure functions that ban and rank tokens for `beam_search`."""

from math import inf

import torch
from torch import Tensor

from lightconv_mt.ops.best_tokens import best_continuations, best_tokens
from lightconv_mt.ops.dispatch import Backend


def ban_repeats(logp: Tensor, history: Tensor, *, size: int, pad: int) -> None:
    """Ban tokens that would end an n-gram a hypothesis already holds, in place.

    Args:
        logp: (N, V) float; `pad` must be impossible already.
        history: (N, T) int64, the tokens so far, without BOS; negative where there are fewer.
        size: n, 1 or more.
        pad: padding id.
    """
    length = history.shape[1]
    if length < size:
        return
    ngrams = history.unfold(1, size, 1)  # (N, T - size + 1, size)
    begun = history[:, length - size + 1 :]  # (N, size - 1)
    seen = (ngrams[:, :, :-1] == begun[:, None]).all(-1) & (ngrams >= 0).all(-1)
    logp.scatter_(1, torch.where(seen, ngrams[:, :, -1], pad), -inf)


def rank_continuations(
    logits: Tensor, partition: Tensor, totals: Tensor, k: int, *, backend: Backend
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the continuations of each sentence; equal totals by token id, then by row.

    Args:
        logits: (N, V) float; NaN and -inf are impossible.
        partition: (N,) float, taken from every logit of a row to give log-probabilities.
        totals: (B, beam) float64, log-probability of each row so far.
        k: continuations wanted, at most 2 x beam.
        backend: `native` for the C++ kernel, any other for plain torch.

    Returns:
        The k best of each sentence, best first, each (B, k): their total (float64), row within
        the sentence, token.
    """
    if backend is Backend.native:
        return best_continuations(logits, partition, totals, k)
    batch, beam = totals.shape
    values, words = best_tokens(logits, min(k, logits.shape[1]))
    width = values.shape[1]
    scores = (values - partition[:, None]).double().view(batch, beam, width) + totals[:, :, None]
    scores = scores.flatten(1).nan_to_num_(nan=-inf, neginf=-inf)
    words = words.reshape(batch, beam * width)
    rows = torch.arange(beam, device=logits.device).repeat_interleave(width).expand_as(words)
    by_token = (words * beam + rows).argsort(1)
    scores, by_score = scores.gather(1, by_token).sort(dim=1, descending=True, stable=True)
    order = by_token.gather(1, by_score[:, :k])
    return scores[:, :k], rows.gather(1, order), words.gather(1, order)


def rank_groups(
    logits: Tensor,
    partition: Tensor,
    totals: Tensor,
    k: int,
    *,
    places: Tensor,
    groups: int,
    diversity: float,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the continuations of each group of a diverse beam search, one group after the other.

    Vijayakumar et al. (2016), algorithm 1, with Hamming diversity: a token loses `diversity` for
    every one of the beam best continuations of an earlier group of the sentence that is the same
    token. As in line 5 there, the loss stays in the totals.

    Args:
        logits: as `rank_continuations`, whose sentences are the groups.
        partition: as there.
        totals: (B, beam) float64, of B groups.
        k: continuations wanted of a group, at most 2 x beam.
        places: (B,) int64, group g of sentence b is b x groups + g; those that are done are left
            out, and say nothing any more.
        groups: of a sentence.
        diversity: 0 or more.
        backend: as there.

    Returns:
        As `rank_continuations`.
    """
    beam, columns = totals.shape[1], torch.arange(totals.shape[1], device=totals.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    named, owners = (places // groups).unique(return_inverse=True)
    said = torch.zeros(len(named), logits.shape[1], dtype=wide, device=logits.device)
    ranked: list[tuple[Tensor, Tensor, Tensor]] = []
    order = []
    for group in range(groups):
        mine = (places % groups == group).nonzero().squeeze(1)
        if not len(mine):
            continue
        owner = owners[mine]
        rows = (mine[:, None] * beam + columns).flatten()
        losses = diversity * said[owner].repeat_interleave(beam, 0)
        found = rank_continuations(
            logits[rows] - losses, partition[rows], totals[mine], k, backend=backend
        )
        scores, words = found[0][:, :beam], found[2][:, :beam]
        whose = owner[:, None].expand_as(words)
        said.index_put_((whose, words), (scores > -inf).to(wide), accumulate=True)
        ranked.append(found)
        order.append(mine)
    back = torch.cat(order).argsort()
    scores, parents, words = (torch.cat(parts)[back] for parts in zip(*ranked, strict=True))
    return scores, parents, words
