"""The reference against a triple loop in float64, and its own gradients."""

import pytest
import torch
from torch import Tensor

from lightconv_mt.ops.masks import keep_mask
from lightconv_mt.ops.reference import (
    dynamicconv_reference,
    lightconv_reference,
    mask_outside_taps,
)

SIZES = [(time, width) for time in (1, 2, 5, 31) for width in (1, 2, 3, 4, 7, 31)]


def loop(x: Tensor, taps: Tensor, padding_left: int) -> Tensor:
    """Paper, equation of section 3: taps (B, T, H, K) are used as they are."""
    batch, time, channels = x.shape
    heads, width = taps.shape[2:]
    y = torch.zeros_like(x)
    for b in range(batch):
        for t in range(time):
            for c in range(channels):
                for j in range(width):
                    source = t - padding_left + j
                    if 0 <= source < time:
                        y[b, t, c] += taps[b, t, c * heads // channels, j] * x[b, source, c]
    return y


@pytest.mark.parametrize(("time", "width"), SIZES)
@pytest.mark.parametrize("normalize", [True, False])
def test_both_equal_the_loop(time: int, width: int, normalize: bool) -> None:
    x = torch.randn(2, time, 6, dtype=torch.float64)
    shared, own = (
        torch.randn(3, width, dtype=torch.float64),
        torch.randn(2, time, 3, width, dtype=torch.float64),
    )
    for padding_left in {0, width // 2, width - 1}:
        options = {"padding_left": padding_left, "normalize": normalize}
        taps = shared.softmax(-1) if normalize else shared
        expected = loop(x, taps.expand(2, time, 3, width), padding_left)
        torch.testing.assert_close(
            lightconv_reference(x, shared, **options), expected, rtol=0, atol=1e-12
        )
        expected = loop(x, own.softmax(-1) if normalize else own, padding_left)
        torch.testing.assert_close(
            dynamicconv_reference(x, own, **options), expected, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("time", "width", "padding_left"), [(1, 3, 2), (4, 3, 1), (5, 4, 0), (3, 7, 6)]
)
def test_gradients_are_those_of_finite_differences(
    time: int, width: int, padding_left: int
) -> None:
    x = torch.randn(2, time, 4, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(2, width, dtype=torch.float64, requires_grad=True)
    own = torch.randn(2, time, 2, width, dtype=torch.float64, requires_grad=True)
    options = {"padding_left": padding_left, "dropout": 0.3, "seed": 7}
    assert torch.autograd.gradcheck(lambda x, w: lightconv_reference(x, w, **options), (x, shared))
    assert torch.autograd.gradcheck(lambda x, w: dynamicconv_reference(x, w, **options), (x, own))


def test_mass_left_of_the_sequence_is_lost() -> None:
    """DynamicConv at T = 1: softmax over all K, then the K - 1 outer taps are dropped."""
    x, weight = torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 3)
    assert float(dynamicconv_reference(x, weight, padding_left=2)) == pytest.approx(1 / 3)


def test_masking_outside_taps_keeps_all_mass() -> None:
    x, weight = torch.ones(1, 2, 1), torch.randn(1, 2, 1, 5)
    for padding_left in (0, 2, 4):
        y = dynamicconv_reference(
            x, mask_outside_taps(weight, padding_left), padding_left=padding_left
        )
        torch.testing.assert_close(y, x)


def test_bfloat16_is_summed_in_float32() -> None:
    x, weight = torch.randn(2, 40, 8).bfloat16(), torch.randn(2, 31)
    exact = lightconv_reference(x.double(), weight.double(), padding_left=15)
    y = lightconv_reference(x, weight, padding_left=15)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-6)


def test_dropout_rescales_and_repeats() -> None:
    weight, x = torch.randn(4, 31), torch.randn(1, 5, 8)
    first, again, other = (
        lightconv_reference(x, weight, padding_left=30, dropout=0.4, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    kept = keep_mask((4, 31), dropout=0.4, seed=3, device="cpu")
    scaled = weight.softmax(-1) * kept / 0.6
    torch.testing.assert_close(
        first,
        lightconv_reference(x, scaled, padding_left=30, normalize=False),
        rtol=1e-5,
        atol=1e-6,
    )


def test_keep_mask_has_the_asked_rate_and_no_pattern() -> None:
    mask = keep_mask((200, 1000), dropout=0.3, seed=123456789012345, device="cpu").double()
    assert float(mask.mean()) == pytest.approx(0.7, abs=0.005)
    assert float((mask.mean(0) - 0.7).abs().max()) < 0.15
    shifted = (mask[:, 1:] * mask[:, :-1]).mean()
    assert float(shifted) == pytest.approx(0.49, abs=0.01)
    assert not torch.equal(
        mask, keep_mask((200, 1000), dropout=0.3, seed=123456789012346, device="cpu").double()
    )
