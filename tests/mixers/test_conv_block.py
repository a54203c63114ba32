"""What is special to depthwise convolution, LightConv and DynamicConv."""

import pytest
import torch

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.mixers.dynamicconv import DynamicConvConfig
from lightconv_mt.mixers.lightconv import LightConvConfig

SLOT = MixerSlot(layer=1, num_layers=2, causal=False, num_heads=4, ffn_dim=8)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("glu", [True, False])
def test_parameter_counts(glu: bool) -> None:
    """Wu et al. (2019), section 3: LightConv has H x K kernel weights, DynamicConv d x H x K."""
    values = {"encoder_kernel_sizes": [3, 7], "encoder_glu": glu}
    projections = (8 * 16 + 16 if glu else 8 * 8 + 8) + 8 * 8 + 8
    assert parameters(LightConvConfig(**values).build(dim=8, slot=SLOT)) == projections + 4 * 7
    assert (
        parameters(DynamicConvConfig(**values).build(dim=8, slot=SLOT)) == projections + 8 * 4 * 7
    )


def test_channels_of_a_head_share_its_kernel() -> None:
    """Head h serves the contiguous channels h * C / H and on."""
    mixer = (
        LightConvConfig(encoder_kernel_sizes=[3], encoder_glu=False).build(dim=8, slot=SLOT).eval()
    )
    x = torch.randn(1, 5, 1).expand(1, 5, 8)
    y = mixer.convolve(x, x, torch.ones(1, 5, dtype=torch.bool)).view(1, 5, 4, 2)
    torch.testing.assert_close(y[..., 0], y[..., 1])
    assert not torch.allclose(y[..., 0, 0], y[..., 1, 0])


def test_slot_chooses_width_and_side() -> None:
    config = LightConvConfig(
        encoder_kernel_sizes=[3, 7], decoder_kernel_sizes=[5], decoder_conv_dim=16
    )
    encoder = config.build(dim=8, slot=SLOT)
    decoder = config.build(
        dim=8, slot=MixerSlot(layer=0, num_layers=3, causal=True, num_heads=2, ffn_dim=8)
    )
    assert (encoder.kernel_size, encoder.padding_left, encoder.conv_dim) == (7, 3, 8)
    assert (decoder.kernel_size, decoder.padding_left, decoder.conv_dim) == (5, 4, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_kernel_sizes": []}, "encoder_kernel_sizes is .*give at least one"),
        ({"decoder_kernel_sizes": [3, 0]}, "decoder_kernel_sizes is .*each 1 or more"),
        ({"weight_dropout": 1.0}, "weight_dropout is 1.0"),
        ({"input_dropout": -0.1}, "input_dropout is -0.1"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DynamicConvConfig(**values)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 channels, which 3 heads cannot share"):
        LightConvConfig(num_heads=3, encoder_kernel_sizes=[3]).build(dim=8, slot=SLOT)
