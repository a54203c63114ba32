"""What training takes on a GPU besides convolutions: cross-entropy, dropout, whole steps.

Run by bench_gpu.py. Everything also runs on a CPU with its own backends, at sizes of a test.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from gpu_clock import WARM_UP, Clock, timed_apart
from lightconv_mt.data.batching import Batch
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer
from lightconv_mt.ops import Backend
from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.residual import residual
from lightconv_mt.train.compile import compile_layers, example_batch
from lightconv_mt.train.loss import LabelSmoothedLoss, Objective

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured: rows of logits, elements of a residual, models and their batch."""

    rows: int = 4096
    vocabularies: Sequence[int] = (10_001, 32_768)
    residual: tuple[int, int, int] = (128, 32, 1024)
    # Name, dim, ffn_dim, heads, layers of the encoder and the decoder.
    models: Sequence[tuple[str, int, int, int, int]] = (
        ("base", 512, 2048, 8, 6),
        ("big", 1024, 4096, 16, 6),
    )
    batch: tuple[int, int, int] = (256, 31, 33)
    vocabulary: int = 32_768


def measurements(
    device: torch.device, kernels: Backend, sizes: Sizes, *, rounds: int
) -> Iterator[Row]:
    """One row a case and candidate."""
    for dtype in (torch.float32, torch.bfloat16):
        yield from cross_entropies(device, kernels, sizes, dtype, rounds)
        yield from residuals(device, kernels, sizes, dtype, rounds)
    yield from steps(device, kernels, sizes, rounds)


def cross_entropies(
    device: torch.device, kernels: Backend, sizes: Sizes, dtype: torch.dtype, rounds: int
) -> Iterator[Row]:
    """Loss and gradient of rows of logits, alone and in pairs, beside plain torch."""
    for vocabulary in sizes.vocabularies:
        target = torch.randint(vocabulary, (sizes.rows // 2,), device=device).repeat(2)
        source = torch.randn(sizes.rows, vocabulary, device=device).to(dtype)
        logits = source.clone()
        for agreement in (0.0, 3.0):
            smoothing = Smoothing(label_smoothing=0.1, agreement=agreement)
            call = partial(cross_entropy_, logits, target, smoothing, gradient=True)
            found = []
            for backend in (kernels, Backend.torch):
                logits.copy_(source)
                call(backend=backend)
                found.append(logits.clone())
            torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)
            candidates = {
                kernels.name: partial(call, backend=kernels),
                "plain torch": partial(call, backend=Backend.torch),
            }
            case = {"case": "cross-entropy", "detail": f"{sizes.rows} x {vocabulary}"}
            case["detail"] += ", R-Drop" if agreement else ""
            yield from timed(candidates, case, dtype, device, rounds)


def residuals(
    device: torch.device, kernels: Backend, sizes: Sizes, dtype: torch.dtype, rounds: int
) -> Iterator[Row]:
    """`x + dropout(y)` forward and backward, beside torch's own generator."""
    x = torch.randn(sizes.residual, device=device, requires_grad=True)
    y = torch.randn(sizes.residual, device=device).to(dtype).requires_grad_()
    upstream = torch.randn(sizes.residual, device=device)

    def ours() -> None:
        joined = residual(x, y, dropout=0.1, seed=1, backend=kernels)
        torch.autograd.grad(joined, (x, y), upstream)

    def plain() -> None:
        torch.autograd.grad(x + F.dropout(y, 0.1), (x, y), upstream)

    case = {"case": "residual and dropout", "detail": " x ".join(map(str, sizes.residual))}
    yield from timed({kernels.name: ours, "plain torch": plain}, case, dtype, device, rounds)


def steps(device: torch.device, kernels: Backend, sizes: Sizes, rounds: int) -> Iterator[Row]:
    """Forward, backward and Adam in bfloat16 on one batch; then the same compiled."""
    tokens = example_batch(device, sizes.batch).num_tokens
    for compiled, shape, mixer in product(
        (False, True), sizes.models, ("lightconv", "dynamicconv", "attention")
    ):
        detail, started = f"{shape[0]} {mixer}", time.perf_counter()
        step = example_step(device, kernels, sizes, shape, mixer, compiled=compiled)
        if compiled:
            detail += f", compiled in {time.perf_counter() - started:.0f} s"
        case = {"case": "training step", "detail": detail}
        label = "compiled" if compiled else "eager"
        yield from timed({label: step}, case, torch.bfloat16, device, rounds, tokens)
        if compiled:
            torch.compiler.set_stance("default")
            torch.compiler.reset()


def example_step(
    device: torch.device,
    kernels: Backend,
    sizes: Sizes,
    shape: tuple[str, int, int, int, int],
    mixer: str,
    *,
    compiled: bool = False,
) -> Callable[[], None]:
    """One training step of a new model of `sizes.models`, to be made again and again."""
    _, dim, ffn_dim, heads, layers = shape
    config = ModelConfig(
        mixer=MIXERS[mixer](**widths(mixer, layers)),
        dim=dim,
        ffn_dim=ffn_dim,
        num_heads=heads,
        encoder_layers=layers,
        decoder_layers=layers,
        dropout=0.1,
    )
    model = build(config, sizes.vocabulary, kernels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    objective = Objective(model, LabelSmoothedLoss(0.1, backend=kernels)).train()
    if compiled:
        compile_layers(model, partial(train, objective, optimizer, example_batch(device)))
    return partial(train, objective, optimizer, example_batch(device, sizes.batch))


def train(objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step, without what the loop does around it."""
    with torch.autocast(batch.src.device.type, torch.bfloat16):
        loss = objective(batch).loss / batch.num_tokens
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def widths(mixer: str, layers: int) -> dict[str, list[int]]:
    """Kernel widths of the paper's six-layer sides, cut to fewer layers."""
    if mixer == "attention":
        return {}
    found = [3, 7, 15, 31, 31, 31][:layers]
    return {"encoder_kernel_sizes": found, "decoder_kernel_sizes": found}


def build(config: ModelConfig, vocabulary: int, kernels: Backend) -> Seq2SeqTransformer:
    """A model over one vocabulary."""
    return Seq2SeqTransformer(
        config,
        src_vocab_size=vocabulary,
        tgt_vocab_size=vocabulary,
        src_pad_id=0,
        tgt_pad_id=0,
        backend=kernels,
    )


def timed(
    candidates: dict[str, Callable[[], object]],
    case: Row,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    tokens: int | None = None,
) -> Iterator[Row]:
    """Median seconds of candidates called in turn, and the most memory held.

    Kernels are timed on the GPU, `host_seconds` apart; whole steps, which wait for the GPU
    themselves, by the clock on the wall.
    """
    clocks = {label: Clock() for label in candidates}
    peaks: dict[str, int] = {}
    gpu = device.type == "cuda"
    for _ in range(WARM_UP + rounds):
        for label, call in candidates.items():
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            clock = clocks[label]
            if gpu and tokens is None:
                timed_apart([call], [clock])
            else:
                started = time.perf_counter()
                call()
                if gpu:
                    torch.cuda.synchronize()
                clock.device.append(time.perf_counter() - started)
            if gpu:
                peaks[label] = max(peaks.get(label, 0), torch.cuda.max_memory_allocated())
    for label, clock in clocks.items():
        row = {**case, "dtype": str(dtype)[6:], "candidate": label, "seconds": clock.seconds}
        row["host_seconds"] = clock.host_seconds if clock.host else ""
        row["tokens_per_second"] = tokens / clock.seconds if tokens else ""
        yield row | {"peak_bytes": peaks.get(label, "")}
