"""What is special to attention over kernels."""

from typing import Any

import pytest
import torch

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.mixers.kernel_attention import KernelAttentionConfig, KernelAttentionMixer
from lightconv_mt.mixers.lightconv import LightConvConfig


def slot(causal: bool) -> MixerSlot:
    return MixerSlot(layer=0, num_layers=1, causal=causal, num_heads=2, ffn_dim=8)


def build(*, causal: bool = False, **values: Any) -> KernelAttentionMixer:
    sizes = {f"{side}_kernel_sizes": [5] for side in ("encoder", "decoder")}
    config = KernelAttentionConfig(**sizes, **values)
    return config.build(dim=8, slot=slot(causal)).double().eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 9, 8, dtype=torch.float64), torch.ones(3, 9, dtype=torch.bool)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_single_kernel_is_lightconv(normalize: bool, causal: bool) -> None:
    mixer = build(causal=causal, num_kernels=1, normalize=normalize)
    sizes = {f"{side}_kernel_sizes": [5] for side in ("encoder", "decoder")}
    light = LightConvConfig(normalize=normalize, **sizes).build(dim=8, slot=slot(causal)).double()
    shared = {name: value for name, value in mixer.state_dict().items() if "projection" in name}
    light.load_state_dict({**shared, "kernel": mixer.kernels[0]})
    x, mask = inputs()
    torch.testing.assert_close(mixer(x, mask), light.eval()(x, mask), rtol=0, atol=1e-12)


def test_mixtures_are_convex_and_flatten_with_the_temperature() -> None:
    mean = torch.randn(2, 3, 8, dtype=torch.float64)
    mixed = build().mix_kernels(mean)
    assert mixed.shape == (2, 3, 2, 5)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(2, 3, 2, dtype=torch.float64))
    hot = build(temperature=1e9, normalize=False)
    torch.testing.assert_close(hot.mix_kernels(mean)[1, 2], hot.kernels.mean(0))
    cold = build(temperature=1e-9, normalize=False)
    chosen = cold.excite(cold.squeeze(mean).relu()).argmax(-1)
    torch.testing.assert_close(cold.mix_kernels(mean), cold.kernels[chosen])


def test_a_sentence_has_one_mixture_in_the_encoder_and_one_a_position_in_the_decoder() -> None:
    x, mask = inputs()
    for causal in (False, True):
        mixer, seen = build(causal=causal), []
        mixer.excite.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        mixer(x, mask)
        assert seen[0].shape == (3, 9 if causal else 1, 4)


def test_the_squeeze_is_narrower_but_never_empty() -> None:
    assert build(reduction=4).squeeze.weight.shape == (2, 8)
    assert build(reduction=100).squeeze.weight.shape == (1, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_kernels": 0}, "num_kernels is 0; give a positive"),
        ({"temperature": 0.0}, r"temperature is 0\.0; give a positive"),
        ({"reduction": -1}, "reduction is -1; give a positive"),
        ({"weight_dropout": 1.0}, "weight_dropout is 1.0"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KernelAttentionConfig(**values)
