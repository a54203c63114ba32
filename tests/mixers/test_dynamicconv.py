"""DynamicConv's options against what fairseq's module computed, whole sequences and steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerSlot
from lightconv_mt.mixers.dynamicconv import DynamicConvConfig, DynamicConvMixer, Query


def build(case: dict[str, Any], weight: Tensor) -> DynamicConvMixer:
    """The mixer of a recorded module; its projections take no part."""
    side = "decoder" if case["mode"] == "causal" else "encoder"
    config = DynamicConvConfig(
        num_heads=case["H"],
        normalize=case["weight_softmax"],
        renormalize_edges=case["renorm_padding"],
        query=Query.input if case["query"] else Query.convolved,
        **{f"{side}_kernel_sizes": [case["K"]], f"{side}_conv_dim": case["C"]},
    )
    slot = MixerSlot(
        layer=0, num_layers=1, causal=side == "decoder", num_heads=case["H"], ffn_dim=8
    )
    mixer = config.build(dim=case["query_size"], slot=slot).double().eval()
    assert mixer.padding_left == case["padding_l"]
    with torch.no_grad():
        mixer.kernel_predictor.weight.copy_(weight)
    return mixer


def cases(folder: Path) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Cases that use no module option which models never have: biases, one joint projection."""
    tensors = load_file(folder / "conv_dynamic.safetensors")
    named = {key: each.double() for key, each in tensors.items()}
    return [
        (case, {key.split(".", 1)[1]: each for key, each in named.items() if case["id"] in key})
        for case in json.loads((folder / "conv_dynamic.json").read_text())
        if not (case["linear_bias"] or case["conv_bias"] or case["in_proj"])
    ]


def test_whole_sequences_and_their_gradients_are_fairseq_s(golden: Path) -> None:
    kinds = set()
    for case, tensors in cases(golden):
        mixer = build(case, tensors["weight_linear.weight"])
        x = tensors["x"].transpose(0, 1).clone().requires_grad_()
        query = tensors["query"].transpose(0, 1).clone() if case["query"] else x
        if case["query"]:
            query.requires_grad_()
        y = mixer.convolve(x, query, torch.ones(x.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(y.transpose(0, 1), tensors["y"], rtol=1e-5, atol=1e-5)
        (y.transpose(0, 1) * tensors["grad_out"]).sum().backward()
        slopes = [(x.grad, "dx")] + [(query.grad, "dquery")] * case["query"]
        for slope, name in slopes:
            torch.testing.assert_close(slope.transpose(0, 1), tensors[name], rtol=1e-5, atol=1e-5)
        slope = mixer.kernel_predictor.weight.grad
        torch.testing.assert_close(slope, tensors["d.weight_linear.weight"], rtol=1e-5, atol=1e-5)
        kinds.add((case["mode"], case["query"], case["renorm_padding"]))
    assert {kind[1:] for kind in kinds} == {(False, False), (True, False), (False, True)}


@torch.no_grad()
def test_steps_are_fairseq_s(golden: Path) -> None:
    checked = 0
    for case, tensors in cases(golden):
        if case["mode"] != "causal":
            continue
        mixer = build(case, tensors["weight_linear.weight"])
        x = tensors["x"].transpose(0, 1).contiguous()
        query = tensors["query"].transpose(0, 1) if case["query"] else x
        ring, position = (each.clone() for each in mixer.initial_state(x.shape[0]))
        for time in range(x.shape[1]):
            new = slice(time, time + 1)
            y, _ = mixer.convolve_step(x[:, new], query[:, new], (ring, position))
            torch.testing.assert_close(y[:, 0], tensors["y"][time], rtol=1e-5, atol=1e-5)
            position = position + 1
        checked += 1
    assert checked >= 5


def test_the_edge_is_where_the_sentence_ends_not_the_batch() -> None:
    case = {"H": 1, "K": 3, "C": 4, "query_size": 4, "mode": "same", "padding_l": 1}
    case |= {"weight_softmax": True, "renorm_padding": True, "query": False}
    mixer = build(case, torch.zeros(3, 4))
    x, mask = torch.ones(1, 5, 4, dtype=torch.float64), torch.arange(5)[None] < 3
    y = mixer.convolve(x * mask[..., None], x, mask)
    torch.testing.assert_close(y[:, :3], x[:, :3])  # without it 2 / 3 at both ends
    assert y.isfinite().all()


def test_renormalising_needs_a_softmax() -> None:
    with pytest.raises(ConfigError, match="renormalize_edges needs the softmax"):
        DynamicConvConfig(normalize=False, renormalize_edges=True)
