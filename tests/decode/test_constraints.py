"""Forced prefixes, lengths by the source, bans and rewards."""

from itertools import product
from math import inf

import pytest
import torch
from table_model import IDS, TableModel

from lightconv_mt.decode.beam_search import beam_search
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.trace import Hypothesis

MODEL = TableModel(7, seed=8)
WORDS = [token for token in range(7) if token not in (IDS.pad, IDS.eos)]


def searched(
    config: DecodeConfig, *, prefixes: list[list[int]] | None = None, src_length: int = 3
) -> list[list[Hypothesis]]:
    numbers = torch.tensor([4, 11])
    return beam_search(
        MODEL.step,
        MODEL.start(numbers, config.beam_size),
        src_lengths=torch.full_like(numbers, src_length),
        ids=IDS,
        config=config,
        prefixes=prefixes,
    )


def test_a_prefix_is_kept_and_continued_as_by_exhaustive_search() -> None:
    config = DecodeConfig(beam_size=200, nbest=1, max_length=4, min_length=0)
    prefixes = [[5, 6], []]
    results = searched(config, prefixes=prefixes)
    for sentence, prefix, found in zip((4, 11), prefixes, results, strict=True):
        best = -inf
        for length in range(len(prefix), 5):
            for rest in product(WORDS, repeat=length - len(prefix)):
                tokens = (*prefix, *rest, IDS.eos)
                total = sum(
                    MODEL.logp(sentence, tokens[:place])[token]
                    for place, token in enumerate(tokens)
                )
                best = max(best, total / len(tokens))
        assert list(found[0].tokens[: len(prefix)]) == prefix
        assert found[0].score == pytest.approx(best)


def test_a_prefix_wins_over_bans_and_limits() -> None:
    config = DecodeConfig(
        beam_size=3, max_length=2, ban_unk=True, no_repeat_ngram_size=1, early_stop=False
    )
    prefix = [IDS.unk, 5, 5]
    (first, second) = searched(config, prefixes=[prefix, []])
    assert list(first[0].tokens) == [*prefix, IDS.eos]
    assert len(second[0].tokens) <= 3
    assert IDS.unk not in second[0].tokens


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_lengths_follow_the_source(ratio: float) -> None:
    config = DecodeConfig(
        beam_size=4, nbest=4, min_length_ratio=ratio, max_length_ratio=ratio, max_length_extra=1
    )
    for length in (2, 5):
        for hypotheses in searched(config, src_length=length):
            lengths = {len(found.tokens) - 1 for found in hypotheses}
            assert lengths <= {int(ratio * length), int(ratio * length) + 1}


def test_a_reward_for_words_makes_longer_outputs() -> None:
    def mean_length(reward: float) -> float:
        config = DecodeConfig(
            beam_size=8, max_length=8, length_penalty=0.0, word_reward=reward, early_stop=False
        )
        found = [hypotheses[0] for hypotheses in searched(config)]
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(sum(hypothesis.token_scores))
        return sum(len(hypothesis.tokens) for hypothesis in found) / len(found)

    assert mean_length(-2.0) <= mean_length(0.0) <= mean_length(2.0)
    assert mean_length(-2.0) < mean_length(2.0) == 9.0
