"""What finished outputs look at in their sources, read by the decoder after the search."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightconv_mt.data.batching import collate
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.model.transformer import Seq2SeqTransformer

MOST_WEIGHTS = 1 << 22  # of a head and layer, computed at a time; more only for a single source
LEAST_ATTENTION = 1e-30  # so that a token that nothing looks at has a logarithm


def read_attention(
    model: Seq2SeqTransformer | Ensemble,
    tokenizers: TokenizerPair,
    sources: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[Sequence[int]]],
    *,
    layer: int | None,
    device: torch.device,
) -> list[list[Tensor]]:
    """Source attention of outputs, each given to the decoder as a whole.

    Args:
        model: in evaluation mode, on `device`.
        tokenizers: of the model.
        sources: ids with EOS.
        outputs: any number of them for each source, ids with EOS.
        layer: of the decoder, from 1; None is the model's choice.
        device: where to compute.

    Returns:
        For each output of each source (T, S) float32 on the CPU: how much the step that predicts a
        token attends to each source token, EOS included on both sides.
    """
    found: list[list[Tensor]] = [[] for _ in sources]
    for places in _chunks(sources, outputs):
        pairs = [(sources[place], output) for place in places for output in outputs[place]]
        if not pairs:
            continue
        batch = collate(pairs, tokenizers.src.ids, tokenizers.tgt.ids).to(device)
        counts = torch.tensor([len(outputs[place]) for place in places], device=device)
        # A source is encoded once, whatever its number of outputs; those without any drop out.
        first = (counts.cumsum(0) - counts)[counts > 0]
        owners = torch.arange(len(first), device=device).repeat_interleave(counts[counts > 0])
        memory = model.encode(batch.src[first], batch.src_mask[first])
        weights = model.source_attention(
            memory[owners], batch.src_mask, batch.tgt_in, batch.tgt_mask, layer=layer
        ).cpu()
        rows = iter(weights)
        for place in places:
            width = len(sources[place])
            found[place] = [next(rows)[: len(output), :width] for output in outputs[place]]
    return found


def coverage(weights: Tensor) -> float:
    """How much of its source an output has attended to: 0 for all of it, below for less.

    Wu et al. (2016), equation 14, cp / beta: the sum over source tokens i of
    log(min(sum over output tokens j of p_ij, 1)). Differs: i runs over words, not over EOS, which
    needs no translation and draws attention of its own.

    Args:
        weights: (T, S) float, EOS last on both sides.
    """
    received = weights[:, :-1].double().sum(0)
    return float(received.clamp(LEAST_ATTENTION, 1.0).log().sum())


def _chunks(
    sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[Sequence[int]]]
) -> Iterator[list[int]]:
    """Places of the sources, in order, so many at a time as MOST_WEIGHTS allows."""
    chunk: list[int] = []
    rows = src_width = tgt_width = 0
    for place, (source, some) in enumerate(zip(sources, outputs, strict=True)):
        longest = max(map(len, some), default=0)
        rows, src_width, tgt_width = (
            rows + len(some),
            max(src_width, len(source)),
            max(tgt_width, longest),
        )
        if chunk and rows * src_width * tgt_width > MOST_WEIGHTS:
            yield chunk
            chunk, rows, src_width, tgt_width = [], len(some), len(source), longest
        chunk.append(place)
    if chunk:
        yield chunk
