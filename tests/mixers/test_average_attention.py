"""Average attention against its equations."""

import pytest
import torch

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.mixers.average_attention import AverageAttentionConfig


@pytest.mark.parametrize("causal", [False, True])
def test_output_is_a_gated_sum_of_input_and_mean(causal: bool) -> None:
    """Zhang et al. (2018), equations 5 to 8."""
    slot = MixerSlot(layer=0, num_layers=1, causal=causal, num_heads=2, ffn_dim=12)
    mixer = AverageAttentionConfig().build(dim=6, slot=slot).double().eval()
    x, mask = torch.randn(2, 5, 6, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    y = mixer(x, mask)
    for t in range(5):
        mean = x[:, : t + 1].mean(dim=1) if causal else x.mean(dim=1)
        context = mixer.outer(mixer.inner(mean).relu())
        gates = mixer.gates(torch.cat([x[:, t], context], dim=-1)).sigmoid()
        expected = gates[:, :6] * x[:, t] + gates[:, 6:] * context
        torch.testing.assert_close(y[:, t], expected, rtol=0, atol=1e-12)


def test_the_feed_forward_is_as_wide_as_the_side_s_own() -> None:
    slot = MixerSlot(layer=0, num_layers=1, causal=True, num_heads=2, ffn_dim=12)
    assert AverageAttentionConfig().build(dim=6, slot=slot).inner.weight.shape == (12, 6)
    assert AverageAttentionConfig(ffn_dim=5).build(dim=6, slot=slot).inner.weight.shape == (5, 6)


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match=r"ffn_dim is 0; give a positive number"):
        AverageAttentionConfig(ffn_dim=0)
    with pytest.raises(ConfigError, match=r"relu_dropout is 1\.0"):
        AverageAttentionConfig(relu_dropout=1.0)
