"""An ensemble is the mean of its models' probabilities, however it is asked."""

from typing import Any

import pytest
import torch
from toy_models import model_of, pair_of

from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translator import Translator
from lightconv_mt.model.ensemble import Ensemble, JointDecoder, log_mean
from lightconv_mt.model.search_model import SearchModel
from lightconv_mt.ops import Backend

LINES = ["ax b c", "", "d", "b bx cy d a", "cy cy", "a b"]
SEARCH = DecodeConfig(
    beam_size=4, nbest=4, ban_unk=True, max_length_ratio=1.0, max_length_extra=3, alignments=True
)


def translator(model: torch.nn.Module) -> Translator:
    return Translator(model, pair_of(), device=torch.device("cpu"))


def test_probabilities_are_averaged() -> None:
    models = [model_of(seed=1), model_of(seed=2, dim=24, decoder_layers=1)]
    both = Ensemble(models).eval()
    src = torch.tensor([[3, 4, 5, 2], [6, 7, 2, 1]])
    mask = src != 1
    tgt = torch.tensor([[2, 3, 4], [2, 8, 5]])
    with torch.inference_mode():
        whole = both.project(both(src, mask, tgt, torch.ones_like(tgt, dtype=torch.bool)))
        expected = torch.stack(
            [
                each.project(each(src, mask, tgt, torch.ones_like(tgt, dtype=torch.bool))).softmax(
                    -1
                )
                for each in models
            ]
        ).mean(0)
        assert torch.allclose(whole.exp(), expected, atol=1e-6)
        joint = JointDecoder(
            [SearchModel(each, torch.float32, native=False, steps=False) for each in models]
        )
        state = joint.begin(src, mask, 1)
        for place in range(3):
            step, state = joint.decode_step(tgt[:, place : place + 1], state)
            assert torch.allclose(step[:, 0], whole[:, place], atol=1e-4)
    assert torch.allclose(log_mean([torch.zeros(1, 4)] * 3), torch.full((1, 4), 0.25).log())


@pytest.mark.parametrize("backend", [Backend.torch, Backend.native])
@pytest.mark.parametrize("options", [{}, {"beam_groups": 2}, {"strict": True}, {"sampling": True}])
def test_a_model_twice_is_that_model(backend: Backend, options: dict[str, Any]) -> None:
    model = model_of(backend=backend)
    search = DecodeConfig(**{**vars(SEARCH), **options})
    alone = translator(model).translate(LINES * 3, search, batch_size=4)
    twice = translator(Ensemble([model, model])).translate(LINES * 3, search, batch_size=4)
    for one, two in zip(alone, twice, strict=True):
        assert [text for text, _ in one.nbest] == [text for text, _ in two.nbest]
        assert [score for _, score in one.nbest] == pytest.approx(
            [score for _, score in two.nbest], abs=1e-5
        )
        assert one.alignment == two.alignment


def test_the_steps_of_different_models_in_cpp_find_the_same() -> None:
    sizes: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "dim": 24, "decoder_layers": 1}]
    plain, native = (
        translator(Ensemble([model_of(backend=backend, **size) for size in sizes]))
        for backend in (Backend.torch, Backend.native)
    )
    expected = plain.translate(LINES * 5, SEARCH)
    found = native.translate(LINES * 5, SEARCH, batch_size=4)
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected])


def test_two_models_have_an_opinion_of_their_own_and_score_as_they_search() -> None:
    models = [model_of(seed=seed).double() for seed in (1, 2)]
    both = translator(Ensemble(models))
    config = DecodeConfig(**{**vars(SEARCH), "length_penalty": 0.0, "max_length": 5})
    found = both.translate(LINES, config)
    assert all(
        [each.text for each in found] != [each.text for each in alone]
        for alone in (translator(model).translate(LINES, config) for model in models)
    )
    probabilities = [
        [score.log_prob for score in each.score(LINES, [item.text for item in found])]
        for each in (both, *map(translator, models))
    ]
    for place, item in enumerate(found):
        if LINES[place]:
            assert item.score == pytest.approx(probabilities[0][place])
