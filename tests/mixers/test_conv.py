"""What is special to the full convolution."""

import pytest
import torch

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.mixers.conv import ConvConfig
from lightconv_mt.ops.reference import lightconv_reference

SLOT = MixerSlot(layer=1, num_layers=2, causal=False, num_heads=2, ffn_dim=8)


def test_channels_mix() -> None:
    mixer = ConvConfig().build(dim=6, slot=SLOT).double()
    x, mask = torch.randn(1, 4, 6, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    weight = mixer.convolution.weight  # (C, C, K)
    padded = torch.cat([torch.zeros(1, 1, 6), x, torch.zeros(1, 1, 6)], dim=1)
    expected = sum(padded[:, tap : tap + 4] @ weight[:, :, tap].T for tap in range(3))
    torch.testing.assert_close(mixer(x, mask), expected, rtol=0, atol=1e-12)


def test_a_diagonal_one_is_a_depthwise_convolution() -> None:
    mixer = ConvConfig(encoder_kernel_sizes=[5]).build(dim=6, slot=SLOT).double()
    x, mask = torch.randn(2, 9, 6, dtype=torch.float64), torch.ones(2, 9, dtype=torch.bool)
    kernel = torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        mixer.convolution.weight.copy_(torch.diag_embed(kernel.T).permute(1, 2, 0))
    expected = lightconv_reference(x, kernel, padding_left=2, normalize=False)
    torch.testing.assert_close(mixer(x, mask), expected, rtol=0, atol=1e-12)


def test_slot_chooses_the_width() -> None:
    config = ConvConfig(encoder_kernel_sizes=[3, 7], decoder_kernel_sizes=[4])
    encoder = config.build(dim=8, slot=SLOT)
    decoder = config.build(
        dim=8, slot=MixerSlot(layer=2, num_layers=3, causal=True, num_heads=2, ffn_dim=8)
    )
    assert (encoder.kernel_size, encoder.padding_left) == (7, 3)
    assert (decoder.kernel_size, decoder.padding_left) == (4, 3)
    with pytest.raises(ConfigError, match=r"encoder_kernel_sizes has 2 .*encoder_layers is 3"):
        config.check_layers(side="encoder", num_layers=3)


def test_bad_widths_are_named() -> None:
    with pytest.raises(ConfigError, match="decoder_kernel_sizes is .*each 1 or more"):
        ConvConfig(decoder_kernel_sizes=[0])
