"""Positions: counted over real tokens, sines first."""

from math import cos, sin

import pytest
import torch

from lightconv_mt.model.embedding import TokenEmbedding, sinusoidal_positions, token_positions


def test_positions_count_real_tokens_from_two() -> None:
    mask = torch.tensor([[True, True, True, False], [False, True, True, False]])
    assert token_positions(mask).tolist() == [[2, 3, 4, 1], [1, 2, 3, 1]]


@pytest.mark.parametrize("dim", [2, 7, 8])
def test_sines_then_cosines(dim: int) -> None:
    positions = torch.tensor([[1, 2, 3, 500]])
    vectors = sinusoidal_positions(positions, dim)
    half = dim // 2
    assert vectors.shape == (1, 4, dim)
    assert vectors[0, 0].tolist() == [0.0] * dim
    for row, position in ((1, 2), (2, 3), (3, 500)):
        rates = [10000 ** (-i / max(half - 1, 1)) for i in range(half)]
        expected = (
            [sin(position * r) for r in rates]
            + [cos(position * r) for r in rates]
            + [0.0] * (dim % 2)
        )
        torch.testing.assert_close(vectors[0, row], torch.tensor(expected), rtol=0, atol=1e-4)


def test_padding_row_is_zero_and_gets_no_gradient() -> None:
    embedding = TokenEmbedding(10, 8, pad_id=1, dropout=0.0)
    tokens = torch.tensor([[4, 1]])
    out = embedding(tokens, token_positions(tokens != 1))
    assert out[0, 1].abs().sum() == 0
    out.sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[1].abs().sum() == 0 < embedding.weight.grad[4].abs().sum()
