"""Partition functions, C++ and plain torch, and the largest logits against float64."""

from math import inf, nan

import pytest
import torch
from cpp_kernels import cpu_backends
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv_mt.ops.best_tokens import best_tokens, log_partition
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.ops.native import KERNEL_TYPES

BACKENDS = cpu_backends()

on_backends = pytest.mark.parametrize("backend", BACKENDS)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 40),
    vocab=st.integers(1, 300),
    levels=st.integers(1, 40),
    dtype=st.sampled_from(list(KERNEL_TYPES)),
)
def test_the_largest_come_in_order_and_ties_by_id(
    seed: int, k: int, vocab: int, levels: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-levels, levels, (5, vocab), generator=generator).to(dtype)
    for impossible in (-inf, nan):
        logits[torch.rand(logits.shape, generator=generator) < 0.2] = impossible
    k = min(k, vocab)
    values, ids = best_tokens(logits, k)
    plain = logits.double().nan_to_num(nan=-inf, neginf=-inf)
    expected, order = plain.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values.double(), expected[:, :k])
    assert values.dtype is torch.promote_types(dtype, torch.float32)
    possible = values > -inf
    assert torch.equal(ids[possible], order[:, :k][possible])
    assert all(len(set(row)) == k for row in ids.tolist())
    assert torch.equal(plain.gather(1, ids), expected[:, :k])


@on_backends
@pytest.mark.parametrize("dtype", list(KERNEL_TYPES))
def test_partitions_are_those_of_float64(backend: Backend, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    for vocab in (1, 7, 16, 17, 1000, 4099):
        logits = (torch.randn(6, vocab) * 8).to(dtype)
        logits[1] += 5e4 if dtype is torch.float16 else 1e30
        logits[2, 0] = nan
        logits[3] = -inf
        logits[4, 1:] = -inf
        found = log_partition(logits, backend=backend)
        expected = logits.double().logsumexp(-1)
        torch.testing.assert_close(
            found.double(),
            expected,
            rtol=1e-12 if dtype is torch.float64 else 3e-7,
            atol=2e-6,
            equal_nan=True,
        )


@on_backends
def test_rows_that_are_not_contiguous(backend: Backend) -> None:
    logits = torch.randn(50, 4).T
    expected = log_partition(logits.contiguous(), backend=backend)
    torch.testing.assert_close(log_partition(logits, backend=backend), expected)
