"""Cross-entropy and residual dropout in float64, row by row, sharing no code with ops/."""

from dataclasses import dataclass

import numpy as np

from kernel_gate.loops import Array, survivors


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of all rows together the two losses, of each logit the gradient."""

    loss: Array
    nll: Array
    gradient: Array


def cross_entropy(
    logits: Array, target: Array, *, label_smoothing: float, agreement: float
) -> tuple[Losses, Losses]:
    """The exact results, and the size of what is added up in each of their elements.

    Args:
        logits: (R, V).
        target: (R,) in 0..V-1.
        label_smoothing: what words besides the target get together, in equal parts.
        agreement: weight of the divergence of rows r and r + R / 2; 0: rows stand alone.

    Returns:
        The results, and for each element the sum of the absolute values of its terms. A
        probability's relative error is that of a logit less a logarithm: the logarithm is a term.
    """
    rows, vocab = logits.shape
    weights = np.full((rows, vocab), label_smoothing / max(1, vocab - 1))
    weights[np.arange(rows), target] = 1.0 if vocab == 1 else 1.0 - label_smoothing
    logp = logits - logits.max(1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    p, size = np.exp(logp), 1.0 + np.abs(logp)
    nll = -logp[np.arange(rows), target]
    loss = -(weights * logp).sum()
    gradient, terms = p - weights, p * size + weights
    if not agreement:
        exact = Losses(loss=loss, nll=nll.sum(), gradient=gradient)
        # The target's word is taken out of those that all are smoothed over.
        return exact, Losses(loss=loss + nll.sum(), nll=nll.sum() + rows, gradient=terms)
    other = (np.arange(rows) + rows // 2) % rows
    ratio, sizes = logp - logp[other], np.abs(logp) + np.abs(logp[other])
    apart, sums_apart = ((p * each).sum(1, keepdims=True) for each in (ratio, sizes))
    share = agreement / 4
    exact = Losses(
        loss=loss / 2 + share * apart.sum(),
        nll=nll.sum() / 2,
        gradient=gradient / 2 + share * (p * (ratio - apart) + p - p[other]),
    )
    pulled = p * size * (1.0 + sizes + sums_apart) + p[other] * size[other]
    return exact, Losses(
        loss=(loss + nll.sum()) / 2 + share * sums_apart.sum(),
        nll=nll.sum() / 2 + rows,
        gradient=terms / 2 + share * pulled,
    )


def residual(x: Array, y: Array, grad: Array, *, dropout: float, seed: int) -> tuple[Array, Array]:
    """`x + dropout(y)`, and the gradient of y when that of the sum is `grad`."""
    factor = survivors(y.shape, dropout, seed) / (1.0 - dropout)
    return x + factor * y, factor * grad
