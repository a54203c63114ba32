"""What may follow a hypothesis: pure functions that ban and rank tokens for `beam_search`."""

from math import inf

import torch
from torch import Tensor

# Candidates a row offers beyond those needed: equal values at the cut are then nearly always all
# among them, and a full sort is not needed to break the tie.
SPARE_CANDIDATES = 8


def ban_repeats(logp: Tensor, history: Tensor, *, size: int, pad: int) -> None:
    """Ban tokens that would end an n-gram a hypothesis already holds, in place.

    Args:
        logp: (N, V) float; `pad` must be impossible already.
        history: (N, T) int64, the tokens so far, without BOS.
        size: n, 1 or more.
        pad: padding id.
    """
    length = history.shape[1]
    if length < size:
        return
    ngrams = history.unfold(1, size, 1)  # (N, T - size + 1, size)
    begun = history[:, length - size + 1 :]  # (N, size - 1)
    seen = (ngrams[:, :, :-1] == begun[:, None]).all(-1)
    logp.scatter_(1, torch.where(seen, ngrams[:, :, -1], pad), -inf)


def rank_continuations(logp: Tensor, totals: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the continuations of each sentence; equal totals by token id, then by row.

    Args:
        logp: (N, V) float, log-probability of each token; NaN counts as impossible.
        totals: (B, beam) float64, log-probability of each row so far.
        k: continuations wanted, at most 2 x beam.

    Returns:
        The k best of each sentence, best first, each (B, k): their total (float64), row within
        the sentence, token.
    """
    batch, beam = totals.shape
    values, words = best_tokens(logp, k)
    width = values.shape[1]
    scores = (values.double().view(batch, beam, width) + totals[:, :, None]).flatten(1)
    scores.nan_to_num_(nan=-inf, neginf=-inf)
    words = words.view(batch, beam * width)
    rows = torch.arange(beam, device=logp.device).repeat_interleave(width).expand_as(words)
    by_token = (words * beam + rows).argsort(1)
    scores, by_score = scores.gather(1, by_token).sort(dim=1, descending=True, stable=True)
    order = by_token.gather(1, by_score[:, :k])
    return scores[:, :k], rows.gather(1, order), words.gather(1, order)


def best_tokens(logp: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and ids of k or a few more tokens of each row, among them its k best.

    Equal values go to the lower id, which `topk` alone does not promise.
    """
    width = min(k + SPARE_CANDIDATES, logp.shape[1])
    values, words = logp.topk(width)
    if width < logp.shape[1]:
        tied = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -inf)
        if bool(tied.any()):
            ordered, order = logp[tied].sort(dim=1, descending=True, stable=True)
            values[tied], words[tied] = ordered[:, :width], order[:, :width]
    return values, words
