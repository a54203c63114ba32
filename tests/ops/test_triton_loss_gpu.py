"""Cross-entropy and residual dropout as a GPU runs them: full sizes, every type, repeatability."""

import pytest
import torch

from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.masks import keep_mask
from lightconv_mt.ops.residual import residual

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SEED = 0x0123_4567_89AB_CDEF


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("vocab_size", [2, 37, 8000, 32768, 100_003])
@pytest.mark.parametrize("agreement", [0.0, 3.0])
def test_cross_entropy_agrees_with_torch_in_float64_and_repeats_its_bits(
    dtype: torch.dtype, vocab_size: int, agreement: float
) -> None:
    smoothing = Smoothing(label_smoothing=0.1, agreement=agreement)
    logits = (3 * torch.randn(514, vocab_size, device="cuda")).to(dtype)
    target = torch.randint(vocab_size, (257,), device="cuda").repeat(2)
    exact = logits.double()
    expected = cross_entropy_(exact, target, smoothing, gradient=True, backend=Backend.torch)
    slopes = []
    for _ in range(2):
        slopes.append(logits.clone())
        found = cross_entropy_(slopes[-1], target, smoothing, gradient=True, backend=Backend.triton)
        for value, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=1e-5)
    assert torch.equal(*slopes)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(slopes[0].double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 130), (64, 64, 1024)])
def test_residual_dropout_drops_what_the_mask_says(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, device="cuda", requires_grad=True)
    y = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
    out = residual(x, y, dropout=0.3, seed=SEED, backend=Backend.triton)
    slope = torch.rand_like(out) + 0.5  # none is zero
    to_x, to_y = torch.autograd.grad(out, (x, y), slope)
    factor = keep_mask(shape, dropout=0.3, seed=SEED, device="cuda") / 0.7
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out, x + y.float() * factor, rtol=2e-6, atol=2e-6)
    assert torch.equal(to_x, slope)
    torch.testing.assert_close(to_y.float(), slope * factor, rtol=tolerance, atol=tolerance)
    assert torch.equal(to_y != 0, factor != 0)
