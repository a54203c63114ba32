"""A model for tests of searches: next-token distributions from a table of random numbers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds

IDS = SpecialIds(bos=0, pad=1, eos=2, unk=3)
ROWS = 4099


@dataclass(frozen=True)
class TableState:
    """One hash of the prefix a row; which sentence a row serves is carried to be checked."""

    hashes: Tensor
    row_sentences: Tensor
    sentences: Tensor

    def reorder(self, rows: Tensor) -> "TableState":
        """Take rows of the target side."""
        return replace(
            self,
            hashes=self.hashes.index_select(0, rows),
            row_sentences=self.row_sentences.index_select(0, rows),
        )

    def keep(self, sentences: Tensor) -> "TableState":
        """Take sentences of the source side."""
        return replace(self, sentences=self.sentences.index_select(0, sentences))

    def join(self, others: "TableState") -> "TableState":
        """Put the sentences of others behind its own."""
        return TableState(
            **{
                key: torch.cat([getattr(each, key) for each in (self, others)])
                for key in vars(self)
            }
        )


class TableModel:
    """Random next-token distributions, a pure function of (sentence, prefix)."""

    def __init__(
        self, vocab: int, *, seed: int, scale: float = 1.5, dtype: torch.dtype = torch.float64
    ) -> None:
        """Draw the table; a larger scale makes the model surer of itself."""
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(ROWS, vocab, generator=generator, dtype=dtype) * scale
        self.calls: list[Tensor] = []

    def start(self, sentences: Tensor, beam_size: int) -> TableState:
        """State before BOS for the given sentence numbers (B,)."""
        rows = sentences.repeat_interleave(beam_size)
        return TableState(hashes=rows * 7919, row_sentences=rows, sentences=sentences)

    def step(self, tokens: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        """Read tokens (N, 1); logits (N, 1, V)."""
        beam_size = len(tokens) // len(state.sentences)
        assert torch.equal(state.row_sentences, state.sentences.repeat_interleave(beam_size))
        self.calls.append(tokens)
        hashes = (state.hashes * 31 + tokens[:, 0] * 17 + 1) % ROWS
        return self.table[hashes][:, None], replace(state, hashes=hashes)

    def logp(self, sentence: int, prefix: tuple[int, ...]) -> list[float]:
        """Log-probabilities after BOS and the prefix."""
        value = sentence * 7919
        for token in (IDS.bos, *prefix):
            value = (value * 31 + token * 17 + 1) % ROWS
        return self._normalised[value]

    @property
    def _normalised(self) -> list[list[float]]:
        if not hasattr(self, "_lists"):
            self._lists: list[list[float]] = self.table.log_softmax(-1).tolist()
        return self._lists
