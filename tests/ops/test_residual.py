"""Dropout, its sum with the residual stream, and the norm behind it, against plain torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cpp_kernels import cpu_backends
from torch import Tensor

from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.masks import keep_mask
from lightconv_mt.ops.residual import dropout, residual, residual_norm

BACKENDS = cpu_backends()

SEED = 0x1234_5678_9ABC_DEF
SHAPES = [(3, 5, 16), (1, 1, 1), (2, 3, 37), (67, 2, 130), (0, 4, 8)]
# Of the stream and of the sublayer's output; the last two are what autocast brings together.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}


def expected_sum(x: Tensor, y: Tensor, probability: float) -> Tensor:
    keep = keep_mask(y.shape, dropout=probability, seed=SEED, device="cpu")
    return x + y * keep / (1 - probability)


def compare(
    found: Callable[..., Tensor], expected: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """Output and every gradient, each within the rounding of its own dtype."""
    narrow = [each.clone().requires_grad_() for each in inputs]
    wide = [each.double().clone().requires_grad_() for each in inputs]
    y, exact = found(*narrow), expected(*wide)
    slope = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    gradients = torch.autograd.grad(y, narrow, slope)
    references = torch.autograd.grad(exact, wide, slope.double())
    assert y.dtype is inputs[0].dtype
    for value, reference in zip((y, *gradients), (exact, *references), strict=True):
        # A sum over rows rounds once for each of them.
        rows = max(1, y.numel() // y.shape[-1]) if value.dim() == 1 else 1
        worst = max(TOLERANCES[y.dtype], TOLERANCES[value.dtype])
        scale = 1.0 + (float(reference.detach().abs().max()) if reference.numel() else 0.0)
        torch.testing.assert_close(
            value.double(), reference, rtol=worst, atol=worst * scale * rows**0.5
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.3])
class TestSums:
    def test_residual(
        self,
        backend: Backend,
        dtypes: tuple[torch.dtype, torch.dtype],
        shape: tuple[int, ...],
        probability: float,
    ) -> None:
        inputs = [torch.randn(shape).to(dtype) for dtype in dtypes]
        compare(
            lambda x, y: residual(x, y, dropout=probability, seed=SEED, backend=backend),
            lambda x, y: expected_sum(x, y, probability),
            inputs,
        )

    def test_residual_norm(
        self,
        backend: Backend,
        dtypes: tuple[torch.dtype, torch.dtype],
        shape: tuple[int, ...],
        probability: float,
    ) -> None:
        stream, output = dtypes
        vectors = torch.float64 if stream is torch.float64 else torch.float32
        if backend is Backend.torch and stream is torch.bfloat16:
            vectors = torch.bfloat16  # torch's norm has one dtype
        inputs = [
            (3 + torch.randn(shape)).to(stream),
            torch.randn(shape).to(output),
            torch.rand(shape[-1:]).to(vectors),
            torch.randn(shape[-1:]).to(vectors),
        ]
        if shape[-1] == 1:  # a row of one has no deviation: 0 / eps, in any precision
            inputs[0].zero_(), inputs[1].zero_()
        compare(
            lambda x, y, weight, bias: residual_norm(
                x, y, weight, bias, eps=1e-5, dropout=probability, seed=SEED, backend=backend
            ),
            lambda x, y, weight, bias: F.layer_norm(
                expected_sum(x, y, probability), weight.shape, weight, bias, 1e-5
            ),
            inputs,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rate_and_scale_of_dropout(
    backend: Backend, probability: float, dtype: torch.dtype
) -> None:
    y = dropout(torch.ones(401, 501, dtype=dtype), probability, training=True, backend=backend)
    assert y.dtype is dtype
    kept = y[y != 0]
    assert len(kept) / y.numel() == pytest.approx(1 - probability, abs=0.005)
    assert float(kept.double().mean()) == pytest.approx(1 / (1 - probability), rel=4e-3)
    assert len(kept.unique()) == 1


def test_without_dropout_the_input_comes_back() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.3, training=False, backend=Backend.auto) is x
    assert dropout(x, 0.0, training=True, backend=Backend.auto) is x


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_generator_decides_and_the_gradient_has_the_same_mask(backend: Backend) -> None:
    x = torch.randn(7, 13, requires_grad=True)
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(dropout(x, 0.4, training=True, backend=backend))
    assert torch.equal(*outputs)
    (gradient,) = torch.autograd.grad(outputs[0].sum(), x)
    assert torch.equal(gradient != 0, outputs[0] != 0)


def test_backends_drop_the_same_elements() -> None:
    x, masks = torch.ones(9, 77), []
    for backend in BACKENDS:
        torch.manual_seed(3)
        masks.append(dropout(x, 0.3, training=True, backend=backend) != 0)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.skipif(Backend.native not in BACKENDS, reason="no C++ compiler")
class TestNative:
    def test_threads_change_no_bit(self) -> None:
        threads, results = torch.get_num_threads(), []
        inputs = [torch.randn(300, 40), torch.randn(300, 40), torch.rand(40), torch.randn(40)]
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                leaves = [each.clone().requires_grad_() for each in inputs]
                y = residual_norm(*leaves, eps=1e-5, dropout=0.3, seed=SEED, backend=Backend.native)
                results.append([y, *torch.autograd.grad((y * y).sum(), leaves)])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_rows_with_other_strides(self) -> None:
        x, y = torch.randn(6, 5, 4).transpose(0, 1), torch.randn(5, 6, 8)[..., ::2]
        found = residual(x, y, dropout=0.0, seed=0, backend=Backend.native)
        assert torch.equal(found, x + y)

    def test_torch_accepts_the_ops(self) -> None:
        x, y = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
        weight, bias = torch.rand(8, requires_grad=True), torch.randn(8, requires_grad=True)
        ops = torch.ops.lightconv_mt
        torch.library.opcheck(ops.residual.default, (x, y, 0.3, SEED, torch.float32))
        torch.library.opcheck(ops.residual_norm.default, (x, y, weight, bias, 0.3, SEED, 1e-5))

    def test_sums_of_other_types_are_refused(self) -> None:
        x = torch.randn(2, 4, dtype=torch.float64)
        with pytest.raises(TypeError, match=r"lcmt_residual cannot join torch.float64 and"):
            residual(x, x.float(), dropout=0.0, seed=0, backend=Backend.native)
