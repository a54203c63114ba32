"""Cross-entropy of logits, alone and in pairs, against autograd in float64."""

import math

import pytest
import torch
from cpp_kernels import cpu_backends
from torch import Tensor

from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.dispatch import Backend

BACKENDS = cpu_backends()

# Rounding of the gradient, whose entries are at most about 1 + agreement.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def formula(logits: Tensor, target: Tensor, smoothing: Smoothing) -> tuple[Tensor, Tensor]:
    """Loss and likelihood as R-Drop's equation 4 (halved) and the label smoothing state them."""
    logp = logits.double().log_softmax(-1)
    spread = smoothing.label_smoothing / max(1, logits.shape[1] - 1)
    nll = -logp.gather(1, target[:, None]).squeeze(1)
    loss = (1 - smoothing.label_smoothing - spread) * nll - spread * logp.sum(1)
    if not smoothing.agreement:
        return loss.sum(), nll.sum()
    p, q = logp.chunk(2)
    both = (p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()
    return 0.5 * (loss.sum() + smoothing.agreement / 2 * both), 0.5 * nll.sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 16, 37, 1000])
@pytest.mark.parametrize("agreement", [0.0, 3.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradient(
    backend: Backend, dtype: torch.dtype, vocab_size: int, agreement: float, label_smoothing: float
) -> None:
    smoothing = Smoothing(label_smoothing=label_smoothing, agreement=agreement)
    logits = (3 * torch.randn(10, vocab_size)).to(dtype)
    target = torch.randint(vocab_size, (5,)).repeat(2)
    exact = logits.double().clone().requires_grad_()
    expected = formula(exact, target, smoothing)
    (slope,) = torch.autograd.grad(expected[0], exact)

    untouched = logits.clone()
    without = cross_entropy_(untouched, target, smoothing, gradient=False, backend=backend)
    found = cross_entropy_(logits, target, smoothing, gradient=True, backend=backend)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for value, again, reference in zip(found, without, expected, strict=True):
        assert value.dtype is wide
        assert torch.equal(value, again)
        rtol = 1e-12 if wide is torch.float64 else 1e-5
        torch.testing.assert_close(value.double(), reference, rtol=rtol, atol=rtol)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(logits.double(), slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_rows_are_independent_and_large_logits_stay_finite(
    backend: Backend, agreement: float
) -> None:
    smoothing = Smoothing(label_smoothing=0.1, agreement=agreement)
    logits = torch.randn(6, 20)
    logits[0, 3], logits[1] = 1e4, torch.nan
    target = torch.tensor([4, 5, 6] * 2)
    loss, _ = cross_entropy_(logits, target, smoothing, gradient=True, backend=backend)
    assert math.isnan(loss)
    spoiled = {1, 4} if agreement else {1}
    assert set(logits.isnan().any(1).nonzero().flatten().tolist()) == spoiled


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", [-1, 8])
def test_a_target_that_is_no_word_is_refused(backend: Backend, word: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"target|out of bounds"):
        cross_entropy_(
            torch.randn(1, 8),
            torch.tensor([word]),
            Smoothing(label_smoothing=0.1),
            gradient=True,
            backend=backend,
        )


@pytest.mark.skipif(Backend.native not in BACKENDS, reason="no native kernels")
def test_threads_change_no_bit() -> None:
    logits, target = torch.randn(64, 300), torch.randint(300, (32,)).repeat(2)
    smoothing = Smoothing(label_smoothing=0.1, agreement=2.0)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            slope = logits.clone()
            losses = cross_entropy_(slope, target, smoothing, gradient=True, backend=Backend.native)
            results.append((slope, *losses))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], others, strict=True))
