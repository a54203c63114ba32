"""The chunked loss against the formula."""

import pytest
import torch

from lightconv_mt.ops.products import PIECES
from lightconv_mt.train import loss as loss_module
from lightconv_mt.train.loss import LabelSmoothedLoss


def formula(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logp = logits.log_softmax(-1)
    nll = -logp.gather(-1, target[..., None]).squeeze(-1)
    spread = eps / (logits.shape[-1] - 1)
    smoothed = (1 - eps - spread) * nll + spread * -logp.sum(-1)
    return smoothed[mask].sum(), nll[mask].sum()


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_value_and_gradients(eps: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk * 11)
    hidden = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(11, (3, 5))
    mask = torch.rand(3, 5) < 0.7
    value = LabelSmoothedLoss(eps)(hidden, weight, target, mask)
    expected, nll = formula(hidden @ weight.T, target, mask, eps)
    torch.testing.assert_close(value.loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(value.nll, nll, rtol=0, atol=1e-12)
    assert not value.nll.requires_grad
    ours = torch.autograd.grad(value.loss * 3.0, (hidden, weight))
    theirs = torch.autograd.grad(expected * 3.0, (hidden, weight))
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [2, 4, 512])
def test_two_predictions_are_drawn_together(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-Drop: each token counts once, and chunks keep its two predictions side by side."""
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk * 11)
    hidden = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    target, mask = torch.randint(11, (2, 5)).repeat(2, 1), (torch.rand(2, 5) < 0.7).repeat(2, 1)
    value = LabelSmoothedLoss(0.1, agreement=4.0)(hidden, weight, target, mask)
    smoothed, nll = formula(hidden @ weight.T, target, mask, 0.1)
    first, second = (hidden @ weight.T).log_softmax(-1)[mask].chunk(2)
    apart = (first.exp() * (first - second)).sum() + (second.exp() * (second - first)).sum()
    expected = 0.5 * (smoothed + 4.0 / 2 * apart)
    torch.testing.assert_close(value.loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(value.nll, 0.5 * nll, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(value.loss, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("device", "logits"), [("cpu", 2**24), ("cuda", 2**27)])
def test_chunks_are_bounded_in_logits_and_hold_whole_pairs(device: str, logits: int) -> None:
    for vocab_size in (1, 8_001, 32_768, 50_257, 2**28):
        rows = loss_module.chunk_rows(vocab_size, device=torch.device(device))
        assert rows % 2 == 0
        assert rows == 2 or rows * vocab_size <= logits
        if rows < 2 * PIECES[-1]:
            assert rows == 2 or rows > logits // vocab_size - 2
        else:
            assert rows % (2 * PIECES[-1]) == 0
            assert rows > logits // vocab_size - 2 * PIECES[-1]


def test_large_logits_stay_finite() -> None:
    hidden = torch.full((1, 2, 4), 200.0, requires_grad=True)
    weight = torch.tensor([[50.0] * 4, [-50.0] * 4, [0.0] * 4])
    value = LabelSmoothedLoss(0.1)(
        hidden, weight, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    )
    value.loss.backward()
    assert value.loss.isfinite()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_bfloat16_autocast_is_close() -> None:
    hidden, weight = torch.randn(2, 30, 16), torch.randn(40, 16)
    target, mask = torch.randint(40, (2, 30)), torch.ones(2, 30, dtype=torch.bool)
    exact = LabelSmoothedLoss(0.1)(hidden, weight, target, mask)
    with torch.autocast("cpu", torch.bfloat16):
        value = LabelSmoothedLoss(0.1)(hidden, weight, target, mask)
    assert value.loss.dtype is torch.float32
    torch.testing.assert_close(value.loss, exact.loss, rtol=5e-3, atol=0)
