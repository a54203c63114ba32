"""Sampling: outputs drawn at random, each a pure function of seed, line and rank."""

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import State
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.constraints import Constraints
from lightconv_mt.decode.trace import Hypothesis, Trace
from lightconv_mt.ops.masks import lowbias32


def sample(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    *,
    src_lengths: Tensor,
    lines: Tensor,
    ids: SpecialIds,
    config: DecodeConfig,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Draw config.beam_size outputs of each sentence from the model's distribution.

    Scores are those of the model, whatever the temperature. A draw depends on what else is in the
    batch by rounding alone.

    Args:
        step: as `beam_search`.
        state: of N = B x beam_size rows before BOS.
        src_lengths: (B,) int64, source tokens with EOS.
        lines: (B,) int64, numbers that tell the sentences' draws apart.
        ids: special ids of the target vocabulary.
        config: how to draw.
        prefixes: tokens that the outputs of each sentence begin with.

    Returns:
        For each sentence up to config.nbest hypotheses, best first.
    """
    device, beam = src_lengths.device, config.beam_size
    constraints = Constraints.build(src_lengths, config, ids, prefixes)
    sentences = torch.arange(len(src_lengths), device=device)
    tokens = torch.full((len(src_lengths) * beam,), ids.bos, device=device)
    history = tokens.new_empty(len(tokens), 0)
    totals = torch.zeros((len(src_lengths), beam), dtype=torch.float64, device=device)
    over = torch.zeros_like(totals, dtype=torch.bool)
    own = torch.arange(beam, device=device).expand_as(totals)
    trace = Trace()
    position = 0
    while len(sentences):
        logits, state = step(tokens[:, None], state)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logp = logits[:, -1].log_softmax(-1, dtype=dtype)
        logp = constraints.apply(logp, position, history)
        logp.nan_to_num_(nan=-inf, neginf=-inf)
        tokens = draw(logp, _uniform(config.seed, lines, beam, position), config)
        totals = totals + logp.gather(1, tokens[:, None]).view_as(totals)
        ended = (tokens == ids.eos).view_as(over) & (totals > -inf)
        trace.end(position, ended & ~over, sentences, own[: len(sentences)], totals)
        over = over | ended | (totals == -inf)
        rows = torch.arange(len(tokens), device=device)
        done = over.all(1)
        if bool(done.any()):
            kept = (~done).nonzero().squeeze(1)
            constraints = constraints.keep(kept)
            sentences, lines, totals, over = (
                held[kept] for held in (sentences, lines, totals, over)
            )
            rows = rows.view(-1, beam)[kept].flatten()
            state = state.reorder(rows).keep(kept)
            tokens = tokens[rows]
        if config.no_repeat_ngram_size:
            history = torch.cat([history[rows], tokens[:, None]], 1)
        trace.extend(rows, tokens, totals)
        position += 1
    return trace.hypotheses(len(src_lengths), ids.eos, config)


def draw(logp: Tensor, uniform: Tensor, config: DecodeConfig) -> Tensor:
    """One token a row, by the inverse of the cumulative distribution.

    Args:
        logp: (N, V) float, -inf where impossible.
        uniform: (N,) float64 in (0, 1), which decides.
        config: temperature, top_k and top_p.

    Returns:
        (N,) int64; any token for a row where nothing is possible.
    """
    width = min(config.top_k or logp.shape[1], logp.shape[1])
    values, order = logp.topk(width) if config.top_k else logp.sort(dim=1, descending=True)
    likely = (values.double() / config.temperature).softmax(-1)
    before = likely.cumsum(-1) - likely
    likely = likely.masked_fill(before >= config.top_p, 0.0)
    cumulative = likely.cumsum(-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return order.gather(1, place.clamp_(max=width - 1)).squeeze(1)


def _uniform(seed: int, lines: Tensor, beam: int, position: int) -> Tensor:
    """(B x beam,) float64 in (0, 1), a hash of its place."""
    ranks = torch.arange(beam, device=lines.device)
    word = lowbias32((lines ^ seed) & 0xFFFFFFFF)[:, None]
    word = lowbias32(word ^ ranks)
    word = lowbias32((word + position * 0x9E3779B9) & 0xFFFFFFFF)
    return ((word.double() + 0.5) / 2**32).flatten()
