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
from lightconv_mt.decode.native_search import has_options, native_search
from lightconv_mt.decode.sampling import sample
from lightconv_mt.decode.shortlist import Shortlist, named, places_in
from lightconv_mt.decode.trace import Hypothesis, Integers
from lightconv_mt.errors import ConfigError
from lightconv_mt.model.ensemble import Ensemble, JointDecoder
from lightconv_mt.model.native_decoder import unsupported
from lightconv_mt.model.native_encoder import unsupported_encoder
from lightconv_mt.model.search_model import SearchModel
from lightconv_mt.model.token_lists import TokenLists
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.dispatch import Backend

logger = logging.getLogger(__name__)

Weights = list[tuple[int, int]]

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
    """Searches with one model, in C++ where its kernels are."""

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
            precision: bfloat16 and float16 are of autocast and of the matrices in C++; int8 is of
                those alone. None is float32.

        Raises:
            ConfigError: when it is int8 and the decoder does not run in C++.
        """
        self.model, self.src_ids, self.tgt_ids = model, src_ids, tgt_ids
        self.device, self.precision = device, precision or torch.float32
        self._models: tuple[Weights, SearchModel | JointDecoder] | None = None
        self.native = device.type == "cpu" and model.backend is Backend.native
        reason = self._no_steps()
        if reason is not None and self.precision is torch.int8:
            raise ConfigError(
                f"runtime.precision=int8 is of the C++ decoder, but {reason}; set fp32 or bf16"
            )
        if reason is not None and self.native:
            logger.info("plain torch makes the decoder's steps, not C++: %s", reason)
        reason = self._no_encoder()
        if reason is not None and self.native:
            logger.info("plain torch encodes, not C++: %s", reason)

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
            model = self._search_model()
            if self._no_steps() is not None or config.sampling or config.beam_groups > 1:
                most = 1 if config.strict else batch_size
                batches = batches_by_length(sources, max_tokens=max_tokens, batch_size=most)
                for batch in batches:
                    alike = [requests[index] for index in batch]
                    yield batch, self._search_batch(model, alike, config, ids)
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
                    self._search_parts(model, chosen, config, ids, max_tokens, batch_size),
                )

    def _search_parts(
        self,
        model: SearchModel | JointDecoder,
        parts: list[list[Request]],
        config: DecodeConfig,
        ids: SpecialIds,
        max_tokens: int,
        batch_size: int,
    ) -> list[list[Hypothesis]]:
        """One search that the parts enter one after the other."""

        def start(part: list[Request]) -> Any:
            if not config.strict or alone_is_together:
                return self._begin(model, part, config.beam_size)
            # Encoded alone, a sentence does not depend on others; nor do its steps.
            state, *others = (self._begin(model, [one], config.beam_size) for one in part)
            for other in others:
                state = state.join(other)
            return state

        alone_is_together = self._no_encoder() is None
        entering = [
            Entering(
                partial(start, part),
                torch.tensor([len(request.source) for request in part]),
                [request.prefix for request in part],
            )
            for part in parts
        ]
        room = {"max_sentences": batch_size, "max_source_tokens": max_tokens}
        if isinstance(model, SearchModel) and model.decoder and not has_options(config):
            return native_search(model.decoder, entering, ids=ids, config=config, **room)
        first = entering[0]
        step: Any = model.decode_step  # each takes the states that it made
        return beam_search(
            step,
            first.start(),
            src_lengths=first.src_lengths,
            ids=ids,
            config=config,
            prefixes=first.prefixes,
            backend=self.model.backend,
            entering=entering[1:],
            **room,
        )

    def _search_batch(
        self,
        model: SearchModel | JointDecoder,
        batch: list[Request],
        config: DecodeConfig,
        ids: SpecialIds,
    ) -> list[list[Hypothesis]]:
        groups = config.beam_groups
        state = self._begin(model, batch, config.beam_size // groups, groups=groups)
        src_lengths = torch.tensor([len(request.source) for request in batch], device=self.device)
        prefixes = [request.prefix for request in batch]
        if config.sampling:
            return sample(
                model.decode_step,
                state,
                src_lengths=src_lengths,
                lines=torch.tensor([request.line for request in batch], device=self.device),
                ids=ids,
                config=config,
                prefixes=prefixes,
            )
        search = beam_search if groups == 1 else diverse_beam_search
        return search(
            model.decode_step,
            state,
            src_lengths=src_lengths,
            ids=ids,
            config=config,
            prefixes=prefixes,
            backend=self.model.backend,
        )

    def _begin(
        self,
        model: SearchModel | JointDecoder,
        batch: list[Request],
        beam_size: int,
        *,
        groups: int = 1,
    ) -> Any:
        src, src_mask = padded([request.source for request in batch], self.src_ids.pad, self.device)
        lists = [torch.from_numpy(each.tokens) for each in batch if each.tokens is not None]
        listed = TokenLists.build(lists, self.device) if lists else None
        return model.begin(src, src_mask, beam_size, groups=groups, lists=listed)

    def _no_steps(self) -> str | None:
        """Why the decoder's steps do not run in C++, or None."""
        if not self.native:
            return "runtime.kernels is not native"
        return next(filter(None, map(unsupported, self._members())), None)

    def _no_encoder(self) -> str | None:
        """Why sources are not encoded in C++, or None."""
        if not self.native:
            return "runtime.kernels is not native"
        return next(filter(None, map(unsupported_encoder, self._members())), None)

    def _members(self) -> list[Seq2SeqTransformer]:
        """The models of an ensemble, or the only one."""
        return self.model.members if isinstance(self.model, Ensemble) else [self.model]

    def _search_model(self) -> SearchModel | JointDecoder:
        """The model with the weights that it has now, in C++ what can be."""
        weights = [(each.data_ptr(), each._version) for each in self.model.parameters()]
        if self._models is None or self._models[0] != weights:
            steps = self._no_steps() is None
            models = [
                SearchModel(each, self.precision, native=self.native, steps=steps)
                for each in self._members()
            ]
            self._models = (
                weights,
                JointDecoder(models) if isinstance(self.model, Ensemble) else models[0],
            )
        return self._models[1]


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
