"""What is special to attention: its windows."""

import pytest
import torch

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.mixers.attention import AttentionConfig, AttentionMixer


def build(window: int | None, *, causal: bool) -> AttentionMixer:
    torch.manual_seed(1)
    windows = None if window is None else [window]
    slot = MixerSlot(layer=0, num_layers=1, causal=causal, num_heads=2, ffn_dim=8)
    config = AttentionConfig(encoder_windows=windows, decoder_windows=windows)
    return config.build(dim=8, slot=slot).double().eval()


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_as_wide_as_the_sentence_is_none(causal: bool) -> None:
    x, mask = torch.randn(2, 9, 8, dtype=torch.float64), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 7:] = False
    wide, full = build(9 if causal else 18, causal=causal), build(None, causal=causal)
    torch.testing.assert_close(wide(x, mask)[mask], full(x, mask)[mask], rtol=0, atol=1e-12)
    narrow = build(8 if causal else 16, causal=causal)(x, mask)
    assert not torch.allclose(narrow[1], full(x, mask)[1])


@pytest.mark.parametrize("window", [1, 4])
@torch.no_grad()
def test_a_window_limits_what_a_step_remembers(window: int) -> None:
    mixer = build(window, causal=True)
    state = mixer.initial_state(3)
    for time in (1, 1, 1, 5):
        _, state = mixer.step(torch.randn(3, time, 8, dtype=torch.float64), state)
        assert state[0].shape[2] <= window - 1
    assert state[0].shape == state[1].shape == (3, 2, window - 1, 4)


def test_windows_are_per_layer_and_side() -> None:
    config = AttentionConfig(encoder_windows=[3, 7])
    slots = [
        MixerSlot(layer=1, num_layers=2, causal=causal, num_heads=2, ffn_dim=8)
        for causal in (False, True)
    ]
    assert [config.build(dim=8, slot=slot).window for slot in slots] == [7, None]
    with pytest.raises(ConfigError, match=r"encoder_windows has 2 .*model\.encoder_layers is 3"):
        config.check_layers(side="encoder", num_layers=3)
    config.check_layers(side="decoder", num_layers=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_windows": []}, "encoder_windows is .*give at least one"),
        ({"decoder_windows": [0]}, "decoder_windows is .*each 1 or more"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0"),
        ({"num_heads": 0}, "num_heads is 0; give a positive"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionConfig(**values)
