"""The loop that people write around a model of torch: Adam, label smoothing, nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peers import job as recipe
from peers.corpus import Ids, draw_batches, read_pairs
from peers.job import Job, learning_rate
from peers.windows import Windows

BOS, PAD, VOCABULARY = 0, 1, 8000  # of the tokenizer that all sides have
# Source (B, S) and decoder input (B, T), int64 and padded on the right, give logits (B, T, V).
Forward = Callable[[Tensor, Tensor], Tensor]


def train(job: Job, windows: Windows, model: nn.Module, forward: Forward, *, version: str) -> None:
    """Train until there are no more commands."""
    torch.set_num_threads(job.threads)
    pairs = read_pairs(Path(job.corpus))
    optimizer = torch.optim.Adam(model.parameters(), betas=recipe.BETAS, eps=recipe.EPS)
    model.train()
    windows.open(
        {
            "version": version,
            "parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
            "target_tokens": sum(len(tgt) for _, tgt in pairs),
        }
    )
    batches = draw_batches(pairs, max_tokens=recipe.MAX_TOKENS, seed=job.seed)
    for done, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done)
        target = pad([tgt for _, tgt in batch])
        tokens = int((target != PAD).sum())
        decoder_input = functional.pad(target[:, :-1], (1, 0), value=BOS)
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
            logits = forward(pad([src for src, _ in batch]), decoder_input)
        loss, nll = smoothed_loss(logits.float(), target)
        (loss / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        windows.update(tokens, loss.item(), nll.item())


def smoothed_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy and negative log-likelihood, summed over real tokens.

    What `cross_entropy(label_smoothing=...)` computes, by the same operations, with the
    likelihood kept.
    """
    logp = logits.flatten(0, 1).log_softmax(-1)
    nll = functional.nll_loss(logp, target.flatten(), ignore_index=PAD, reduction="sum")
    everywhere = -logp.mean(-1).masked_fill(target.flatten() == PAD, 0.0).sum()
    smoothing = recipe.LABEL_SMOOTHING
    return (1 - smoothing) * nll + smoothing * everywhere, nll.detach()


def pad(rows: list[Ids]) -> Tensor:
    """Ids (B, T) int64, padded on the right."""
    padded = np.full((len(rows), max(map(len, rows))), PAD, dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return torch.from_numpy(padded)
