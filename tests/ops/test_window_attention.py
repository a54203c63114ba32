"""Attention to windows, in one piece and in blocks, against a loop over positions."""

import pytest
import torch
from torch import Tensor

from lightconv_mt.ops.window_attention import SMALLEST_BLOCK, window_attention


def loop(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, window: int, padding_left: int
) -> Tensor:
    batch, _, time, size = query.shape
    y = torch.zeros_like(value)
    for row in range(batch):
        for t in range(time):
            first = t - padding_left
            seen = [
                s for s in range(max(first, 0), min(first + window, time)) if mask[row, s] or s == t
            ]
            scores = (query[row, :, t, None] * key[row][:, seen]).sum(-1) * size**-0.5  # (H, seen)
            y[row, :, t] = (scores.softmax(-1)[..., None] * value[row][:, seen]).sum(1)
    return y


@pytest.mark.parametrize("time", [1, 2, 31, 64, 65, 131])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 31, 40])
def test_windows_equal_the_loop(time: int, window: int) -> None:
    assert SMALLEST_BLOCK == 32  # else no length here is cut into blocks, or all are
    inputs = [torch.randn(2, 3, time, 4, dtype=torch.float64) for _ in range(3)]
    mask = torch.ones(2, time, dtype=torch.bool)
    mask[1, time // 2 :] = False
    for padding_left in {0, window // 2, window - 1}:
        ours = [each.clone().requires_grad_() for each in inputs]
        theirs = [each.clone().requires_grad_() for each in inputs]
        y = window_attention(*ours, mask, window=window, padding_left=padding_left)
        expected = loop(*theirs, mask, window, padding_left)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        slope = torch.randn_like(y)
        for mine, other in zip(
            torch.autograd.grad(y, ours, slope),
            torch.autograd.grad(expected, theirs, slope, allow_unused=True),
            strict=True,
        ):
            other = torch.zeros_like(mine) if other is None else other
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_weights_are_dropped() -> None:
    query, key = torch.randn(2, 1, 2, 200, 4).unbind()
    value, mask = torch.ones(1, 2, 200, 1), torch.ones(1, 200, dtype=torch.bool)
    y = window_attention(query, key, value, mask, window=9, padding_left=4, dropout=0.5)
    assert y.std() > 0.1 and float(y.mean()) == pytest.approx(1.0, abs=0.15)
