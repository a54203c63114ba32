"""Run by tests/ops/test_triton.py with TRITON_INTERPRET=1."""

import os
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops import reference, triton_dynamicconv, triton_lightconv, triton_step

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/ops/test_triton.py"

# Largest error allowed, relative to the largest value of what is compared.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
MODULES = {"lightconv": triton_lightconv, "dynamicconv": triton_dynamicconv}
LAYOUTS = ("plain", "time first", "slice", "channels apart")


@pytest.fixture(autouse=True)
def outputs_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    for module in (*MODULES.values(), triton_step):
        monkeypatch.setattr(module, "empty", full)


def cases() -> list[tuple[Any, ...]]:
    """Every width with every awkward length; all else takes turns, at unequal periods."""
    lengths = {
        **{width: (0, 1, 2, width - 1, width + 2, 13, 20) for width in (1, 2, 3, 7)},
        **{15: (4, 20), 31: (13,)},
    }
    sizes = [(width, time) for width in lengths for time in sorted(set(lengths[width]))]
    turns = zip(
        cycle([0.0, 1.0, 0.5, 0.7]),  # where padding_left lies in 0..K-1
        cycle([(2, 16), (1, 24), (3, 5), (2, 20), (5, 1)]),  # heads, channels of a head
        cycle([torch.float32, torch.bfloat16, torch.float16]),
        cycle([(True, 0.3), (True, 0.0), (False, 0.3), (False, 0.0), (True, 0.2)]),
        cycle([*LAYOUTS, "plain", "slice", "time first"]),
        strict=False,
    )
    return [(*size, *turn) for size, turn in zip(sizes, islice(turns, len(sizes)), strict=True)]


def laid_out(layout: str, batch: int, time: int, channels: int) -> Tensor:
    """Random (B, T, C) in float64 with other strides."""
    if layout == "time first":
        return torch.randn(time, batch, channels, dtype=torch.float64).transpose(0, 1)
    if layout == "slice":
        return torch.randn(batch, time, 2 * channels, dtype=torch.float64)[..., channels:]
    if layout == "channels apart":
        return torch.randn(batch, channels, time, dtype=torch.float64).transpose(1, 2)
    return torch.randn(batch, time, channels, dtype=torch.float64)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In another type with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)


def check(kind: str, x: Tensor, grad_y: Tensor, weight: Tensor, **options: Any) -> None:
    """Output and gradients against the reference in float64."""
    function = getattr(reference, f"{kind}_reference")
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = function(*wide, **options)
    gradients = torch.autograd.grad(expected, wide, grad_y.double())
    # A zero gradient of the softmax is a difference of numbers as large as those without it.
    raw = function(*wide, **{**options, "normalize": False})
    (unnormalized,) = torch.autograd.grad(raw, wide[1:], grad_y.double())
    y = getattr(MODULES[kind], f"{kind}_triton")(x, weight, **options)
    ours = getattr(MODULES[kind], f"{kind}_triton_backward")(grad_y, x, weight, **options)
    groups = ([expected], [gradients[0]], [gradients[1], unnormalized])
    for found, true, group, kept in zip(
        (y, *ours), (expected, *gradients), groups, (x, x, weight), strict=True
    ):
        assert found.dtype is kept.dtype
        assert found.shape == true.shape
        scale = max(1e-30, *(each.abs().max().item() if each.numel() else 0.0 for each in group))
        tolerance = max(TOLERANCE[x.dtype], TOLERANCE[kept.dtype])
        if found.numel():
            assert (found.double() - true).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("width", "time", "place", "heads", "dtype", "weights", "layout"), cases())
def test_output_and_gradients_equal_the_reference(
    kind: str,
    width: int,
    time: int,
    place: float,
    heads: tuple[int, int],
    dtype: torch.dtype,
    weights: tuple[bool, float],
    layout: str,
) -> None:
    channels = heads[0] * heads[1]
    x, grad_y = (converted(laid_out(layout, 2, time, channels), dtype) for _ in range(2))
    shape = (heads[0], width) if kind == "lightconv" else (2, time, heads[0], width)
    check(
        *(kind, x, grad_y, torch.randn(shape).to(dtype)),
        padding_left=int(place * (width - 1)),
        normalize=weights[0],
        dropout=weights[1],
        seed=2**61 + 5 * width + time,
    )


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_input_and_weight_may_differ_in_type(kind: str, types: tuple[torch.dtype, ...]) -> None:
    x, grad_y = torch.randn(2, 1, 6, 32).to(types[0])
    shape = (2, 3) if kind == "lightconv" else (1, 6, 2, 3)
    check(kind, x, grad_y, torch.randn(shape).to(types[1]), padding_left=2, dropout=0.3, seed=-9)


@pytest.mark.parametrize("kind", MODULES)
def test_a_head_may_need_several_blocks_of_channels(kind: str) -> None:
    x, grad_y = torch.randn(2, 1, 5, 80)
    shape = (1, 4) if kind == "lightconv" else (1, 5, 1, 4)
    check(kind, x, grad_y, torch.randn(shape), padding_left=1, dropout=0.1, seed=3)


@pytest.mark.parametrize("kind", MODULES)
def test_large_inputs_take_other_tiles(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = MODULES[kind].choose_launch
    monkeypatch.setattr(
        MODULES[kind],
        "choose_launch",
        lambda name, **size: chosen(name, **{**size, "positions": 10**6}),
    )
    x, grad_y = torch.randn(2, 3, 30, 16)
    shape = (1, 5) if kind == "lightconv" else (3, 30, 1, 5)
    check(kind, x, grad_y, torch.randn(shape), padding_left=2, dropout=0.1, seed=3)


@pytest.mark.parametrize("kind", MODULES)
def test_results_repeat_to_the_bit(kind: str) -> None:
    x, grad_y = torch.randn(2, 5, 40, 16)
    weight = torch.randn((1, 3) if kind == "lightconv" else (5, 40, 1, 3))
    backward = getattr(MODULES[kind], f"{kind}_triton_backward")
    first, again = (backward(grad_y, x, weight, padding_left=1) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", MODULES)
def test_a_nan_reaches_the_positions_whose_window_holds_it_and_no_other(kind: str) -> None:
    x, grad_y = torch.randn(2, 2, 12, 16)
    x[1, 6] = torch.nan
    weight = torch.randn((1, 3) if kind == "lightconv" else (2, 12, 1, 3))
    function = getattr(MODULES[kind], f"{kind}_triton")
    backward = getattr(MODULES[kind], f"{kind}_triton_backward")
    touched = function(x, weight, padding_left=2).isnan().any(-1).nonzero().tolist()
    assert touched == [[1, 6], [1, 7], [1, 8]]
    x[1, 6], grad_y[1, 6] = 0.0, torch.nan
    grad_x, _ = backward(grad_y, x, weight, padding_left=2)
    assert grad_x.isnan().any(-1).nonzero().tolist() == [[1, 4], [1, 5], [1, 6]]


def test_infinite_weights_are_as_in_the_reference() -> None:
    x, weight = torch.randn(1, 6, 4), torch.randn(1, 6, 2, 3)
    weight[0, 2, 0, 1] = -torch.inf
    weight[0, 3, 1] = torch.tensor([-torch.inf, 0.0, -torch.inf])
    y = triton_dynamicconv.dynamicconv_triton(x, weight, padding_left=1)
    torch.testing.assert_close(y, reference.dynamicconv_reference(x, weight, padding_left=1))


def test_sentences_may_lie_more_than_2_to_the_31_elements_apart() -> None:
    # Only the pages that are touched take memory.
    memory = torch.empty(2**31 + 80, dtype=torch.float16)
    x = memory.as_strided((2, 5, 16), (2**31, 16, 1)).copy_(torch.randn(2, 5, 16))
    check("lightconv", x, x, torch.randn(1, 3), padding_left=1)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("width", "times", "heads", "dtype"),
    [
        (1, (1, 2), (2, 16), torch.float32),
        (2, (1, 3), (3, 5), torch.float32),
        (3, (2, 1, 4), (2, 20), torch.bfloat16),
        (7, (1, 1, 9), (1, 80), torch.float32),
        (15, (3,), (5, 1), torch.float16),
    ],
)
def test_steps_equal_the_reference(
    kind: str,
    normalize: bool,
    width: int,
    times: tuple[int, ...],
    heads: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    channels = heads[0] * heads[1]
    position = torch.tensor([0, 4, 33])
    ring = torch.randn(3, width - 1, channels).to(dtype)
    wide = ring.double()
    for time in times:
        x = torch.randn(time, 3, channels).to(dtype).transpose(0, 1)
        shape = (heads[0], width) if kind == "lightconv" else (3, time, heads[0], width)
        weight = torch.randn(shape).to(dtype)
        step = getattr(triton_step, f"{kind}_step_triton")
        y = step(x, ring, position, weight, normalize=normalize)
        expected = getattr(reference, f"{kind}_step_reference")(
            x.double(), wide, position, weight.double(), normalize=normalize
        )
        error = (y.double() - expected).abs().max()
        assert y.dtype is dtype
        assert error <= TOLERANCE[dtype] * expected.abs().max()
        assert torch.equal(ring.double(), wide)
        position = position + time


def test_float64_is_refused_with_a_remedy() -> None:
    x, weight = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(2, 3)
    ring, position = x.new_zeros(1, 2, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"take no float64; set runtime\.kernels=torch"):
        triton_lightconv.lightconv_triton(x, weight, padding_left=1)
    with pytest.raises(ConfigError, match="take no float64"):
        triton_step.lightconv_step_triton(x, ring, position, weight)
