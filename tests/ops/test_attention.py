"""Attention in C++ against the formula in float64: outputs, every gradient, dropped weights."""

import pytest
import torch
from cpp_kernels import cpu_backends
from torch import Tensor

from lightconv_mt.ops.attention import attention
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.masks import keep_mask

if Backend.native not in cpu_backends():
    pytest.skip("no C++ compiler", allow_module_level=True)

SEED = 0xFEDC_BA98_7654
# (B, H, T, S, D)
SHAPES = [
    (2, 3, 5, 7, 16),
    (1, 1, 1, 1, 1),
    (3, 2, 4, 16, 8),
    (1, 2, 17, 33, 40),
    (2, 1, 65, 3, 7),
    (1, 4, 30, 31, 64),
    (0, 2, 3, 4, 8),
]
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    keep = keep_mask(scores.shape, dropout=dropout, seed=SEED, device="cpu")
    return scores.softmax(-1) * keep / (1 - dropout) @ value


def native(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object):  # type: ignore[no-untyped-def]
    return attention(query, key, value, mask, seed=SEED, backend=Backend.native, **options)  # type: ignore[arg-type]


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Query, key and value as heads of rows, and a mask with a real key in every sentence."""
    batch, heads, targets, sources, size = shape
    inputs = [
        torch.randn(batch, length, heads, size).to(dtype).transpose(1, 2)
        for length in (targets, sources, sources)
    ]
    mask = torch.rand(batch, sources) < 0.7
    mask[:, 0] = True
    return inputs, mask


def compare(inputs: list[Tensor], mask: Tensor | None, *, causal: bool, dropout: float) -> None:
    narrow = [each.clone().requires_grad_() for each in inputs]
    wide = [each.double().clone().requires_grad_() for each in inputs]
    y = native(*narrow, mask, causal=causal, dropout=dropout)
    exact = formula(*wide, mask, causal=causal, dropout=dropout)
    slope = torch.randn(exact.shape, dtype=torch.float64).to(y.dtype)
    gradients = torch.autograd.grad(y, narrow, slope)
    references = torch.autograd.grad(exact, wide, slope.double())
    tolerance = TOLERANCES[y.dtype]
    for value, reference in zip((y, *gradients), (exact, *references), strict=True):
        assert value.dtype is y.dtype
        largest = max(1.0, float(reference.detach().abs().max())) if reference.numel() else 1.0
        torch.testing.assert_close(
            value.double(), reference, rtol=tolerance, atol=tolerance * largest
        )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_padded_keys(dtype: torch.dtype, shape: tuple[int, ...], dropout: float) -> None:
    inputs, mask = draw(shape, dtype)
    compare(inputs, mask, causal=False, dropout=dropout)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 50])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_causal(dtype: torch.dtype, length: int, dropout: float) -> None:
    inputs, _ = draw((2, 2, length, length, 24), dtype)
    compare(inputs, None, causal=True, dropout=dropout)


def test_a_query_that_sees_nothing_gets_zeros_and_gives_none() -> None:
    inputs, mask = draw((2, 2, 3, 5, 8), torch.float32)
    mask[1] = False
    leaves = [each.requires_grad_() for each in inputs]
    y = native(*leaves, mask)
    gradients = torch.autograd.grad(y.sum(), leaves)
    for value in (y, *gradients):
        assert not value[1].any()
        assert value.isfinite().all()


def test_padding_may_hold_anything_finite_and_changes_no_bit() -> None:
    (query, key, value), mask = draw((3, 2, 6, 9, 16), torch.float32)
    expected = native(query, key, value, mask)
    hidden = ~mask[:, None, :, None]
    found = native(query, key.masked_fill(hidden, 1e30), value.masked_fill(hidden, -7.0), mask)
    assert torch.equal(found, expected)


def test_large_scores_stay_finite() -> None:
    (query, key, value), mask = draw((1, 2, 6, 9, 16), torch.float32)
    compare([1e3 * query, key, value], mask, causal=False, dropout=0.0)


def test_threads_change_no_bit() -> None:
    inputs, mask = draw((5, 3, 20, 25, 16), torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = [each.clone().requires_grad_() for each in inputs]
            y = native(*leaves, mask, dropout=0.2)
            results.append([y, *torch.autograd.grad((y * y).sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_torch_accepts_the_op_and_agrees_without_dropout() -> None:
    inputs, mask = draw((2, 2, 4, 6, 8), torch.float32)
    leaves = [each.requires_grad_() for each in inputs]
    op = torch.ops.lightconv_mt.attention.default
    torch.library.opcheck(op, (*leaves, mask, False, 0.3, SEED))
    torch.library.opcheck(op, (*leaves[:2], leaves[1], None, False, 0.0, 0))
    plain = attention(*inputs, mask, backend=Backend.torch)
    torch.testing.assert_close(native(*inputs, mask), plain, rtol=1e-5, atol=1e-5)


def test_more_weights_than_a_mask_can_number_are_refused() -> None:
    query = torch.empty(1, 1, 1, 4).expand(1, 1, 2**17, 4)
    with pytest.raises(ValueError, match="more weights than a mask"):
        native(query, query, query, None, dropout=0.1)


def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8)
    for wrong in (key[:1], key[:, :2], key[..., :4], key.bfloat16()):
        with pytest.raises(ValueError, match=r"must be \(2, 4, \d, 8\) torch.float32"):
            native(query, wrong, wrong, None)
    for mask in (torch.ones(2, 5), torch.ones(1, 5).bool(), torch.ones(2, 4).bool()):
        with pytest.raises(ValueError, match=r"the mask is .* but must be \(2, 5\) torch.bool"):
            native(query, key, key, mask)
