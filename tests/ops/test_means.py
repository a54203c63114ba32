"""Means against sums over lists."""

import pytest
import torch

from lightconv_mt.ops.means import running_mean, running_mean_step, sentence_mean


def test_means_are_those_of_the_real_positions() -> None:
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1, 4:], mask[2, :3], mask[3] = False, False, False
    x[~mask] = float("nan")
    whole, running = sentence_mean(x, mask), running_mean(x, mask)
    assert whole.shape == (4, 1, 3)
    for row in range(4):
        for t in range(7):
            seen = [x[row, s] for s in range(t + 1) if mask[row, s]]
            expected = sum(seen, torch.zeros(3, dtype=torch.float64)) / max(len(seen), 1)
            torch.testing.assert_close(running[row, t], expected)
        torch.testing.assert_close(whole[row, 0], expected)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_steps_go_on_from_the_total(chunk: int) -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    total, position = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    means = []
    for start in range(0, 7, chunk):
        part = x[:, start : start + chunk]
        mean, total = running_mean_step(part, total, position)
        position = position + part.shape[1]
        means.append(mean)
    expected = running_mean(x, torch.ones(2, 7, dtype=torch.bool))
    torch.testing.assert_close(torch.cat(means, dim=1), expected, rtol=0, atol=1e-14)


def test_long_sentences_in_half_precision_keep_their_mean() -> None:
    """A sum in bfloat16 stops growing at 256."""
    x = torch.ones(1, 5000, 1, dtype=torch.bfloat16)
    mask = torch.ones(1, 5000, dtype=torch.bool)
    assert sentence_mean(x, mask).dtype is torch.bfloat16
    assert sentence_mean(x, mask).item() == running_mean(x, mask)[0, -1].item() == 1.0
    total = torch.full((1, 1), 4999.0)
    mean, total = running_mean_step(x[:, :1], total, torch.tensor([4999]))
    assert (mean.item(), mean.dtype, total.item()) == (1.0, torch.bfloat16, 5000.0)
