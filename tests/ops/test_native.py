"""The C++ kernels against the reference in float64: types, sizes, strides, threads, machines."""

import random

import pytest
import torch
from cpp_kernels import cpu_backends, need_library
from torch import Tensor

from lightconv_mt.ops import Backend, native
from lightconv_mt.ops.reference import dynamicconv_reference, lightconv_reference

# Largest error allowed, relative to the largest value of what is compared.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}

if Backend.native not in cpu_backends():
    pytest.skip("no C++ compiler", allow_module_level=True)


@pytest.fixture(autouse=True)
def outputs_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "empty_like", lambda x: torch.full(x.shape, torch.nan).to(x.dtype))


def random_call(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, dict[str, object]]:
    """Input, upstream gradient, weight and options of a random size, type and layout."""
    batch, heads = rng.randint(1, 3), rng.choice([1, 2, 3, 8])
    width = rng.choice([*range(1, 10), 15, 31, 31, 63, 127, 255])
    share = rng.choice([1, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64, 65, 130])
    time = rng.choice([0, 1, 2, *range(3, width + 6), 33, 33, 40])
    dtype = rng.choice(list(TOLERANCE))
    layout = rng.choice(["plain", "time first", "slice", "channels apart"])
    channels = heads * share
    shapes = {
        "plain": (batch, time, channels),
        "time first": (time, batch, channels),
        "slice": (batch, time, 2 * channels),
        "channels apart": (batch, channels, time),
    }
    inputs = []
    for _ in range(2):
        x = torch.randn(shapes[layout], dtype=torch.float64).to(dtype)
        x = x.transpose(0, 1) if layout == "time first" else x
        x = x[..., channels:] if layout == "slice" else x
        inputs.append(x.transpose(1, 2) if layout == "channels apart" else x)
    dynamic = rng.random() < 0.5
    weight = torch.randn((batch, time, heads, width) if dynamic else (heads, width))
    options = {
        "padding_left": rng.randint(0, width - 1),
        "normalize": rng.random() < 0.8,
        "dropout": rng.choice([0.0, 0.3]),
        "seed": rng.getrandbits(62),
    }
    return inputs[0], inputs[1], weight.to(dtype), options


def assert_close(ours: Tensor, expected: Tensor, *, scale: float, dtype: torch.dtype) -> None:
    assert ours.shape == expected.shape
    if ours.numel():
        error = (ours.double() - expected).abs().max().item()
        assert error <= TOLERANCE[dtype] * scale, f"{error:.3g} of {scale:.3g}"


def check(x: Tensor, upstream: Tensor, weight: Tensor, options: dict[str, object]) -> None:
    kind = "dynamicconv" if weight.dim() == 4 else "lightconv"
    reference = dynamicconv_reference if weight.dim() == 4 else lightconv_reference
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = reference(*wide, **options)
    gradients = torch.autograd.grad(expected, wide, upstream.double())
    # A zero gradient of the softmax is a difference of numbers as large as those without it.
    raw = reference(*wide, **{**options, "normalize": False})
    (unnormalized,) = torch.autograd.grad(raw, wide[1:], upstream.double())
    y = getattr(native, f"{kind}_native")(x, weight, **options)
    ours = getattr(native, f"{kind}_native_backward")(upstream, x, weight, **options)
    scales = [
        max(1e-30, *(each.abs().max().item() if each.numel() else 0.0 for each in group))
        for group in ([expected], [gradients[0]], [gradients[1], unnormalized])
    ]
    for found, true, scale in zip((y, *ours), (expected, *gradients), scales, strict=True):
        assert found.dtype is x.dtype
        assert_close(found, true, scale=scale, dtype=x.dtype)


@pytest.mark.parametrize("seed", range(30))
def test_random_calls_equal_the_reference(seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    for _ in range(8):
        check(*random_call(rng))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("time", [257, 1025, 1536])
def test_long_sequences_are_cut_without_a_seam(time: int, dynamic: bool) -> None:
    x, upstream = torch.randn(2, 1, time, 64, dtype=torch.float64)
    weight = torch.randn((1, time, 2, 31) if dynamic else (2, 31), dtype=torch.float64)
    options = {"padding_left": 12, "normalize": True, "dropout": 0.2, "seed": 3}
    check(x, upstream, weight, options)


@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_other_machines_code_is_right_too(march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = need_library(march)
    monkeypatch.setattr(native, "load_library", lambda: library)
    assert library.lcmt_lanes() == {"x86-64": 4, "x86-64-v3": 8}[march]
    rng = random.Random(1)
    torch.manual_seed(1)
    for _ in range(60):
        check(*random_call(rng))


@pytest.mark.parametrize("dynamic", [False, True])
def test_threads_change_no_bit(dynamic: bool) -> None:
    x, upstream = torch.randn(2, 3, 600, 96)
    weight = torch.randn((3, 600, 2, 7) if dynamic else (2, 7))
    options = {"padding_left": 3, "normalize": True, "dropout": 0.1, "seed": 5}
    kind = "dynamicconv" if dynamic else "lightconv"
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = getattr(native, f"{kind}_native")(x, weight, **options)
            gradients = getattr(native, f"{kind}_native_backward")(upstream, x, weight, **options)
            results.append((y, *gradients))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], others, strict=True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_nan_reaches_the_positions_whose_window_holds_it_and_no_other(dynamic: bool) -> None:
    x = torch.randn(1, 40, 32)
    x[0, 20] = torch.nan
    weight = torch.randn((1, 40, 2, 5) if dynamic else (2, 5))
    kind = "dynamicconv" if dynamic else "lightconv"
    y = getattr(native, f"{kind}_native")(x, weight, padding_left=4)
    touched = y.isnan().any(-1)[0].nonzero().flatten().tolist()
    assert touched == [20, 21, 22, 23, 24]


def test_infinite_weights_are_as_in_the_reference() -> None:
    x, weight = torch.randn(1, 6, 4), torch.randn(1, 6, 2, 3)
    weight[0, 2, 0, 1] = -torch.inf
    weight[0, 3, 1] = torch.tensor([-torch.inf, 0.0, -torch.inf])
    y = native.dynamicconv_native(x, weight, padding_left=1)
    torch.testing.assert_close(y, dynamicconv_reference(x, weight, padding_left=1))
