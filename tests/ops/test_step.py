"""One step after another: every backend against the whole sequence, its ring and its errors."""

import random
from typing import Any

import pytest
import torch
from cpp_kernels import need_library
from torch import Tensor

from lightconv_mt.ops import Backend, dynamicconv_step, lightconv_step, native
from lightconv_mt.ops.reference import (
    dynamicconv_reference,
    dynamicconv_step_reference,
    lightconv_reference,
    lightconv_step_reference,
)
from lightconv_mt.ops.register import dynamicconv_step_kernel, lightconv_step_kernel

WHOLE = {lightconv_step: lightconv_reference, dynamicconv_step: dynamicconv_reference}
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}


@pytest.fixture(params=[Backend.reference, Backend.torch, Backend.native])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param is Backend.native:
        need_library()
    return request.param


@pytest.mark.parametrize("function", WHOLE)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 31])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 21])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_steps_equal_the_whole_sequence(
    function: Any, width: int, chunk: int, dtype: torch.dtype, backend: Backend
) -> None:
    x = torch.randn(2, 21, 6).to(dtype)
    dynamic = function is dynamicconv_step
    weight = torch.randn((2, 21, 3, width) if dynamic else (3, width)).to(dtype)
    ring, position = x.new_zeros(2, width - 1, 6), torch.zeros(2, dtype=torch.int64)
    outputs = []
    for start in range(0, 21, chunk):
        new = x[:, start : start + chunk]
        own = weight[:, start : start + chunk] if dynamic else weight
        outputs.append(function(new, ring, position, own, backend=backend))
        position = position + new.shape[1]
    y = torch.cat(outputs, dim=1)
    assert y.dtype is dtype
    whole = WHOLE[function](x.double(), weight.double(), padding_left=width - 1)
    torch.testing.assert_close(
        y.double(), whole, rtol=0, atol=1e-12 if dtype is torch.float64 else 0.03
    )


@pytest.mark.parametrize("function", WHOLE)
def test_rows_may_be_of_any_age_and_in_any_order(function: Any, backend: Backend) -> None:
    """Three sentences that began 0, 4 and 9 positions apart, then reordered by index_select."""
    x, width, ages = torch.randn(3, 20, 4, dtype=torch.float64), 5, [11, 7, 2]
    dynamic = function is dynamicconv_step
    weight = torch.randn((3, 20, 2, width) if dynamic else (2, width), dtype=torch.float64)
    whole = WHOLE[function](x, weight, padding_left=width - 1)
    ring = torch.zeros(3, width - 1, 4, dtype=torch.float64)
    for row, age in enumerate(ages):
        for at in range(max(0, age - width + 1), age):
            ring[row, at % (width - 1)] = x[row, at]
    order = torch.tensor([2, 0, 1, 2])
    ring, position = ring.index_select(0, order), torch.tensor(ages).index_select(0, order)
    before = position.clone()
    own, expected, new = [], [], []
    for row in order.tolist():
        stretch = slice(ages[row], ages[row] + 6)
        new.append(x[row, stretch])
        own.append(weight[row, stretch] if dynamic else None)
        expected.append(whole[row, stretch])
    taps = torch.stack(own) if dynamic else weight
    y = function(torch.stack(new), ring, position, taps, backend=backend)
    torch.testing.assert_close(y, torch.stack(expected), rtol=0, atol=1e-12)
    assert torch.equal(position, before)
    for row, of in enumerate(order.tolist()):
        for at in range(ages[of] + 2, ages[of] + 6):
            assert torch.equal(ring[row, at % (width - 1)], x[of, at])


def random_call(rng: random.Random) -> tuple[Tensor, ...]:
    """New inputs, ring, positions and weight of a random size, type and layout."""
    rows, time, heads = rng.randint(1, 4), rng.choice([1, 1, 2, 5]), rng.choice([1, 2, 3, 8])
    width = rng.choice([*range(1, 10), 31, 31, 63, 255])
    share = rng.choice([1, 3, 8, 15, 16, 17, 33, 64, 65, 130])
    dtype = rng.choice(list(TOLERANCE))
    x = torch.randn(rows, time, 2 * heads * share).to(dtype)
    x = rng.choice([x[..., heads * share :], x[..., ::2], x[..., : heads * share].contiguous()])
    ring = torch.randn(rows, width - 1, heads * share).to(dtype)
    position = torch.randint(0, 1000, (rows,))
    shape = (rows, time, heads, width) if rng.random() < 0.5 else (heads, width)
    return x, ring, position, torch.randn(shape).to(rng.choice([dtype, torch.float32]))


def check_native(rng: random.Random) -> None:
    x, ring, position, weight = random_call(rng)
    normalize = rng.random() < 0.8
    dynamic = weight.dim() == 4
    wide = x.double(), ring.clone().double(), position, weight.double()
    reference = dynamicconv_step_reference if dynamic else lightconv_step_reference
    expected = reference(*wide, normalize=normalize)
    ours = native.dynamicconv_step_native if dynamic else native.lightconv_step_native
    y = ours(x, ring, position, weight, normalize=normalize)
    assert y.dtype is x.dtype
    assert torch.equal(ring.double(), wide[1])
    error = (y.double() - expected).abs().max().item()
    assert error <= TOLERANCE[x.dtype] * max(1e-30, expected.abs().max().item())


@pytest.mark.parametrize("march", ["native", "x86-64", "x86-64-v3"])
def test_native_steps_of_any_type_and_size(march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = need_library(march)
    monkeypatch.setattr(native, "load_library", lambda: library)
    monkeypatch.setattr(native, "empty_like", lambda x: torch.full(x.shape, torch.nan).to(x.dtype))
    torch.manual_seed(1)
    rng = random.Random(1)
    for _ in range(150):
        check_native(rng)


def test_threads_change_no_bit() -> None:
    need_library()
    x, ring, weight = torch.randn(96, 1, 64), torch.randn(96, 30, 64), torch.randn(2, 31)
    position, before = torch.arange(96), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            own = ring.clone()
            results.append((native.lightconv_step_native(x, own, position, weight), own))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], others, strict=True))


def test_impossible_arguments_are_refused(backend: Backend) -> None:
    x, ring, weight = torch.randn(2, 1, 6), torch.zeros(2, 3, 6), torch.randn(2, 4)
    position = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="6 channels cannot be shared by 4 heads"):
        lightconv_step(x, ring, position, torch.randn(4, 4), backend=backend)
    with pytest.raises(ValueError, match=r"ring is \(2, 3, 6\) .* must be \(2, 2, 6\)"):
        lightconv_step(x, ring, position, torch.randn(2, 3), backend=backend)
    with pytest.raises(ValueError, match=r"ring is .*float64 but must be .*float32"):
        lightconv_step(x, ring.double(), position, weight, backend=backend)
    with pytest.raises(ValueError, match="ring must be contiguous"):
        lightconv_step(x, ring.mT.contiguous().mT, position, weight, backend=backend)
    with pytest.raises(ValueError, match=r"positions are \(3,\)"):
        lightconv_step(x, ring, torch.zeros(3, dtype=torch.int64), weight, backend=backend)
    with pytest.raises(ValueError, match="weight is for"):
        dynamicconv_step(x, ring, position, torch.randn(2, 2, 2, 4), backend=backend)
    with pytest.raises(RuntimeError, match="has no gradient; call it under torch.no_grad"):
        lightconv_step(x, ring, position, weight.requires_grad_(), backend=backend)


@pytest.mark.parametrize("kernel", [lightconv_step_kernel, dynamicconv_step_kernel])
def test_torchs_own_checks_pass(kernel: Any) -> None:
    need_library()
    shape = (2, 3, 2, 4) if kernel is dynamicconv_step_kernel else (2, 4)
    arguments = (
        torch.randn(2, 3, 6),
        torch.randn(2, 3, 6),
        torch.tensor([5, 0]),
        torch.randn(shape),
    )
    found = torch.library.opcheck(kernel.op, arguments, {"normalize": True})
    assert set(found.values()) == {"SUCCESS"}


@torch.no_grad()
def test_compiling_sees_one_op_and_keeps_the_ring() -> None:
    need_library()

    def step(x: Tensor, ring: Tensor, position: Tensor, weight: Tensor) -> Tensor:
        return lightconv_step(x, ring, position, weight, backend=Backend.native) * 2

    x, ring, weight = torch.randn(2, 3, 6), torch.randn(2, 3, 6), torch.randn(2, 4)
    position, own = torch.tensor([5, 0]), ring.clone()
    expected = step(x, own, position, weight)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, ring, position, weight), expected)
    assert torch.equal(ring, own)
