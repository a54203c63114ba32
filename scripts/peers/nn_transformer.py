"""torch.nn.Transformer in a plain loop; its dropout is inside attention and feed-forward too."""

import math

import torch
from torch import Tensor, nn

from peers import job as recipe
from peers.job import SIZES, Job, Size
from peers.plain_loop import PAD, VOCABULARY, train
from peers.windows import Windows

LONGEST = 1024


class Translation(nn.Module):
    """Embeddings with sinusoidal positions around it; the output is the embedding once more."""

    positions: Tensor

    def __init__(self, size: Size) -> None:
        """Build it with the usual initial values."""
        super().__init__()
        self.scale = math.sqrt(size.dim)
        self.embedding = nn.Embedding(VOCABULARY, size.dim, padding_idx=PAD)
        self.dropout = nn.Dropout(recipe.DROPOUT)
        self.transformer = nn.Transformer(
            d_model=size.dim,
            nhead=size.num_heads,
            num_encoder_layers=size.layers,
            num_decoder_layers=size.layers,
            dim_feedforward=size.ffn_dim,
            dropout=recipe.DROPOUT,
            batch_first=True,
        )
        nn.init.normal_(self.embedding.weight, std=size.dim**-0.5)
        frequencies = torch.exp(-math.log(10000) * torch.arange(0, size.dim, 2) / size.dim)
        angles = torch.arange(LONGEST)[:, None] * frequencies
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, src: Tensor, decoder_input: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        length = decoder_input.shape[1]
        hidden = self.transformer(
            self._embed(src),
            self._embed(decoder_input),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            tgt_is_causal=True,
            src_key_padding_mask=src == PAD,
            memory_key_padding_mask=src == PAD,
        )
        return hidden @ self.embedding.weight.T

    def _embed(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids) * self.scale + self.positions[: ids.shape[1]])


def main() -> None:
    """Train until there are no more commands."""
    windows, job = Windows(), Job.of_process()
    torch.manual_seed(job.seed)
    model = Translation(SIZES[job.size])
    train(job, windows, model, model, version=f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
