"""The Triton kernels as a GPU runs them: full sizes, every type, tracing, repeatability."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops import (
    Backend,
    dynamicconv,
    dynamicconv_step,
    lightconv,
    lightconv_step,
    resolve_backend,
)
from lightconv_mt.ops.register import (
    dynamicconv_kernel,
    dynamicconv_step_kernel,
    lightconv_kernel,
    lightconv_step_kernel,
)

pytestmark = pytest.mark.gpu

# Largest error allowed, relative to the largest value of what is compared.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
OPS = {"lightconv": lightconv, "dynamicconv": dynamicconv}
KERNELS = {"lightconv": lightconv_kernel, "dynamicconv": dynamicconv_kernel}
STEPS = {
    "lightconv": (lightconv_step, lightconv_step_kernel),
    "dynamicconv": (dynamicconv_step, dynamicconv_step_kernel),
}
GIB = 2**30


@pytest.fixture(autouse=True)
def outputs_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightconv_mt.ops import triton_dynamicconv, triton_lightconv, triton_step

    def full(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    for module in (triton_lightconv, triton_dynamicconv, triton_step):
        monkeypatch.setattr(module, "empty", full)


def inputs(
    kind: str,
    batch: int,
    time: int,
    heads: int,
    share: int,
    width: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and the gradient of y."""
    options: dict[str, Any] = {"device": "cuda", "dtype": dtype}
    x, grad_y = (torch.randn(batch, time, heads * share, **options) for _ in range(2))
    rows = (batch, time) if kind == "dynamicconv" else ()
    return x.requires_grad_(), torch.randn(*rows, heads, width, **options).requires_grad_(), grad_y


def results(
    kind: str, backend: Backend, x: Tensor, weight: Tensor, grad_y: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    y = OPS[kind](x, weight, backend=backend, **options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad_y)


def check(kind: str, x: Tensor, weight: Tensor, grad_y: Tensor, **options: Any) -> None:
    ours = results(kind, Backend.triton, x, weight, grad_y, **options)
    wide = [each.detach().double().requires_grad_() for each in (x, weight)]
    exact = results(kind, Backend.reference, *wide, grad_y.double(), **options)
    # A zero gradient of the softmax is a difference of numbers as large as those without it.
    raw = results(
        kind, Backend.reference, *wide, grad_y.double(), **{**options, "normalize": False}
    )
    scales = (exact[0], exact[1], torch.cat([exact[2].flatten(), raw[2].flatten()]))
    for name, found, true, scale in zip(
        ("y", "grad_x", "grad_weight"), ours, exact, scales, strict=True
    ):
        error = (found.double() - true).abs().max() / scale.abs().max().clamp_min(1e-30)
        assert error.item() <= TOLERANCE[x.dtype], f"{name}: {error.item():.3g}"


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 127, 255])
@pytest.mark.parametrize("time", [1, 31, 257, 1025])
def test_widths_lengths_and_types(kind: str, dtype: torch.dtype, width: int, time: int) -> None:
    options = {"padding_left": width // 2, "dropout": 0.2, "seed": 2**61 + 5}
    check(kind, *inputs(kind, 3, time, 4, 24, width, dtype), **options)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("place", ["left", "middle", "right"])
def test_options(kind: str, normalize: bool, dropout: float, place: str) -> None:
    padding_left = {"left": 0, "middle": 3, "right": 6}[place]
    options = {"padding_left": padding_left, "normalize": normalize, "dropout": dropout, "seed": -5}
    check(kind, *inputs(kind, 5, 77, 8, 64, 7), **options)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize(
    "heads", [(1, 1), (16, 1), (5, 3), (170, 3), (3, 17), (8, 64), (8, 128), (4, 256), (1, 1000)]
)
def test_channels_of_a_head(kind: str, heads: tuple[int, int]) -> None:
    check(kind, *inputs(kind, 2, 100, *heads, 7), padding_left=6, dropout=0.1, seed=1)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("batch", "time", "width"), [(32, 512, 31), (256, 32, 7), (2, 4096, 255)])
def test_training_batches(kind: str, dtype: torch.dtype, batch: int, time: int, width: int) -> None:
    options = {"padding_left": width - 1, "dropout": 0.1, "seed": 7}
    check(kind, *inputs(kind, batch, time, 16, 64, width, dtype), **options)


@pytest.mark.parametrize("kind", OPS)
def test_more_than_2_to_the_31_elements(kind: str) -> None:
    if torch.cuda.mem_get_info()[0] < 60 * GIB:
        pytest.skip("this needs 60 GiB of free GPU memory")
    x, weight, grad_y = inputs(kind, 3, 2**20, 16, 64, 3, torch.bfloat16)
    options = {"padding_left": 2}
    # The last sentence lies behind 2**31 elements.
    found = results(kind, Backend.triton, x, weight, grad_y, **options)
    with torch.no_grad():
        last = x[-1:, -50:].double()
        own = weight[-1:, -50:] if kind == "dynamicconv" else weight
        expected = OPS[kind](last, own.double(), backend=Backend.reference, **options)
    torch.testing.assert_close(found[0][-1:, -48:].double(), expected[:, 2:], rtol=2e-2, atol=2e-2)
    assert all(each[-1].isfinite().all() for each in found)


@pytest.mark.parametrize("kind", OPS)
def test_other_strides(kind: str) -> None:
    x, weight, grad_y = inputs(kind, 6, 50, 4, 32, 5)
    check(
        *(kind, x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(), weight),
        torch.cat([grad_y, grad_y], dim=-1)[..., : x.shape[-1]],
        padding_left=1,
    )
    wide = torch.randn(6, 128, 50, device="cuda").transpose(1, 2).requires_grad_()
    check(kind, wide, weight, grad_y, padding_left=1)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_results_repeat_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    tensors = inputs(kind, 64, 200, 8, 64, 15, dtype)
    options = {"padding_left": 14, "dropout": 0.1, "seed": 3}
    first, *others = (results(kind, Backend.triton, *tensors, **options) for _ in range(5))
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", OPS)
def test_a_nan_stays_in_its_window(kind: str) -> None:
    x, weight, _ = inputs(kind, 4, 300, 8, 64, 7)
    x = x.detach()
    x[2, 150] = torch.nan
    with torch.no_grad():
        y = OPS[kind](x, weight, padding_left=6, backend=Backend.triton)
    touched = y.isnan().any(-1).nonzero().tolist()
    assert touched == [[2, 150 + later] for later in range(7)]


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("width", [1, 2, 7, 31, 255])
def test_steps(kind: str, dtype: torch.dtype, width: int) -> None:
    rows, channels, heads = 640, 512, 8
    ring = torch.randn(rows, width - 1, channels, device="cuda").to(dtype)
    position = torch.randint(0, 1000, (rows,), device="cuda")
    wide = ring.double()
    for time in (1, 1, 5, 1, 40):
        x = torch.randn(rows, time, channels, device="cuda").to(dtype)
        shape = (rows, time, heads, width) if kind == "dynamicconv" else (heads, width)
        weight = torch.randn(shape, device="cuda").to(dtype)
        with torch.no_grad():
            y = STEPS[kind][0](x, ring, position, weight, backend=Backend.triton)
            expected = STEPS[kind][0](
                x.double(), wide, position, weight.double(), backend=Backend.reference
            )
        error = (y.double() - expected).abs().max() / expected.abs().max()
        assert error.item() <= TOLERANCE[dtype]
        assert torch.equal(ring.double(), wide)
        position = position + time


@pytest.mark.parametrize("kind", OPS)
def test_torchs_own_checks_pass(kind: str) -> None:
    x, weight, _ = inputs(kind, 2, 9, 3, 4, 5)
    found = torch.library.opcheck(KERNELS[kind].op, (x, weight, 2, True, 0.3, 2**61 + 5))
    assert set(found.values()) == {"SUCCESS"}
    ring, position = x.new_zeros(2, 4, 12), torch.tensor([0, 7], device="cuda")
    arguments = (x.detach(), ring, position, weight.detach())
    found = torch.library.opcheck(STEPS[kind][1].op, arguments, {"normalize": True})
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kind", OPS)
def test_compiling_sees_one_op(kind: str) -> None:
    x, weight, grad_y = inputs(kind, 4, 33, 8, 64, 7)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return OPS[kind](x, weight, padding_left=6, backend=Backend.triton) * 2

    expected = function(x, weight)
    y = torch.compile(function, fullgraph=True)(x, weight)
    assert torch.equal(y, expected)
    gradients = torch.autograd.grad(y, (x, weight), grad_y)
    for ours, other in zip(
        gradients, torch.autograd.grad(expected, (x, weight), grad_y), strict=True
    ):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_input_and_weight_may_differ_in_type(kind: str, types: tuple[torch.dtype, ...]) -> None:
    x, weight, grad_y = inputs(kind, 4, 33, 8, 64, 7)
    x, weight = (
        each.detach().to(dtype).requires_grad_()
        for each, dtype in zip((x, weight), types, strict=True)
    )
    found = results(kind, Backend.triton, x, weight, grad_y.to(types[0]), padding_left=6)
    expected = results(kind, Backend.reference, x, weight, grad_y.to(types[0]), padding_left=6)
    for ours, other in zip(found, expected, strict=True):
        assert ours.dtype is other.dtype
        torch.testing.assert_close(ours, other, rtol=0.03, atol=0.03)


def test_float64_takes_plain_torch_or_is_refused() -> None:
    assert resolve_backend(Backend.auto, device=torch.device("cuda")) is Backend.triton
    x = torch.randn(1, 5, 4, dtype=torch.float64, device="cuda")
    weight = torch.randn(2, 3, dtype=torch.float64, device="cuda")
    torch.testing.assert_close(
        lightconv(x, weight, padding_left=1),
        lightconv(x, weight, padding_left=1, backend=Backend.reference),
    )
    with pytest.raises(ConfigError, match=r"set runtime\.kernels=torch"):
        lightconv(x, weight, padding_left=1, backend=Backend.triton)
