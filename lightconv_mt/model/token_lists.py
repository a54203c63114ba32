"""Decoding among listed tokens: every sentence has a vocabulary of its own, a list of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Lists are padded to as much as torch's loops take at once, two vectors of 16: the rest they would
# round in another way, and a sentence's scores depend on the length of others' lists.
STEP = 32


@dataclass(frozen=True)
class TokenLists:
    """The tokens that each of B sentences may say; a token goes by its place in the list.

    Attributes:
        tokens: (B, L) int64, any tokens behind the end of a list; L is a multiple of STEP.
        sizes: (B,) int64, tokens of each list.
    """

    tokens: Tensor
    sizes: Tensor

    @classmethod
    def build(cls, lists: Sequence[Tensor], device: torch.device) -> "TokenLists":
        """Put lists (L,) int64 of several sentences together."""
        sizes = [len(each) for each in lists]
        width = -(-max(sizes) // STEP) * STEP
        tokens = torch.stack([F.pad(each, (0, width - len(each))) for each in lists])
        return cls(tokens.to(device), torch.tensor(sizes, device=device))

    def keep(self, sentences: Tensor) -> "TokenLists":
        """Those of the sentences `sentences` (B',) int64."""
        sizes = self.sizes[sentences]
        longest = int(sizes.max()) if len(sizes) else 0
        width = -(-longest // STEP) * STEP
        return TokenLists(self.tokens[sentences, :width].contiguous(), sizes)

    def join(self, others: "TokenLists") -> "TokenLists":
        """Those of other sentences behind these."""
        both = (self.tokens, others.tokens)
        width = max(tokens.shape[1] for tokens in both)
        padded = [F.pad(tokens, (0, width - tokens.shape[1])) for tokens in both]
        return TokenLists(torch.cat(padded), torch.cat([self.sizes, others.sizes]))


@dataclass(frozen=True)
class ListedState:
    """The state of another decoder, and what its sentences may say."""

    state: Any
    lists: TokenLists

    def reorder(self, rows: Tensor) -> "ListedState":
        """Take the target rows `rows` (N',) int64, in that order; sources stay."""
        return ListedState(self.state.reorder(rows), self.lists)

    def keep(self, sentences: Tensor) -> "ListedState":
        """Take the sources `sentences` (B',) int64; target rows are taken by `reorder`."""
        return ListedState(self.state.keep(sentences), self.lists.keep(sentences))


class ListedDecoder:
    """The definition of decoding among listed tokens, by a decoder that knows all of them."""

    def __init__(self, decoder: Any) -> None:
        """Take logits from a decoder with the methods of a `Seq2SeqTransformer`."""
        self.decoder = decoder

    def start(
        self, memory: Tensor, src_mask: Tensor, beam_size: int, lists: TokenLists
    ) -> ListedState:
        """State before BOS, beam_size rows for each of the B encoded sources.

        Args:
            memory: (B, S, C) float.
            src_mask: (B, S) bool.
            beam_size: rows of a sentence.
            lists: what each sentence may say.
        """
        return ListedState(self.decoder.start(memory, src_mask, beam_size), lists)

    def decode_step(self, tokens: Tensor, state: ListedState) -> tuple[Tensor, ListedState]:
        """Read T >= 1 new tokens of every row.

        Args:
            tokens: (N, T) int64, places in the list of the row's sentence.
            state: of N rows.

        Returns:
            logits (N, T, L) of the tokens in the lists, -inf behind them, and the next state.
        """
        lists = state.lists
        beam = len(tokens) // len(lists.sizes)
        listed = lists.tokens.repeat_interleave(beam, 0)  # (N, L)
        behind = torch.arange(listed.shape[1], device=tokens.device) >= lists.sizes[:, None]
        logits, following = self.decoder.decode_step(listed.gather(1, tokens), state.state)
        chosen = logits.gather(2, listed[:, None].expand(-1, logits.shape[1], -1))
        chosen = chosen.masked_fill(behind.repeat_interleave(beam, 0)[:, None], -inf)
        return chosen, ListedState(following, lists)
