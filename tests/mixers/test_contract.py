"""One contract for every mixer that is registered."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from lightconv_mt.mixers import MIXERS, MixerSlot, MixerState, TokenMixer
from lightconv_mt.mixers.dynamicconv import Query
from lightconv_mt.ops import Backend, resolve_backend

DIM, HEADS = 12, 2
WIDTHS = [1, 2, 3, 4, 7, 31, 63]
# Every mixer as it is by default, and what its options make of it; windows are as wide as kernels.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in sorted(MIXERS)},
    "attention, windows": ("attention", {"encoder_windows": [5], "decoder_windows": [5]}),
    "depthwise, shared": ("depthwise", {"num_heads": HEADS}),
    "lightconv, no softmax, no GLU": (
        "lightconv",
        {"normalize": False, "encoder_glu": False, "decoder_glu": False},
    ),
    "dynamicconv, no softmax": ("dynamicconv", {"normalize": False}),
    "dynamicconv, renormalised": ("dynamicconv", {"renormalize_edges": True}),
    "dynamicconv, query": (
        "dynamicconv",
        {"query": Query.input, "encoder_conv_dim": 8, "decoder_conv_dim": 8},
    ),
    "kernel_attention, no softmax": ("kernel_attention", {"normalize": False, "temperature": 1.0}),
    "average_attention, narrow": ("average_attention", {"ffn_dim": 5}),
}


def build(variant: str, *, causal: bool, width: int = 5, **values: Any) -> TokenMixer:
    name, options = VARIANTS[variant]
    known = {field.name for field in fields(MIXERS[name])}
    sizes = {f"{side}_kernel_sizes": [width] for side in ("encoder", "decoder")}
    windows = {key: [width] for key in options if key.endswith("_windows")}
    config_values = {key: value for key, value in {**sizes, **values}.items() if key in known}
    backend = resolve_backend(Backend.auto, device=torch.device("cpu"))
    slot = MixerSlot(
        layer=0, num_layers=1, causal=causal, num_heads=HEADS, ffn_dim=DIM, backend=backend
    )
    config = MIXERS[name](**{**options, **windows, **config_values})
    return config.build(dim=DIM, slot=slot).double().eval()


def inputs(time: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, time, DIM, dtype=torch.float64), torch.ones(
        batch, time, dtype=torch.bool
    )


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("time", [1, 2, 9])
def test_output_has_the_input_s_shape_and_dtype(name: str, width: int, time: int) -> None:
    x, mask = inputs(time)
    for causal in (False, True):
        mixer = build(name, causal=causal, width=width)
        y = mixer(x, mask)
        assert y.shape == x.shape
        assert y.isfinite().all()
        assert mixer.float()(x.float(), mask).dtype is torch.float32
        assert mixer.bfloat16()(x.bfloat16(), mask).dtype is torch.bfloat16


@pytest.mark.parametrize("width", WIDTHS)
def test_causal_mixers_do_not_see_the_future(name: str, width: int) -> None:
    mixer = build(name, causal=True, width=width)
    x, mask = inputs(9)
    before = mixer(x, mask)
    for position in range(1, 9):
        changed = x.clone()
        changed[:, position:] = torch.randn(3, 9 - position, DIM, dtype=torch.float64)
        torch.testing.assert_close(
            mixer(changed, mask)[:, :position], before[:, :position], rtol=0, atol=1e-12
        )


def test_encoder_mixers_see_both_neighbours(name: str) -> None:
    mixer = build(name, causal=False, width=5)
    x, mask = inputs(9)
    before = mixer(x, mask)
    for changed_position, seen_from in ((3, 4), (5, 4)):
        changed = x.clone()
        changed[:, changed_position] += 1.0
        assert not torch.allclose(mixer(changed, mask)[:, seen_from], before[:, seen_from])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("content", [0.0, 1e6, float("nan")])
def test_padding_never_reaches_a_real_position(
    name: str, causal: bool, width: int, content: float
) -> None:
    mixer = build(name, causal=causal, width=width)
    x, mask = inputs(6)
    alone = mixer(x, mask)
    for padding in (1, 3, 40):
        padded = torch.cat([x, torch.full((3, padding, DIM), content, dtype=torch.float64)], dim=1)
        longer = torch.cat([mask, torch.zeros(3, padding, dtype=torch.bool)], dim=1)
        y = mixer(padded, longer)
        torch.testing.assert_close(y[:, :6], alone, rtol=0, atol=1e-12)
        assert y.isfinite().all()  # source attention multiplies it by zero


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16])
@torch.no_grad()
def test_steps_equal_forward(name: str, width: int, chunk: int) -> None:
    mixer = build(name, causal=True, width=width)
    x, mask = inputs(16)
    state = mixer.initial_state(3)
    outputs = []
    for start in range(0, 16, chunk):
        y, state = mixer.step(x[:, start : start + chunk], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), mixer(x, mask), rtol=0, atol=1e-12)


@torch.no_grad()
def test_state_rows_can_be_reordered_and_repeated(name: str) -> None:
    mixer = build(name, causal=True, width=4)
    x, mask = inputs(8)
    rows = torch.tensor([2, 0, 0, 1])
    _, state = mixer.step(x[:, :5], mixer.initial_state(3))
    reordered: MixerState = tuple(tensor.index_select(0, rows) for tensor in state)
    y, _ = mixer.step(x[rows, 5:], reordered)
    torch.testing.assert_close(y, mixer(x, mask)[rows, 5:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_reach_the_input_and_every_parameter(name: str, causal: bool) -> None:
    mixer = build(name, causal=causal).train()
    x, mask = inputs(9)
    x.requires_grad_()
    (mixer(x, mask) * torch.randn_like(x)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    for key, parameter in mixer.named_parameters():
        # A softmax does not feel a constant added to all its scores.
        if not key.endswith("key.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, key


def test_training_differs_by_dropout_and_repeats_with_the_seed(name: str) -> None:
    dropouts = [
        key for key in MIXERS[VARIANTS[name][0]].__dataclass_fields__ if key.endswith("dropout")
    ]
    mixer = build(name, causal=False, **dict.fromkeys(dropouts, 0.5)).train()
    x, mask = inputs(9)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(mixer(x, mask))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) == (not dropouts)


@torch.no_grad()
def test_steps_and_forward_agree_in_mixed_precision(name: str) -> None:
    mixer = build(name, causal=True).float()
    x, mask = inputs(9)
    x = x.float()
    exact, state, outputs = mixer(x, mask), mixer.initial_state(3), []
    with torch.autocast("cpu", torch.bfloat16):
        whole = mixer(x, mask).float()
        for start in (0, 1, 5):
            y, state = mixer.step(x[:, start : {0: 1, 1: 5, 5: 9}[start]], state)
            outputs.append(y.float())
    torch.testing.assert_close(whole, exact, rtol=0.02, atol=0.03)
    torch.testing.assert_close(torch.cat(outputs, dim=1), exact, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("causal", [False, True])
def test_mixers_compile_in_one_graph(name: str, causal: bool) -> None:
    mixer = build(name, causal=causal)
    x, mask = inputs(9)
    torch.compiler.reset()  # else the variants count as one module that keeps changing
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask), mixer(x, mask), rtol=0, atol=1e-12)
