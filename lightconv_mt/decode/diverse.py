"""Diverse beam search: several beams of one sentence that are kept apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import State, beam_search
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.ops.dispatch import Backend


def diverse_beam_search(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    *,
    src_lengths: Tensor,
    ids: SpecialIds,
    config: DecodeConfig,
    prefixes: Sequence[Sequence[int]] | None = None,
    backend: Backend = Backend.torch,
) -> list[list[Hypothesis]]:
    """Find outputs that differ from each other (Vijayakumar et al., 2016, algorithm 1).

    Each of config.beam_groups beams is a `beam_search` of its own, with its own end, but for what
    `candidates.rank_groups` takes from tokens that earlier groups chose in the same step.

    Args:
        step: as `beam_search`.
        state: of B x beam_groups sentences, those of one source in a row, with
            beam_size / beam_groups rows each.
        src_lengths: (B,) int64, source tokens with EOS.
        ids: special ids of the target vocabulary.
        config: the search.
        prefixes: tokens that the outputs of each of the B sentences begin with.
        backend: as `beam_search`.

    Returns:
        For each of the B sentences up to config.nbest hypotheses of all groups, best first, equal
        scores by group; what several groups found stands there once, with its best score. Scores
        and token_scores hold what was taken for diversity.
    """
    groups = config.beam_groups
    beam = config.beam_size // groups
    found = beam_search(
        step,
        state,
        src_lengths=src_lengths.repeat_interleave(groups),
        ids=ids,
        config=replace(config, beam_size=beam, nbest=beam, beam_groups=1),
        prefixes=prefixes and [prefix for prefix in prefixes for _ in range(groups)],
        backend=backend,
        groups=groups,
    )
    return [
        _merged(found[start : start + groups])[: config.nbest]
        for start in range(0, len(found), groups)
    ]


def _merged(beams: list[list[Hypothesis]]) -> list[Hypothesis]:
    """Hypotheses of the groups of one sentence, best first."""
    ranked = sorted((each for beam in beams for each in beam), key=lambda each: -each.score)
    distinct: dict[tuple[int, ...], Hypothesis] = {}
    for each in ranked:
        distinct.setdefault(each.tokens, each)
    return list(distinct.values())
