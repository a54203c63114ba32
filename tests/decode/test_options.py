"""Every option that acts beyond the search, through the translator."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from sacrebleu import sentence_chrf
from torch import nn
from toy_models import model_of, pair_of

from lightconv_mt.decode.attention import coverage, read_attention
from lightconv_mt.decode.config import DecodeConfig, Utility
from lightconv_mt.decode.ranking import ScoreKind
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.model.transformer import Seq2SeqTransformer

LINES = ["ax b c", "", "d", "b bx cy d a", "cy cy", "a b"]
SHORT: dict[str, Any] = {"ban_unk": True, "max_length_ratio": 1.0, "max_length_extra": 2}


def translator(model: Seq2SeqTransformer | Ensemble, **options: Any) -> Translator:
    return Translator(model, pair_of(), device=torch.device("cpu"), **options)


def test_one_group_changes_no_bit_and_several_give_other_outputs() -> None:
    model = model_of()
    plain = DecodeConfig(beam_size=4, nbest=4, **SHORT)
    found = translator(model).translate(LINES, plain)
    assert translator(model).translate(LINES, replace(plain, beam_groups=1)) == found
    diverse = replace(plain, beam_groups=4, diversity=5.0)
    several = translator(model).translate(LINES, diverse)
    for line, each in zip(LINES, several, strict=True):
        assert len({text[:1] for text, _ in each.nbest}) >= (3 if line else 1)
    assert several != found
    alone = [translator(model).translate([line], diverse)[0] for line in LINES]
    assert [each.text for each in alone] == [each.text for each in several]
    prefixed = translator(model).translate(LINES, diverse, prefixes=["d d"] * len(LINES))
    assert all(text.startswith("d d") for each in prefixed if each.text for text, _ in each.nbest)


def test_a_group_without_diversity_is_a_beam_of_its_size() -> None:
    model = model_of().double()
    beam = DecodeConfig(beam_size=2, nbest=2, **SHORT)
    twice = DecodeConfig(beam_size=4, nbest=4, beam_groups=2, diversity=0.0, **SHORT)
    for one, two in zip(
        translator(model).translate(LINES, beam),
        translator(model).translate(LINES, twice),
        strict=True,
    ):
        assert [text for text, _ in two.nbest] == [text for text, _ in one.nbest]


def test_scores_are_log_probability_plus_coverage() -> None:
    model = model_of().double()
    plain = DecodeConfig(beam_size=6, nbest=6, attention_layer=1, **SHORT)
    penalised = replace(plain, coverage_penalty=0.3)
    before = translator(model).translate(LINES, plain)
    after = translator(model).translate(LINES, penalised)
    assert {each.score_kind for each in after} == {ScoreKind.coverage}
    words, turned = pair_of().src, 0
    for line, first, second in zip(LINES, before, after, strict=True):
        if not line:
            assert second.nbest == (("", 0.0),)
            continue
        expected = {}
        for text, score in first.nbest:
            if text in expected:  # of two segmentations
                continue
            source, output = ([*words.encode_batch([each])[0], 2] for each in (line, text))
            assert words.decode(output) == text
            with torch.inference_mode():
                ((weights,),) = read_attention(
                    model, pair_of(), [source], [[output]], layer=1, device=torch.device("cpu")
                )
            expected[text] = score + 0.3 * coverage(weights)
        found = {}
        for text, score in second.nbest:
            found.setdefault(text, score)
        assert found == pytest.approx(expected, abs=1e-6)
        turned += first.text != second.text
    assert turned
    single = translator(model).translate(LINES, replace(penalised, nbest=1))
    assert [each.nbest for each in single] == [each.nbest[:1] for each in after]


@pytest.mark.parametrize("way", [{}, {"beam_groups": 3}, {"sampling": True}])
def test_scores_are_log_probability_plus_that_of_the_source(way: dict[str, Any]) -> None:
    model = model_of().double()
    back = translator(Ensemble([model_of(seed=5).double(), model_of(seed=6).double()]))
    plain = DecodeConfig(beam_size=6, nbest=6, **way, **SHORT)
    before = translator(model).translate(LINES, plain)
    ranked = replace(plain, channel_weight=0.4)
    after = translator(model, channel=back).translate(LINES, ranked)
    assert {each.score_kind for each in after} == {ScoreKind.channel}
    turned = 0
    for line, first, second in zip(LINES, before, after, strict=True):
        if not line:
            assert second.nbest == (("", 0.0),)
            continue
        texts = [text for text, _ in first.nbest]
        likely = [each.log_prob / each.tokens for each in back.score(texts, [line] * len(texts))]
        expected = sorted(
            (-score - 0.4 * add, text)
            for (text, score), add in zip(first.nbest, likely, strict=True)
        )
        found = sorted((-score, text) for text, score in second.nbest)
        assert [text for _, text in found] == [text for _, text in expected]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected])
        assert second.text == expected[0][1]
        turned += first.text != second.text
    assert turned
    single = translator(model, channel=back).translate(LINES, replace(ranked, nbest=1))
    assert [each.nbest for each in single] == [each.nbest[:1] for each in after]


def test_an_output_in_a_channels_order_depends_on_no_other_line() -> None:
    one = translator(model_of(), channel=translator(model_of(seed=5)))
    config = DecodeConfig(beam_size=4, nbest=4, channel_weight=0.4, strict=True, **SHORT)
    together = one.translate(LINES * 3, config)
    assert together == [one.translate([line], config)[0] for line in LINES * 3]


def test_a_channel_is_asked_about_what_the_model_was_given() -> None:
    back = translator(model_of(seed=5))
    config = DecodeConfig(beam_size=4, nbest=4, channel_weight=0.4, **SHORT)
    cut = translator(model_of(), channel=back, max_source_tokens=4)
    whole = translator(model_of(), channel=back)
    (found,) = cut.translate(["b bx cy d a"], config)
    (expected,) = whole.translate(["b bx"], config)
    assert found == expected


def test_a_weight_without_a_channel_is_refused() -> None:
    with pytest.raises(ConfigError, match="channel_weight is 0.4, but there is no channel; load"):
        translator(model_of()).translate(LINES, DecodeConfig(channel_weight=0.4))


def test_the_sample_most_like_the_others_is_chosen() -> None:
    model = model_of()
    samples = DecodeConfig(beam_size=8, nbest=8, sampling=True, **SHORT)
    drawn = translator(model).translate(LINES, samples)
    config = replace(samples, mbr=Utility.chrf, nbest=3)
    found = translator(model).translate(LINES, config)
    assert {each.score_kind for each in found} == {ScoreKind.utility}
    assert found == translator(model).translate(LINES, config)
    assert found != translator(model).translate(LINES, replace(config, seed=2))
    for line, each, all_drawn in zip(LINES, found, drawn, strict=True):
        if not line:
            assert each.nbest == (("", 0.0),)
            continue
        texts = [text for text, _ in all_drawn.nbest]
        utilities = {
            text: sum(sentence_chrf(text, [other]).score for other in texts) for text in texts
        }
        for text in utilities:
            utilities[text] = (utilities[text] - sentence_chrf(text, [text]).score) / 7
        best = sorted(utilities.values(), reverse=True)[:3]
        assert [score for _, score in each.nbest] == pytest.approx(best)
        assert utilities[each.text] == pytest.approx(best[0])


def diagonal_model() -> Seq2SeqTransformer:
    """Attends from step t to source position t: embeddings are positions, and pass unchanged."""
    model = model_of(decoder_layers=1, encoder_layers=1, dim=16, num_heads=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and name != "output_projection":
                parameter.zero_()
        attention = model.decoder.layers[0].source_attention
        for projection in (attention.query, attention.key):
            nn.init.eye_(projection.weight)
            projection.weight.mul_(3.0)
    return model


@pytest.mark.parametrize(
    ("line", "output", "links"),
    [
        ("a b c d", "d c b a", ((0, 0), (1, 1), (2, 2), (3, 3))),
        # Steps go on behind the source, where EOS is next and c nearest.
        ("axx b c", "b cy d a b", ((0, 0), (0, 1), (1, 2), (2, 3), (2, 4))),
        # The output's pieces are d | c y x | a | b, steps 0 | 1 2 3 | 4 | 5.
        ("a  bxx cyy", " d cyx a b ", ((0, 0), (1, 1), (2, 2), (2, 3))),
        ("a b", "c", ((0, 0),)),
    ],
)
def test_links_follow_the_attention_of_a_model_set_by_hand(
    line: str, output: str, links: tuple[tuple[int, int], ...]
) -> None:
    one = translator(diagonal_model())
    config = DecodeConfig(
        beam_size=2, max_length=0, min_length=0, max_length_extra=0, alignments=True
    )
    found = one.translate(["", line], config, prefixes=["", output])
    assert found[1].text == " ".join(output.split())
    assert found[1].alignment == links
    assert found[0].alignment == ()
    assert one.translate([line], replace(config, alignments=False))[0].alignment is None


def test_a_line_without_output_has_no_link_and_a_cut_source_none_to_its_end() -> None:
    model = diagonal_model()
    one = Translator(model, pair_of(), device=torch.device("cpu"), max_source_tokens=3)
    config = DecodeConfig(beam_size=1, max_length=0, min_length=0, alignments=True)
    (found,) = one.translate(["a b c d"], config, prefixes=["d d"])
    assert found.alignment == ((0, 0), (1, 1))
    nn.init.constant_(model.output_weight, float("nan"))
    (failed,) = one.translate(["a b"], config)
    assert (failed.text, failed.alignment, one.report.failed) == ("", (), 1)
