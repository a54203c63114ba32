"""Sources in, hypotheses out: encodes batches of sources and searches; where strings end."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightconv_mt.data.batching import pad_rows
from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import Entering, beam_search
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.diverse import diverse_beam_search
from lightconv_mt.decode.sampling import sample
from lightconv_mt.decode.shortlist import Shortlist, named, places_in
from lightconv_mt.decode.trace import Hypothesis, Integers
from lightconv_mt.errors import ConfigError
from lightconv_mt.model.ensemble import Ensemble, JointDecoder
from lightconv_mt.model.native_decoder import NativeDecoder, unsupported
from lightconv_mt.model.token_lists import ListedDecoder, TokenLists
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.dispatch import Backend

logger = logging.getLogger(__name__)

Decoder = NativeDecoder | JointDecoder | ListedDecoder | Seq2SeqTransformer | Ensemble

# A search keeps what it did until its end.
PARTS_OF_A_SEARCH = 128


@dataclass(frozen=True)
class Request:
    """What is to be translated.

    Attributes:
        source: token ids with EOS; empty for nothing.
        line: its number, which tells the draws of sampling apart.
        prefix: tokens that the outputs begin with.
        tokens: what the outputs may say; None for all. `prefix` holds places in it.
    """

    source: list[int]
    line: int
    prefix: list[int]
    tokens: Integers | None = None


class BatchSearch:
    """Searches with one model, whose steps are in C++ where its kernels are."""

    def __init__(
        self,
        model: Seq2SeqTransformer | Ensemble,
        *,
        src_ids: SpecialIds,
        tgt_ids: SpecialIds,
        device: torch.device,
        precision: torch.dtype | None,
    ) -> None:
        """Search with a model that is on `device` already.

        Args:
            model: put into evaluation mode while it is used, and back.
            src_ids: special ids of the source vocabulary.
            tgt_ids: those of the target vocabulary.
            device: where it computes.
            precision: bfloat16 and float16 are of autocast and, on CPUs, of the decoder's matrices;
                int8 is of those alone. None is float32.

        Raises:
            ConfigError: when it is int8 and the decoder does not run in C++.
        """
        self.model, self.src_ids, self.tgt_ids = model, src_ids, tgt_ids
        self.device, self.precision = device, precision or torch.float32
        self._native: tuple[list[tuple[int, int]], NativeDecoder | JointDecoder] | None = None
        reason = self._not_native()
        if reason is not None and self.precision is torch.int8:
            raise ConfigError(
                f"runtime.precision=int8 is of the C++ decoder, but {reason}; set fp32 or bf16"
            )
        if reason is not None and model.backend is Backend.native:
            logger.info("plain torch makes the decoder's steps, not C++: %s", reason)

    def search(
        self,
        requests: Sequence[Request],
        config: DecodeConfig,
        *,
        max_tokens: int,
        batch_size: int,
        shortlist: Shortlist | None = None,
    ) -> list[list[Hypothesis]]:
        """Search for each request; the hypotheses of one with no source are none.

        Args:
            requests: in any order; those alike in length are searched for together.
            config: the search.
            max_tokens: source tokens of a batch, padding included; a longer source stands alone.
            batch_size: sources of a batch, at most.
            shortlist: tokens to search among.
        """
        ids = self.tgt_ids
        if shortlist is not None:
            ids, requests = shortlist.ids, [_listed(each, shortlist) for each in requests]
        found: list[list[Hypothesis]] = [[]] * len(requests)
        for order, results in self._searches(requests, config, ids, max_tokens, batch_size):
            for index, hypotheses in zip(order, results, strict=True):
                tokens = requests[index].tokens
                found[index] = hypotheses if tokens is None else named(hypotheses, tokens)
        return found

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, in the precision asked for."""
        lowers = self.precision in (torch.bfloat16, torch.float16)
        training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(
                    self.device.type, dtype=self.precision if lowers else None, enabled=lowers
                ),
            ):
                yield
        finally:
            self.model.train(training)

    def _searches(
        self,
        requests: Sequence[Request],
        config: DecodeConfig,
        ids: SpecialIds,
        max_tokens: int,
        batch_size: int,
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        """Indices of requests that are searched for together, and what was found for them."""
        sources = [request.source for request in requests]
        with self.inference():
            native = self._native_decoder()
            if native is None or config.sampling or config.beam_groups > 1:
                most = 1 if config.strict else batch_size
                batches = batches_by_length(sources, max_tokens=max_tokens, batch_size=most)
                for batch in batches:
                    alike = [requests[index] for index in batch]
                    decoder = native or self._plain_decoder(listed=alike[0].tokens is not None)
                    yield batch, self._search_batch(decoder, alike, config, ids)
                return
            # The batch has room for two parts: one enters when as many sentences are done.
            parts = list(
                batches_by_length(
                    sources, max_tokens=max_tokens // 2, batch_size=max(1, batch_size // 2)
                )
            )
            for first in range(0, len(parts), PARTS_OF_A_SEARCH):
                some = parts[first : first + PARTS_OF_A_SEARCH]
                chosen = [[requests[index] for index in part] for part in some]
                yield (
                    [index for part in some for index in part],
                    self._search_parts(native, chosen, config, ids, max_tokens, batch_size),
                )

    def _search_parts(
        self,
        native: NativeDecoder | JointDecoder,
        parts: list[list[Request]],
        config: DecodeConfig,
        ids: SpecialIds,
        max_tokens: int,
        batch_size: int,
    ) -> list[list[Hypothesis]]:
        """One search that the parts enter one after the other."""

        def start(part: list[Request]) -> Any:
            if not config.strict:
                return self._start(native, part, config.beam_size)
            # Encoded alone, a sentence does not depend on others; nor do its steps.
            state, *others = (self._start(native, [one], config.beam_size) for one in part)
            for other in others:
                state = state.join(other)
            return state

        entering = [
            Entering(
                partial(start, part),
                torch.tensor([len(request.source) for request in part]),
                [request.prefix for request in part],
            )
            for part in parts
        ]
        first = entering[0]
        step: Any = native.decode_step  # each takes the states that it made
        return beam_search(
            step,
            first.start(),
            src_lengths=first.src_lengths,
            ids=ids,
            config=config,
            prefixes=first.prefixes,
            backend=self.model.backend,
            entering=entering[1:],
            max_sentences=batch_size,
            max_source_tokens=max_tokens,
        )

    def _search_batch(
        self,
        decoder: Decoder,
        batch: list[Request],
        config: DecodeConfig,
        ids: SpecialIds,
    ) -> list[list[Hypothesis]]:
        groups = config.beam_groups
        state = self._start(decoder, batch, config.beam_size // groups, groups=groups)
        src_lengths = torch.tensor([len(request.source) for request in batch], device=self.device)
        prefixes = [request.prefix for request in batch]
        if config.sampling:
            return sample(
                decoder.decode_step,
                state,
                src_lengths=src_lengths,
                lines=torch.tensor([request.line for request in batch], device=self.device),
                ids=ids,
                config=config,
                prefixes=prefixes,
            )
        search = beam_search if groups == 1 else diverse_beam_search
        return search(
            decoder.decode_step,
            state,
            src_lengths=src_lengths,
            ids=ids,
            config=config,
            prefixes=prefixes,
            backend=self.model.backend,
        )

    def _start(
        self,
        decoder: Decoder,
        batch: list[Request],
        beam_size: int,
        *,
        groups: int = 1,
    ) -> Any:
        src, src_mask = padded([request.source for request in batch], self.src_ids.pad, self.device)
        memory = self.model.encode(src, src_mask)
        if groups > 1:
            memory, src_mask = (each.repeat_interleave(groups, 0) for each in (memory, src_mask))
        start: Any = decoder.start  # those that are given lists take them
        lists = [request.tokens for request in batch if request.tokens is not None]
        if not lists:
            return start(memory, src_mask, beam_size)
        own = [torch.from_numpy(tokens) for tokens in lists for _ in range(groups)]
        return start(memory, src_mask, beam_size, TokenLists.build(own, self.device))

    def _not_native(self) -> str | None:
        """Why the decoder's steps do not run in C++, or None."""
        if self.device.type != "cpu" or self.model.backend is not Backend.native:
            return "runtime.kernels is not native"
        return next(filter(None, map(unsupported, self._members())), None)

    def _members(self) -> list[Seq2SeqTransformer]:
        """The models of an ensemble, or the only one."""
        return self.model.members if isinstance(self.model, Ensemble) else [self.model]

    def _plain_decoder(self, *, listed: bool) -> Decoder:
        """The decoder in torch, or that among listed tokens."""
        if not listed:
            return self.model
        decoders = [ListedDecoder(each) for each in self._members()]
        if isinstance(self.model, Ensemble):
            return JointDecoder(decoders, self.model.source_dims)
        return decoders[0]

    def _native_decoder(self) -> NativeDecoder | JointDecoder | None:
        """The C++ decoder with the model's weights as they are now."""
        if self._not_native() is not None:
            return None
        weights = [(each.data_ptr(), each._version) for each in self.model.parameters()]
        if self._native is None or self._native[0] != weights:
            decoders = [NativeDecoder(each, self.precision) for each in self._members()]
            self._native = (
                weights,
                JointDecoder(decoders, self.model.source_dims)
                if isinstance(self.model, Ensemble)
                else decoders[0],
            )
        return self._native[1]


def _listed(request: Request, shortlist: Shortlist) -> Request:
    """A request for a search among the tokens that a shortlist has for it."""
    tokens = shortlist.tokens(request.source, request.prefix)
    return replace(request, tokens=tokens, prefix=places_in(tokens, request.prefix))


def padded(sources: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, S) padded on the right and their mask (B, S)."""
    src = pad_rows(sources, pad)
    lengths = torch.tensor([len(ids) for ids in sources])
    mask = torch.arange(src.shape[1]) < lengths[:, None]
    return src.to(device), mask.to(device)


def batches_by_length(
    sources: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int
) -> Iterator[list[int]]:
    """Indices of the sources that are not empty, alike in length, the longest first.

    Args:
        sources: token ids of each line.
        max_tokens: of a batch, padding included; a longer source stands alone.
        batch_size: sources of a batch, at most.
    """
    order = sorted(
        (index for index, source in enumerate(sources) if source),
        key=lambda index: (-len(sources[index]), index),
    )
    start = 0
    while start < len(order):
        width = len(sources[order[start]])
        end = start + max(1, min(batch_size, max_tokens // width))
        yield order[start:end]
        start = end
