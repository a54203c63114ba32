"""Zeroed padding: as `masked_fill`, gradients too, and nothing of what stood there remains."""

import pytest
import torch

from lightconv_mt.ops.padding import zero_padding

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def example(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 5, 7) with NaN and infinity at padding, and its mask."""
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    x = torch.randn(3, 5, 7, dtype=dtype)
    x[1, 2:] = float("nan")
    x[2, :3] = float("-inf")
    return x, mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_masked_fill(dtype: torch.dtype) -> None:
    x, mask = example(dtype)
    expected = x.masked_fill(~mask[..., None], 0.0)
    assert torch.equal(zero_padding(x, mask), expected)
    assert expected.isfinite().all()
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(zero_padding(strided, mask), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_zero_at_padding_and_itself_elsewhere(dtype: torch.dtype) -> None:
    x, mask = example(dtype)
    grad = torch.randn(x.shape, dtype=dtype)
    grad[1, 4] = float("nan")
    x.requires_grad_()
    zero_padding(x, mask).backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad.masked_fill(~mask[..., None], 0.0))


def test_second_gradient_is_zero_at_padding_too() -> None:
    mask = torch.tensor([[True, True, False]])
    x = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: zero_padding(x, mask).square(), (x,))


def test_compiled_gives_the_same() -> None:
    x, mask = example(torch.float32)
    compiled = torch.compile(zero_padding, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, mask), zero_padding(x, mask))
