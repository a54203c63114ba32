"""Source attention of finished outputs, and what coverage makes of it, by hand."""

from math import log

import pytest
import torch
from toy_models import model_of, pair_of

from lightconv_mt.decode import attention
from lightconv_mt.decode.attention import coverage, read_attention
from lightconv_mt.errors import ConfigError

CPU = torch.device("cpu")


def test_coverage_is_equation_14() -> None:
    weights = torch.tensor(
        [
            [0.50, 0.30, 0.10, 0.10],
            [0.70, 0.10, 0.10, 0.10],
            [0.20, 0.20, 0.05, 0.55],
        ]
    )
    # Sums 1.4, 0.6 and 0.25 of the three words; the column of EOS does not count.
    assert coverage(weights) == pytest.approx(log(1.0) + log(0.6) + log(0.25), abs=1e-6)
    assert coverage(torch.tensor([[1.0, 0.0]])) == 0.0
    assert coverage(torch.tensor([[0.0, 1.0]])) == pytest.approx(log(1e-30))


@pytest.mark.parametrize("layer", [1, 2, 3, None])
def test_attention_is_that_of_the_layer_for_each_output_alone(
    layer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(decoder_layers=3).double()
    pair = pair_of()
    sources = [[5, 6, 7, 2], [8, 2], [5, 5, 6, 7, 8, 2], [4, 2]]
    outputs = [[(5, 6, 2), (7, 2)], [], [(8, 8, 8, 8, 2)], [(2,)]]
    with torch.inference_mode():
        found = read_attention(model, pair, sources, outputs, layer=layer, device=CPU)
        assert [len(each) for each in found] == [2, 0, 1, 1]
        for source, some, weights in zip(sources, outputs, found, strict=True):
            for output, each in zip(some, weights, strict=True):
                assert each.shape == (len(output), len(source))
                assert torch.allclose(each.sum(1), torch.ones(len(output)))
                expected = step_by_step(model, source, output, layer=2 if layer is None else layer)
                assert torch.allclose(each, expected, atol=1e-6)
        for most in (1, 10, 40):  # in smaller parts
            monkeypatch.setattr(attention, "MOST_WEIGHTS", most)
            parts = read_attention(model, pair, sources, outputs, layer=layer, device=CPU)
            for some, again in zip(found, parts, strict=True):
                assert all(torch.allclose(a, b) for a, b in zip(some, again, strict=True))


def step_by_step(
    model: torch.nn.Module, source: list[int], output: tuple[int, ...], *, layer: int
) -> torch.Tensor:
    """What the layer's source attention is asked for while a search would decode the output."""
    asked: list[torch.Tensor] = []
    module = model.decoder.layers[layer - 1].source_attention
    hook = module.register_forward_pre_hook(
        lambda module, inputs: asked.append(module.weights(inputs[0], inputs[1], inputs[3]))
    )
    src = torch.tensor([source])
    mask = torch.ones_like(src, dtype=torch.bool)
    state = model.start(model.encode(src, mask), mask, 1)
    for token in (2, *output[:-1]):
        _, state = model.decode_step(torch.tensor([[token]]), state)
    hook.remove()
    return torch.cat([each.mean(1)[0] for each in asked])


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention_layer is 3, but the decoder has 2 layers"):
        read_attention(
            model_of(decoder_layers=2), pair_of(), [[4, 2]], [[(4, 2)]], layer=3, device=CPU
        )


@pytest.mark.parametrize(("layers", "chosen"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_the_layer_that_is_looked_at_unless_another_is_named(layers: int, chosen: int) -> None:
    model = model_of(decoder_layers=layers)
    named, default = (
        read_attention(model, pair_of(), [[4, 5, 2]], [[(4, 2)]], layer=layer, device=CPU)
        for layer in (chosen, None)
    )
    assert torch.equal(named[0][0], default[0][0])
