"""Sampling: the model's own frequencies, one output a line whatever the batch."""

from collections import Counter
from math import exp, inf

import pytest
import torch
from table_model import IDS, TableModel

from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.sampling import _uniform, draw, sample
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.errors import ConfigError

MODEL = TableModel(7, seed=3)


def drawn(
    sentences: list[int], lines: list[int] | None = None, **options: object
) -> list[list[Hypothesis]]:
    config = DecodeConfig(sampling=True, max_length=6, min_length=0, **options)
    numbers = torch.tensor(sentences)
    return sample(
        MODEL.step,
        MODEL.start(numbers, config.beam_size),
        src_lengths=torch.full_like(numbers, 3),
        lines=torch.tensor(lines or sentences),
        ids=IDS,
        config=config,
    )


def test_first_tokens_come_as_often_as_the_model_says() -> None:
    (found,) = drawn([5], beam_size=1000, nbest=1000)
    counts = Counter(hypothesis.tokens[0] for hypothesis in found)
    logp = MODEL.logp(5, ())
    possible = {token: exp(value) for token, value in enumerate(logp) if token != IDS.pad}
    total = sum(possible.values())
    for token, probability in possible.items():
        expected = 1000 * probability / total
        assert abs(counts[token] - expected) < 5 * max(expected, 1) ** 0.5, token
    assert IDS.pad not in counts


def test_scores_are_the_models_own() -> None:
    for hypothesis in drawn([5], beam_size=20, nbest=20, temperature=0.5)[0]:
        prefix, *_ = hypothesis.tokens[:-1], None
        expected = [
            MODEL.logp(5, prefix[:place])[token] for place, token in enumerate(hypothesis.tokens)
        ]
        if len(prefix) == 6:  # EOS is forced, its probability is what it is
            assert hypothesis.tokens[-1] == IDS.eos
        assert hypothesis.token_scores == pytest.approx(expected)
        assert hypothesis.score == pytest.approx(sum(expected) / len(expected))


def test_an_output_depends_on_its_line_and_seed_alone() -> None:
    together = drawn([5, 9, 5, 2], [0, 1, 2, 3], beam_size=4, nbest=4)
    for place, sentence in enumerate([5, 9, 5, 2]):
        assert drawn([sentence], [place], beam_size=4, nbest=4) == [together[place]]
    assert together[0] != together[2]  # the same sentence on another line
    assert drawn([5], [0], beam_size=4, nbest=4, seed=2) != [together[0]]


def test_no_two_lines_of_any_two_seeds_share_a_draw() -> None:
    lines = torch.arange(64)
    seeds = [*range(16), 2**32 - 1]
    drawn = torch.cat([_uniform(seed, lines, 2, 0) for seed in seeds])
    assert len(drawn.unique()) == len(seeds) * 128
    assert drawn.min() > 1e-5 and drawn.max() < 1 - 1e-5
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)


def test_draws_keep_to_the_likeliest() -> None:
    logp = torch.tensor([[0.4, 0.1, 0.3, 0.15, 0.05]]).log().expand(2000, -1)
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000

    def frequencies(**options: object) -> list[float]:
        chosen = draw(logp, uniform, DecodeConfig(sampling=True, **options))
        return (torch.bincount(chosen, minlength=5) / 2000).tolist()

    def normalized(values: list[float]) -> list[float]:
        return [value / sum(values) for value in values]

    near = {"abs": 1e-3}
    assert frequencies() == pytest.approx([0.4, 0.1, 0.3, 0.15, 0.05], **near)
    assert frequencies(top_k=2) == pytest.approx(normalized([0.4, 0, 0.3, 0, 0]), **near)
    # 0.4 + 0.3 fall short of 0.75, so the third is in.
    assert frequencies(top_p=0.75) == pytest.approx(normalized([0.4, 0, 0.3, 0.15, 0]), **near)
    assert frequencies(top_p=1e-9) == [1, 0, 0, 0, 0]
    squares = [0.16, 0.01, 0.09, 0.0225, 0.0025]
    assert frequencies(temperature=0.5) == pytest.approx(normalized(squares), **near)
    assert frequencies(temperature=1e-4) == pytest.approx([1, 0, 0, 0, 0])


@pytest.mark.parametrize("vocab", [5, 128, 129, 1000])
def test_a_draw_from_all_is_by_their_probabilities(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(vocab, generator=generator) * 2
    logits[::3] = -inf
    count = 200_000 // vocab
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    uniform[[0, -1]] = torch.tensor([1e-300, 1 - 2**-53], dtype=torch.float64)
    chosen = draw(logits.expand(count, -1), uniform, DecodeConfig(sampling=True, temperature=2.0))
    assert (chosen.diff() >= 0).all()
    expected = (logits.double() / 2).softmax(-1)
    found = torch.bincount(chosen, minlength=vocab).double() / count
    assert len(found) == vocab
    assert (found - expected).abs().max() < 2 / count + 1e-6
    assert not found[::3].any()


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_temperature_is_between_the_likeliest_and_all_alike(
    top_k: int, dtype: torch.dtype
) -> None:
    logp = torch.tensor([[-2.0, -0.5, -inf, -1.5, -3.0]], dtype=dtype).expand(4, -1)
    uniform = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)

    def chosen(temperature: float) -> list[int]:
        config = DecodeConfig(sampling=True, top_k=top_k, temperature=temperature)
        return sorted(draw(logp, uniform, config).tolist())

    for low in (1e-30, 1e-40, 5e-324):
        assert chosen(low) == [1, 1, 1, 1]
    for high in (1e30, 1e300, inf):
        assert chosen(high) == [0, 1, 3, 4]


def test_what_is_impossible_is_not_drawn() -> None:
    logp = torch.tensor([[-inf, 0.0, -inf], [-inf, -inf, -inf]])
    chosen = draw(logp, torch.tensor([0.999, 0.5], dtype=torch.float64), DecodeConfig())
    assert chosen[0] == 1


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_limits_of_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="give a number above 0"):
        DecodeConfig(**options)
