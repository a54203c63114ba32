"""Kernels and windows of one width see the same positions, on either side."""

from typing import Any

import pytest
import torch

from lightconv_mt.mixers import MIXERS, MixerSlot

T = 9


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", ["attention", "conv", "depthwise", "lightconv", "dynamicconv"])
def test_a_width_says_what_is_seen(name: str, width: int, causal: bool) -> None:
    key = "windows" if name == "attention" else "kernel_sizes"
    values: dict[str, Any] = {f"{side}_{key}": [width] for side in ("encoder", "decoder")}
    slot = MixerSlot(layer=0, num_layers=1, causal=causal, num_heads=2, ffn_dim=8)
    mixer = MIXERS[name](**values).build(dim=8, slot=slot).double().eval()
    x = torch.randn(1, T, 8, dtype=torch.float64, requires_grad=True)
    y = mixer(x, torch.ones(1, T, dtype=torch.bool))
    first = (width - 1) if causal else width // 2
    for t in range(T):
        (slope,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        seen = (slope[0].abs().sum(dim=-1) > 1e-12).nonzero().flatten().tolist()
        assert seen == list(range(max(t - first, 0), min(t - first + width, T)))
