"""Sampling: outputs drawn at random, each a pure function of seed, line and rank."""

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import State
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.constraints import Constraints
from lightconv_mt.decode.trace import Hypothesis, Trace
from lightconv_mt.ops.masks import lowbias32

BLOCK = 128  # tokens whose probabilities are summed up first
GOLDEN = 0x9E3779B9  # odd, 2**32 over the golden ratio: spreads numbers that are near


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
    constraints = Constraints.build(src_lengths.tolist(), config, ids, prefixes)
    trace = Trace()
    sentences = trace.enter(len(src_lengths))
    tokens = torch.full((len(src_lengths) * beam,), ids.bos, device=device)
    history = np.zeros((len(tokens), 0), np.int64)
    totals = np.zeros((len(src_lengths), beam))
    over = np.zeros(totals.shape, np.bool_)
    own = np.broadcast_to(np.arange(beam), totals.shape)
    position = 0
    while len(sentences):
        logits, state = step(tokens[:, None], state)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logp = logits[:, -1].log_softmax(-1, dtype=dtype)
        logp = constraints.apply(logp, np.full(len(sentences), position), history)
        logp.nan_to_num_(nan=-inf, neginf=-inf)
        tokens = draw(logp, _uniform(config.seed, lines, beam, position), config)
        gained = logp.gather(1, tokens[:, None]).double().cpu().numpy()
        words = tokens.cpu().numpy()
        totals = totals + gained.reshape(totals.shape)
        ended = (words == ids.eos).reshape(over.shape) & (totals > -inf)
        trace.end(ended & ~over, sentences, own[: len(sentences)], totals)
        over = over | ended | (totals == -inf)
        rows = np.arange(len(words))
        done = over.all(1)
        if done.any():
            (kept,) = (~done).nonzero()
            constraints = constraints.keep(kept)
            sentences, totals, over = sentences[kept], totals[kept], over[kept]
            rows = rows.reshape(-1, beam)[kept].ravel()
            words = words[rows]
            staying, left = torch.from_numpy(kept).to(device), torch.from_numpy(rows).to(device)
            state = state.reorder(left).keep(staying)
            lines, tokens = lines[staying], tokens[left]
        if config.no_repeat_ngram_size:
            history = np.concatenate([history[rows], words[:, None]], 1)
        trace.extend(rows, words, totals)
        position += 1
    return trace.hypotheses(ids.eos, config)


def draw(logp: Tensor, uniform: Tensor, config: DecodeConfig) -> Tensor:
    """One token a row, by the inverse of the cumulative distribution.

    Args:
        logp: (N, V) float, -inf where impossible.
        uniform: (N,) float64 in (0, 1), which decides.
        config: temperature, top_k and top_p.

    Returns:
        (N,) int64; any token for a row where nothing is possible.
    """
    if not config.top_k and config.top_p == 1.0:
        return _draw_among_all(logp, uniform, config.temperature)
    width = min(config.top_k or logp.shape[1], logp.shape[1])
    values, order = logp.topk(width) if config.top_k else logp.sort(dim=1, descending=True)
    likely = _likely(values.double(), config.temperature)
    before = likely.cumsum(-1) - likely
    likely = likely.masked_fill(before >= config.top_p, 0.0)
    cumulative = likely.cumsum(-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return order.gather(1, place.clamp_(max=width - 1)).squeeze(1)


def _draw_among_all(logp: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """As `draw`, from the whole distribution, without sorting it: first a block, then within it."""
    likely = _likely(logp, temperature)
    blocks = F.pad(likely, (0, -likely.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = uniform[:, None] * ends[:, -1:]
    block = (ends <= wanted).sum(-1, keepdim=True).clamp_(max=ends.shape[1] - 1)
    begun = F.pad(ends, (1, 0)).gather(1, block)
    chosen = blocks.take_along_dim(block[..., None], 1).squeeze(1)
    cumulative = chosen.double().cumsum(-1)
    # Both sums round differently, and what is impossible must not be drawn for that.
    rest = torch.minimum(wanted - begun, cumulative[:, -1:] * (1 - 1e-12))
    place = (cumulative <= rest).sum(-1, keepdim=True).clamp_(max=BLOCK - 1)
    return (block * BLOCK + place).squeeze(1)


def _likely(logp: Tensor, temperature: float) -> Tensor:
    """(N, V) probabilities at a temperature, however low or high."""
    tiny = torch.finfo(logp.dtype).tiny  # beyond it and its inverse only NaN would be new
    below = logp - logp.amax(-1, keepdim=True)
    return (below / min(max(temperature, tiny), 1 / tiny)).softmax(-1)


def _uniform(seed: int, lines: Tensor, beam: int, position: int) -> Tensor:
    """(B x beam,) float64 in (0, 1), a hash of its place."""
    ranks = torch.arange(beam, device=lines.device)
    # Hashed alone, not from 0: seeds that are near share no draws on lines that are near.
    key = lowbias32((torch.full_like(lines, seed) + GOLDEN) & 0xFFFFFFFF)
    word = lowbias32((lines & 0xFFFFFFFF) ^ key)[:, None]
    word = lowbias32(word ^ ranks)
    word = lowbias32((word + position * GOLDEN) & 0xFFFFFFFF)
    return ((word.double() + 0.5) / 2**32).flatten()
