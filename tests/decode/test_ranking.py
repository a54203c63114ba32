"""Outputs in the order of coverage, of a channel and of expected utility, by formula."""

import pytest
import torch
from sacrebleu import sentence_bleu, sentence_chrf

from lightconv_mt.decode.config import DecodeConfig, Utility
from lightconv_mt.decode.ranking import (
    Output,
    ScoreKind,
    rank_by_channel,
    rank_by_coverage,
    rank_by_utility,
    search_config,
)
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.errors import ConfigError

MEASURES = {Utility.chrf: sentence_chrf, Utility.bleu: sentence_bleu}


def output(text: str, score: float = 0.0) -> Output:
    return Output(Hypothesis((2,), score, (score,)), text, score)


def test_coverage_can_overturn_the_order() -> None:
    first, second = output("short", -0.5), output("whole", -0.6)
    skipping = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]])  # coverage log 1 + log 0.2
    covering = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # coverage 0
    kept = rank_by_coverage([first, second], [skipping, covering], penalty=0.01)
    assert [each.text for each in kept] == ["short", "whole"]
    assert kept[0].score == pytest.approx(-0.5 + 0.01 * torch.tensor(0.2).log().item())
    turned = rank_by_coverage([first, second], [skipping, covering], penalty=0.2)
    assert [each.text for each in turned] == ["whole", "short"]
    assert turned[0].score == -0.6
    assert turned[0].hypothesis.score == -0.6
    assert turned[1].hypothesis.score == -0.5  # which stays a log-probability


def test_a_channel_can_overturn_the_order() -> None:
    outputs = [output("fluent", -0.5), output("faithful", -0.6)]
    kept = rank_by_channel(outputs, [-2.0, -1.0], weight=0.05)
    assert [(each.text, each.score) for each in kept] == [("fluent", -0.6), ("faithful", -0.65)]
    turned = rank_by_channel(outputs, [-2.0, -1.0], weight=0.2)
    assert [each.text for each in turned] == ["faithful", "fluent"]
    assert [each.score for each in turned] == pytest.approx([-0.8, -0.9])
    assert turned[0].hypothesis.score == -0.6  # which stays a log-probability
    same = rank_by_channel(outputs, [-1.0, -0.5], weight=0.2)
    assert [each.text for each in same] == ["fluent", "faithful"]  # equal scores stay in order


@pytest.mark.parametrize("utility", Utility)
def test_expected_utility_is_the_mean_against_the_others(utility: Utility) -> None:
    texts = [
        "a man is standing on a ladder .",
        "a man stands on the ladder .",
        "a man is standing on a ladder .",
        "two dogs",
        "",
        "a man is standing on his ladder and looks",
    ]
    measure = MEASURES[utility]
    expected = [
        sum(measure(text, [other]).score for m, other in enumerate(texts) if m != n) / 5
        for n, text in enumerate(texts)
    ]
    found = rank_by_utility([output(text) for text in texts], utility)
    assert len(found) == 5  # one was drawn twice
    assert {each.text: each.score for each in found} == pytest.approx(
        dict(zip(texts, expected, strict=True))
    )
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert found[0].text == texts[0]


def test_one_sample_has_no_others() -> None:
    assert [each.score for each in rank_by_utility([output("a", -3.0)], Utility.chrf)] == [0.0]
    assert rank_by_utility([], Utility.chrf) == []


def test_all_hypotheses_are_kept_for_an_order_that_comes_later() -> None:
    plain = DecodeConfig(beam_size=4)
    assert search_config(plain) is plain
    assert search_config(DecodeConfig(beam_size=4, coverage_penalty=0.1)).nbest == 4
    assert search_config(DecodeConfig(beam_size=4, channel_weight=0.1)).nbest == 4
    sampled = DecodeConfig(beam_size=4, mbr=Utility.bleu, sampling=True)
    assert search_config(sampled).nbest == 4
    kinds = [ScoreKind.of(each) for each in (plain, sampled)]
    assert kinds == [ScoreKind.log_prob, ScoreKind.utility]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mbr": Utility.chrf}, "decode.mbr=chrf chooses among samples; set decode.sampling=true"),
        ({"mbr": Utility.bleu, "sampling": True, "beam_size": 1}, "decode.beam_size is 1"),
        (
            {"mbr": Utility.bleu, "sampling": True, "coverage_penalty": 0.2},
            "decode.mbr and decode.coverage_penalty both order",
        ),
        (
            {"mbr": Utility.bleu, "sampling": True, "channel_weight": 0.2},
            "decode.mbr and decode.channel_weight both order the outputs; set one of them",
        ),
        (
            {"coverage_penalty": 0.1, "channel_weight": 0.2},
            "decode.coverage_penalty and decode.channel_weight both order",
        ),
        ({"channel_weight": -0.1}, "decode.channel_weight is -0.1; give 0 or more"),
        ({"coverage_penalty": -0.1}, "decode.coverage_penalty is -0.1; give 0 or more"),
        ({"attention_layer": 0}, "decode.attention_layer is 0; give 1 or more, or null"),
    ],
)
def test_orders_that_contradict_each_other_are_refused(
    options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(**options)
