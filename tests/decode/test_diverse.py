"""Diverse beam search against the paper's algorithm, written for one sentence with lists."""

from collections import Counter
from dataclasses import replace
from math import inf, isclose

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_rules import allowed, check, divided
from table_model import IDS, TableModel

from lightconv_mt.decode.beam_search import beam_search
from lightconv_mt.decode.config import DecodeConfig, LengthNormalization
from lightconv_mt.decode.diverse import diverse_beam_search
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.errors import ConfigError

Output = tuple[float, tuple[int, ...]]


def diverse(
    model: TableModel, config: DecodeConfig, sentences: list[int], src_lengths: list[int]
) -> list[list[Hypothesis]]:
    groups = config.beam_groups
    numbers = torch.tensor(sentences).repeat_interleave(groups)
    return diverse_beam_search(
        model.step,
        model.start(numbers, config.beam_size // groups),
        src_lengths=torch.tensor(src_lengths),
        ids=IDS,
        config=config,
    )


def search(model: TableModel, config: DecodeConfig, sentences: list[int]) -> list[list[Hypothesis]]:
    numbers = torch.tensor(sentences)
    return beam_search(
        model.step,
        model.start(numbers, config.beam_size),
        src_lengths=torch.full_like(numbers, 3),
        ids=IDS,
        config=config,
    )


def plain_diverse_search(
    model: TableModel, sentence: int, config: DecodeConfig, limit: int
) -> list[Output]:
    """Vijayakumar et al. (2016), algorithm 1: in each step one group after the other."""
    beam = config.beam_size // config.beam_groups
    live: list[list[Output]] = [[(0.0, ())] for _ in range(config.beam_groups)]
    ended: list[list[Output]] = [[] for _ in range(config.beam_groups)]
    for _ in range(limit + 1):
        said: Counter[int] = Counter()
        for group in range(config.beam_groups):
            if len(ended[group]) == beam:
                continue
            ranked = sorted(
                (-(total + (value - config.diversity * said[token])), token, row)
                for row, (total, prefix) in enumerate(live[group])
                for token, value in enumerate(allowed(model, sentence, prefix, config, limit))
                if total + value > -inf
            )[: 2 * beam]
            said.update(token for _, token, _ in ranked[:beam])
            previous, live[group] = live[group], []
            for place, (loss, token, row) in enumerate(ranked):
                tokens = (*previous[row][1], token)
                if token != IDS.eos:
                    live[group].append((-loss, tokens))
                elif place < beam and len(ended[group]) < beam:
                    ended[group].append((divided(-loss, len(tokens), config), tokens))
            live[group] = live[group][:beam]
    best = [sorted(group, key=lambda item: -item[0]) for group in ended]
    ranked = sorted((item for group in best for item in group), key=lambda item: -item[0])
    return [
        item
        for place, item in enumerate(ranked)
        if item[1] not in [other for _, other in ranked[:place]]
    ]


@settings(max_examples=120, deadline=None)
@given(
    beam=st.integers(1, 3),
    groups=st.integers(2, 4),
    diversity=st.sampled_from([0.0, 0.3, 0.5, 2.0]),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    normalization=st.sampled_from(LengthNormalization),
    min_length=st.integers(0, 3),
    ngram=st.integers(0, 2),
    vocab=st.integers(4, 12),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_a_batch_gives_what_the_papers_algorithm_gives(
    beam: int,
    groups: int,
    diversity: float,
    alpha: float,
    normalization: LengthNormalization,
    min_length: int,
    ngram: int,
    vocab: int,
    seed: int,
    lengths: list[int],
) -> None:
    config = DecodeConfig(
        beam_size=beam * groups,
        nbest=beam * groups,
        beam_groups=groups,
        diversity=diversity,
        length_penalty=alpha,
        length_normalization=normalization,
        min_length=min_length,
        no_repeat_ngram_size=ngram,
        max_length_ratio=1.2,
        max_length_extra=3,
    )
    model = TableModel(vocab, seed=seed, scale=3.0)
    sentences = [seed + place for place in range(len(lengths))]
    found = diverse(model, config, sentences, lengths)
    for sentence, length, hypotheses in zip(sentences, lengths, found, strict=True):
        expected = plain_diverse_search(model, sentence, config, config.length_limit(length))
        check(hypotheses, expected, nbest=len(expected))
        assert len(hypotheses) == len(expected)


def test_one_group_is_beam_search() -> None:
    model = TableModel(9, seed=2, dtype=torch.float32)
    config = DecodeConfig(beam_size=4, nbest=4, max_length=9)
    assert diverse(model, config, [1, 2, 3], [3, 3, 3]) == search(model, config, [1, 2, 3])


def test_the_first_group_is_a_beam_of_its_own_and_the_others_differ_from_it() -> None:
    model = TableModel(12, seed=4, scale=2.0)
    config = DecodeConfig(
        beam_size=4, nbest=4, beam_groups=4, max_length=8, min_length=8, diversity=1e3
    )
    greedy = DecodeConfig(beam_size=1, max_length=8, min_length=8)
    for sentence in range(10):
        (alone,) = search(model, greedy, [sentence])
        (found,) = diverse(model, config, [sentence], [3])
        assert alone[0] in found
        for place in range(8):  # of twelve tokens four at least are free
            assert len({hypothesis.tokens[place] for hypothesis in found}) == 4
        same = replace(config, diversity=0.0)
        (copies,) = diverse(model, same, [sentence], [3])
        assert [copy.tokens for copy in copies] == [alone[0].tokens]  # once


def test_scores_hold_what_was_taken_for_diversity() -> None:
    model = TableModel(6, seed=4, scale=2.0)
    config = DecodeConfig(
        beam_size=2, nbest=2, beam_groups=2, max_length=4, min_length=4, diversity=0.25
    )
    (found,) = diverse(model, config, [7], [3])
    (alone,) = search(model, replace(config, beam_size=1, nbest=1, beam_groups=1), [7])
    first = next(each for each in found if each == alone[0])
    (second,) = (each for each in found if each is not first)
    for place, token in enumerate(second.tokens):
        value = allowed(model, 7, second.tokens[:place], config, limit=4)[token]
        value -= 0.25 * (token == first.tokens[place])
        assert isclose(second.token_scores[place], value, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_groups": 0}, "beam_groups is 0; give a divisor of decode.beam_size"),
        ({"beam_groups": 2, "beam_size": 5}, "beam_groups is 2; give a divisor"),
        ({"beam_groups": 5, "sampling": True}, "samples have no groups"),
        ({"beam_groups": 5, "diversity": -0.5}, "decode.diversity is -0.5"),
        ({"diversity": inf}, "decode.diversity is inf"),
    ],
)
def test_impossible_groups_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(**options)
