"""Length buckets under a token budget; the order is a pure function of (seed, epoch, index)."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import parent_process

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightconv_mt.data.corpus import EXAMPLES_PER_RULE
from lightconv_mt.data.encoded import EncodedPairs
from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.errors import ConfigError, DataError

Ids = Sequence[int] | NDArray[np.int32]


@dataclass(kw_only=True)
class BatchConfig:
    """How sentences share a micro-batch."""

    max_tokens: int = 4096  # a side, padding included
    max_sentences: int | None = None
    max_length: int = 1024  # tokens a side; longer pairs are dropped
    # Tokens of a source before EOS; what a longer one holds behind them is left out, in training
    # and whenever the model is used. None: nothing is.
    truncate_source: int | None = None
    pad_multiple: int = 1
    num_workers: int = 0

    def __post_init__(self) -> None:
        for key in ("max_tokens", "max_length", "pad_multiple"):
            if getattr(self, key) < 1:
                raise ConfigError(f"batch.{key} is {getattr(self, key)}; give 1 or more")
        if self.max_sentences is not None and self.max_sentences < 1:
            raise ConfigError(
                f"batch.max_sentences is {self.max_sentences}; give 1 or more, or null for no limit"
            )
        if self.num_workers < 0:
            raise ConfigError(f"batch.num_workers is {self.num_workers}; give 0 or more")
        if self.truncate_source is not None and not 1 <= self.truncate_source < self.max_length:
            raise ConfigError(
                f"batch.truncate_source is {self.truncate_source}; give 1 or more, and less than "
                f"batch.max_length ({self.max_length}), or null to cut nothing"
            )
        for key in ("max_length", "pad_multiple"):
            if getattr(self, key) > self.max_tokens:
                raise ConfigError(
                    f"batch.{key} is {getattr(self, key)}, more than batch.max_tokens "
                    f"({self.max_tokens}); lower it"
                )

    def cut(self, source: Ids) -> Ids:
        """Ids of a source, EOS at the end, without what `truncate_source` leaves out."""
        if self.truncate_source is None or len(source) <= self.truncate_source + 1:
            return source
        return [*source[: self.truncate_source], source[-1]]


@dataclass
class Batch:
    """Sentence pairs padded on the right.

    Attributes:
        src: (B, S) int64, ends in EOS.
        src_mask: (B, S) bool.
        tgt_in: (B, T) int64, begins with BOS.
        tgt_out: (B, T) int64, ends in EOS.
        tgt_mask: (B, T) bool.
        num_tokens: real target tokens.
        indices: of the pairs in the corpus.
    """

    src: Tensor
    src_mask: Tensor
    tgt_in: Tensor
    tgt_out: Tensor
    tgt_mask: Tensor
    num_tokens: int
    indices: list[int]

    def twice(self) -> "Batch":
        """Every sentence two times, the second half repeating the first; tokens count once."""
        return self._each(lambda side: side.repeat(2, 1))

    def without_tokens(self) -> "Batch":
        """The first sentence, whose target counts as padding: no loss, all gradients zero."""
        first = self._rows(slice(0, 1))
        return replace(first, tgt_mask=torch.zeros_like(first.tgt_mask), num_tokens=0)

    def split(self, pieces: int) -> list["Batch"]:
        """At most so many batches of the same sentences, in order."""
        bounds = pairwise(len(self.src) * piece // pieces for piece in range(pieces + 1))
        return [self._rows(slice(start, end)) for start, end in bounds if end > start]

    def _rows(self, rows: slice) -> "Batch":
        return Batch(
            src=self.src[rows],
            src_mask=self.src_mask[rows],
            tgt_in=self.tgt_in[rows],
            tgt_out=self.tgt_out[rows],
            tgt_mask=self.tgt_mask[rows],
            num_tokens=int(self.tgt_mask[rows].sum()),
            indices=self.indices[rows],
        )

    def pinned(self) -> "Batch":
        """In memory from which a GPU copies by itself; needs a GPU."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device; from `pinned` memory without waiting for it."""
        return self._each(lambda side: side.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            src=change(self.src),
            src_mask=change(self.src_mask),
            tgt_in=change(self.tgt_in),
            tgt_out=change(self.tgt_out),
            tgt_mask=change(self.tgt_mask),
        )


class TokenBatcher:
    """Gives the batch of every (epoch, index)."""

    def __init__(
        self,
        pairs: EncodedPairs,
        config: BatchConfig,
        *,
        tokenizers: TokenizerPair,
        seed: int,
        sampling: float = 0.0,
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        """Plan batches over the pairs.

        Args:
            pairs: the tokenised corpus.
            config: the budget.
            tokenizers: special ids, and text to ids where `sampling` is above 0.
            seed: decides order, mixing and sampling.
            sampling: see `TokenizerConfig.sampling`.
            weights: of each source; with n_i pairs, source i fills a share `w_i * n_i ** (1 /
                temperature)` of an epoch. Equal weights at temperature 1 read every pair once.
            temperature: see `weights`.
        """
        self.pairs, self.config, self.tokenizers = pairs, config, tokenizers
        self.seed, self.sampling = seed, sampling
        self.weights = list(weights) if weights is not None else [1.0] * len(pairs.source_sizes)
        self.temperature = temperature
        self._src_lengths = pairs.src_lengths
        if config.truncate_source is not None:
            self._src_lengths = np.minimum(pairs.src_lengths, config.truncate_source + 1)
        self._fits = np.maximum(self._src_lengths, pairs.tgt_lengths) <= config.max_length
        self.dropped = np.flatnonzero(~self._fits)  # pairs longer than `max_length`
        if not self._fits.any():
            raise DataError(
                f"every training pair has more than batch.max_length={config.max_length} tokens"
            )
        self._plan: tuple[int, list[NDArray[np.int64]]] = (-1, [])

    def report(self) -> Iterator[str]:
        """Lines on the pairs that are too long in tokens, which the corpus does not know of."""
        if len(self.dropped):
            yield (
                f"{len(self.dropped):,} pairs left out: longer than "
                f"batch.max_length={self.config.max_length} tokens"
            )
            for pair in self.pairs.texts(self.dropped[:EXAMPLES_PER_RULE].tolist()):
                yield f"    {pair.src[:80]!r} | {pair.tgt[:80]!r}"

    def num_batches(self, epoch: int) -> int:
        """Micro-batches of an epoch."""
        return len(self._batches(epoch))

    def shapes(self, epoch: int) -> NDArray[np.int64]:
        """What every micro-batch of an epoch holds, as planned: sampling may change it.

        Returns:
            (micro-batches, 4): sentences, width of sources, width of targets, real target tokens.
        """
        multiple = self.config.pad_multiple
        sides = self._src_lengths, self.pairs.tgt_lengths
        return np.array(
            [
                (
                    len(indices),
                    *(-(-int(side[indices].max()) // multiple) * multiple for side in sides),
                    int(self.pairs.tgt_lengths[indices].sum()),
                )
                for indices in self._batches(epoch)
            ],
            dtype=np.int64,
        )

    def batch(self, epoch: int, index: int) -> Batch:
        """One micro-batch."""
        indices = self._batches(epoch)[index].tolist()
        if self.sampling:
            seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
            texts = self.pairs.texts(indices)
            sides = [
                [
                    [*ids, tokenizer.ids.eos]
                    for ids in tokenizer.encode_sampled(side, alpha=self.sampling, seed=seed)
                ]
                for tokenizer, side in zip(
                    (self.tokenizers.src, self.tokenizers.tgt),
                    zip(*texts, strict=True),
                    strict=True,
                )
            ]
            rows = self._fitting(indices, zip(*sides, strict=True))
        else:
            rows = self._usual(indices)
        ids = self.tokenizers.src.ids, self.tokenizers.tgt.ids
        return collate(rows, *ids, indices=indices, pad_multiple=self.config.pad_multiple)

    def _usual(self, indices: Sequence[int]) -> list[tuple[Ids, Ids]]:
        return [(self.config.cut(src), tgt) for src, tgt in self.pairs.get(indices)]

    def _fitting(
        self, indices: Sequence[int], sampled: Iterable[tuple[Ids, Ids]]
    ) -> list[tuple[Ids, Ids]]:
        """The sampled pairs, but those that got too long as usual: none is cut off before EOS."""
        rows = [(self.config.cut(src), tgt) for src, tgt in sampled]
        long = [
            row for row, pair in enumerate(rows) if max(map(len, pair)) > self.config.max_length
        ]
        for row, pair in zip(long, self._usual([indices[row] for row in long]), strict=True):
            rows[row] = pair
        return rows

    def iterate(self, epoch: int, start_index: int = 0) -> Iterator[Batch]:
        """Micro-batches of an epoch from an index on, the same for any number of workers."""
        rest = _Epoch(self, epoch, start_index)
        if not self.config.num_workers:
            yield from (rest[offset] for offset in range(len(rest)))
            return
        yield from DataLoader(
            rest,
            batch_size=None,
            num_workers=self.config.num_workers,
            worker_init_fn=_follow_the_trainer,
        )

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        if self._plan[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(self._draw(generator))
            batches = pack_by_length(order, self._src_lengths, self.pairs.tgt_lengths, self.config)
            self._plan = (epoch, [batches[place] for place in generator.permutation(len(batches))])
        return self._plan[1]

    def _draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Indices of an epoch's pairs, sources mixed as `weights` and `temperature` ask."""
        ends = np.cumsum(self.pairs.source_sizes)
        parts = np.split(self._fits, ends[:-1])
        sources = [
            np.flatnonzero(part) + end - len(part) for part, end in zip(parts, ends, strict=True)
        ]
        sizes = np.array([len(source) for source in sources], dtype=np.float64)
        shares = np.array(self.weights) * np.where(
            sizes > 0, sizes ** (1.0 / self.temperature), 0.0
        )
        counts = np.round(shares / shares.sum() * sizes.sum()).astype(int)
        drawn = []
        for source, count in zip(sources, counts.tolist(), strict=True):
            if count:
                repeats, rest = divmod(count, len(source))
                drawn += [source] * repeats
                if rest:
                    drawn.append(generator.permutation(source)[:rest])
        return np.concatenate(drawn)


class _Epoch(Dataset[Batch]):
    """The micro-batches of an epoch from an index on."""

    def __init__(self, batcher: TokenBatcher, epoch: int, start: int) -> None:
        self.batcher, self.epoch, self.start = batcher, epoch, start

    def __len__(self) -> int:
        return self.batcher.num_batches(self.epoch) - self.start

    def __getitem__(self, offset: int) -> Batch:
        return self.batcher.batch(self.epoch, self.start + offset)


def _follow_the_trainer(_: int) -> None:
    """Leave signals to the trainer, and end when it is gone."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def wait() -> None:
        trainer = parent_process()
        assert trainer is not None
        trainer.join()
        os._exit(1)

    # torch looks for the parent by its number, which is another's where a server forks workers.
    threading.Thread(target=wait, daemon=True).start()


def pack_by_length(
    order: NDArray[np.int64],
    src_lengths: NDArray[np.int32],
    tgt_lengths: NDArray[np.int32],
    config: BatchConfig,
) -> list[NDArray[np.int64]]:
    """Cut pairs, sorted by length, into batches under the budget; ties keep their order."""
    longest = np.maximum(src_lengths[order], tgt_lengths[order])
    order = order[np.lexsort((src_lengths[order], tgt_lengths[order], longest))]
    batches, start, width = [], 0, 0
    for place, index in enumerate(order):
        length = max(int(src_lengths[index]), int(tgt_lengths[index]))
        wider = max(width, -(-length // config.pad_multiple) * config.pad_multiple)
        count = place - start + 1
        if count > 1 and (
            wider * count > config.max_tokens or count > (config.max_sentences or count)
        ):
            batches.append(order[start:place])
            start, wider = place, length
        width = wider
    return [*batches, order[start:]]


def collate(
    rows: Sequence[tuple[Ids, Ids]],
    src_ids: SpecialIds,
    tgt_ids: SpecialIds,
    *,
    indices: list[int] | None = None,
    pad_multiple: int = 1,
) -> Batch:
    """Pad pairs of ids, EOS at the end of both sides, into a batch."""
    src = pad_rows([src for src, _ in rows], src_ids.pad, multiple=pad_multiple)
    tgt_out = pad_rows([tgt for _, tgt in rows], tgt_ids.pad, multiple=pad_multiple)
    tgt_mask = tgt_out != tgt_ids.pad
    tgt_in = torch.cat([torch.full((len(rows), 1), tgt_ids.bos), tgt_out[:, :-1]], dim=1)
    tgt_in[~tgt_mask] = tgt_ids.pad
    return Batch(
        src, src != src_ids.pad, tgt_in, tgt_out, tgt_mask, int(tgt_mask.sum()), indices or []
    )


def pad_rows(rows: Sequence[Ids], pad: int, *, multiple: int = 1) -> Tensor:
    """Ids (B, T) int64, padded on the right to a multiple of the given width."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    padded = np.full((len(rows), width), pad, dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return torch.from_numpy(padded)
