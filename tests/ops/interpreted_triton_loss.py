"""Run by tests/ops/test_triton.py with TRITON_INTERPRET=1: cross-entropy, residual dropout."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops import triton_cross_entropy, triton_residual
from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.masks import keep_mask
from lightconv_mt.ops.triton_residual import residual_triton
from lightconv_mt.ops.triton_table import Block

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/ops/test_triton.py"

# Rounding of the gradient, whose entries are at most about 1 + agreement.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BLOCK = 64


@pytest.fixture(autouse=True)
def outputs_hold_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    for module in (triton_cross_entropy, triton_residual):
        monkeypatch.setattr(module, "empty", full)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes several blocks, of which the last is not full."""

    def choose(name: str, *, elements: int, architecture: str) -> Block:
        return Block(min(BLOCK, 1 << (elements - 1).bit_length()), 1)

    monkeypatch.setattr(triton_cross_entropy, "choose_block", choose)


def loop(logits: Tensor, target: Tensor, smoothing: Smoothing) -> dict[str, Any]:
    """Losses of each row and the gradient of their sum, row by row in float64."""
    x = logits.double().numpy()
    rows, vocab = x.shape
    eps, alpha = smoothing.label_smoothing, smoothing.agreement
    weights = np.full((rows, vocab), eps / max(1, vocab - 1))
    weights[np.arange(rows), target.numpy()] = 1.0 - eps
    if vocab == 1:
        weights[:] = 1.0
    logp = x - x.max(1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    p, picked = np.exp(logp), logp[np.arange(rows), target.numpy()]
    losses, nll = -(weights * logp).sum(1), -picked
    gradient, apart = p - weights, np.zeros(rows)
    if smoothing.paired:
        for row in range(rows):
            other = (row + rows // 2) % rows
            ratio = logp[row] - logp[other]
            apart[row] = (p[row] * ratio).sum()
            own = p[row] * (ratio - apart[row]) + p[row] - p[other]
            gradient[row] = 0.5 * (gradient[row] + alpha / 2 * own)
        losses, nll = 0.5 * losses, 0.5 * nll
    total = losses.sum() + alpha / 4 * apart.sum()
    return {"loss": total, "nll": nll.sum(), "gradient": torch.from_numpy(gradient)}


def cases() -> list[tuple[int, torch.dtype, float, float]]:
    """Vocabularies around the block's size, every type, alone and in pairs; all take turns."""
    vocabularies = (1, 2, 3, 37, 63, 64, 65, 127, 128, 129, 1000)
    types, smoothing = list(TOLERANCES), (0.1, 0.0, 0.3)
    return [
        (vocab, types[place % 3], smoothing[place // 2 % 3], agreement)
        for place, vocab in enumerate(vocabularies)
        for agreement in (0.0, 3.0)
    ]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("vocab", "dtype", "eps", "agreement"), cases())
def test_cross_entropy_equals_the_loop_and_plain_torch(
    vocab: int, dtype: torch.dtype, eps: float, agreement: float
) -> None:
    smoothing = Smoothing(label_smoothing=eps, agreement=agreement)
    # More than the rows of the call: what lies around them must not change.
    memory = (3 * torch.randn(8, vocab)).to(dtype)
    before, logits = memory.clone(), memory[1:7]
    target = torch.tensor([0, vocab - 1, vocab // 2]).repeat(2)
    exact = loop(logits, target, smoothing)
    plain = logits.clone()
    losses = cross_entropy_(plain, target, smoothing, gradient=True, backend=Backend.torch)
    without = cross_entropy_(logits, target, smoothing, gradient=False, backend=Backend.triton)
    assert torch.equal(memory, before)
    found = cross_entropy_(logits, target, smoothing, gradient=True, backend=Backend.triton)
    for value, again, reference, name in zip(found, without, losses, ("loss", "nll"), strict=True):
        assert value.dtype is torch.float32
        assert torch.equal(value, again)
        assert float(value) == pytest.approx(exact[name], rel=1e-5, abs=1e-5)
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5)
    tolerance = TOLERANCES[dtype]
    for reference in (exact["gradient"], plain.double()):
        torch.testing.assert_close(logits.double(), reference, rtol=tolerance, atol=tolerance)
    assert torch.equal(memory[::7], before[::7])


@pytest.mark.parametrize("agreement", [0.0, 3.0])
def test_a_vocabulary_of_100_000_words_takes_the_blocks_of_a_gpu(agreement: float) -> None:
    smoothing = Smoothing(label_smoothing=0.1, agreement=agreement)
    logits, target = 3 * torch.randn(2, 100_003), torch.tensor([99_999, 99_999])
    exact = loop(logits, target, smoothing)
    loss, nll = cross_entropy_(logits, target, smoothing, gradient=True, backend=Backend.triton)
    assert float(loss) == pytest.approx(exact["loss"], rel=1e-5)
    assert float(nll) == pytest.approx(exact["nll"], rel=1e-5)
    torch.testing.assert_close(logits.double(), exact["gradient"], rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_rows_are_independent_and_large_or_impossible_logits_stay_finite(agreement: float) -> None:
    smoothing = Smoothing(label_smoothing=0.0, agreement=agreement)
    logits = torch.randn(6, 200)
    logits[0, 3], logits[1] = 1e4, torch.nan
    target = torch.tensor([4, 5, 6] * 2)
    cross_entropy_(logits, target, smoothing, gradient=True, backend=Backend.triton)
    spoiled = {1, 4} if agreement else {1}
    assert set(logits.isnan().any(1).nonzero().flatten().tolist()) == spoiled
    # The first block holds no possible word.
    logits = torch.randn(1, 200)
    logits[0, :BLOCK] = -torch.inf
    expected = logits.softmax(-1) - torch.nn.functional.one_hot(torch.tensor([70]), 200)
    alone = Smoothing(label_smoothing=0.0)
    cross_entropy_(logits, torch.tensor([70]), alone, gradient=True, backend=Backend.triton)
    torch.testing.assert_close(logits, expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("agreement", [0.0, 1.0])
@pytest.mark.parametrize("word", [-1, 90])
def test_a_target_that_is_no_word_spoils_its_row_alone(agreement: float, word: int) -> None:
    logits, target = torch.randn(4, 90), torch.tensor([1, word, 1, word])
    smoothing = Smoothing(label_smoothing=0.1, agreement=agreement)
    loss, nll = cross_entropy_(logits, target, smoothing, gradient=True, backend=Backend.triton)
    assert loss.isnan() and nll.isnan()
    assert logits.isnan().all(1).tolist() == [False, True, False, True]
    assert logits[::2].isfinite().all()


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 40, 64), (0, 4)])
@pytest.mark.parametrize(
    "types", [(torch.float32, torch.bfloat16), (torch.float32,) * 2, (torch.float16,) * 2]
)
def test_residual_dropout_drops_what_the_mask_says(
    shape: tuple[int, ...], types: tuple[torch.dtype, torch.dtype]
) -> None:
    seed, dropout = -(2**61) + 77, 0.3
    x = torch.randn(shape).to(types[0])
    y = torch.randn(*shape[:-1], 2 * shape[-1]).to(types[1])[..., : shape[-1]]
    mask = keep_mask(shape, dropout=dropout, seed=seed, device="cpu")
    joined = residual_triton(x, y, dropout, seed, types[0])
    expected = x.double() + y.double() * mask / (1 - dropout)
    tolerance = TOLERANCES[types[0]]
    assert joined.dtype is types[0]
    torch.testing.assert_close(joined.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(joined[~mask], x[~mask])
    gradient = torch.randn(shape).to(types[0])
    found = residual_triton(None, gradient, dropout, seed, types[1])
    expected = gradient.double() * mask / (1 - dropout)
    tolerance = TOLERANCES[types[1]]
    assert found.dtype is types[1]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(found == 0, ~mask)


def test_float64_is_refused_with_a_remedy() -> None:
    wide = torch.randn(2, 8, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"take no float64; set runtime\.kernels=torch"):
        cross_entropy_(
            wide,
            torch.zeros(2, dtype=torch.int64),
            Smoothing(label_smoothing=0.1),
            gradient=True,
            backend=Backend.triton,
        )
    with pytest.raises(ConfigError, match="take no float64"):
        residual_triton(None, wide, 0.1, 1, torch.float32)
