"""A model as searches use it: encoder and decoder, each in C++ where that can run it."""

from typing import Any

import torch
from torch import Tensor

from lightconv_mt.model.native_decoder import NativeDecoder, unsupported
from lightconv_mt.model.native_encoder import NativeEncoder, unsupported_encoder
from lightconv_mt.model.token_lists import ListedDecoder, ListedState, TokenLists
from lightconv_mt.model.transformer import Seq2SeqTransformer


class SearchModel:
    """Encodes sources and makes the decoder's steps.

    Attributes:
        encoder: in C++, or None where torch encodes.
        decoder: in C++, or None where torch makes the steps.
    """

    def __init__(
        self, model: Seq2SeqTransformer, dtype: torch.dtype, *, native: bool, steps: bool
    ) -> None:
        """Pack the weights for C++.

        Args:
            model: whose weights a C++ part holds a copy of.
            dtype: of the matrices in C++, as for `NativeDecoder`.
            native: whether C++ may be used,
            steps: and for the decoder too.
        """
        self.model, self.listed = model, ListedDecoder(model)
        self.encoder = (
            NativeEncoder(model, dtype) if native and unsupported_encoder(model) is None else None
        )
        self.decoder = (
            NativeDecoder(model, dtype) if native and steps and unsupported(model) is None else None
        )

    def begin(
        self,
        src: Tensor,
        src_mask: Tensor,
        beam_size: int,
        *,
        groups: int = 1,
        lists: TokenLists | None = None,
    ) -> Any:
        """State before BOS.

        Args:
            src: (B, S) int64.
            src_mask: (B, S) bool, padded on the right.
            beam_size: rows of a beam.
            groups: beams of a source.
            lists: what outputs of each of the B sources may say, as `ListedDecoder`; None: all.
        """
        if lists is not None:
            lists = lists.repeat(groups)
        if self.encoder is not None and self.decoder is not None:
            sources = self.encoder.keys(src, src_mask)
            return self.decoder.begin(
                sources if groups == 1 else sources.repeat(groups), beam_size, lists
            )
        memory = (self.encoder or self.model).encode(src, src_mask)
        if groups > 1:
            memory, src_mask = (each.repeat_interleave(groups, 0) for each in (memory, src_mask))
        if self.decoder is not None:
            return self.decoder.start(memory, src_mask, beam_size, lists)
        if lists is not None:
            return self.listed.start(memory, src_mask, beam_size, lists)
        return self.model.start(memory, src_mask, beam_size)

    def decode_step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read T >= 1 new tokens (N, T) int64 of every row.

        Returns:
            logits (N, T, V), or (N, T, L) where there are lists, and the next state.
        """
        if isinstance(state, ListedState):
            return self.listed.decode_step(tokens, state)
        return (self.decoder or self.model).decode_step(tokens, state)
