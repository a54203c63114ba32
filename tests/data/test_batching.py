"""Batches under the budget, in an order that (seed, epoch, index) decides."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightconv_mt.data.batching import Batch, BatchConfig, TokenBatcher, collate, pack_by_length
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, read_corpus
from lightconv_mt.data.encoded import EncodedPairs, encode_corpus
from lightconv_mt.data.tokenizer import TRAINED_IDS, TokenizerConfig
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.errors import ConfigError, DataError

SRC = [f"ein kleiner Vogel Nummer {n} singt" + " sehr" * (n % 17) for n in range(300)]
TGT = [f"a small bird number {n} sings" + " much" * (n % 13) for n in range(300)]
Build = Callable[..., TokenBatcher]


@pytest.fixture(scope="module")
def tokenizers() -> TokenizerPair:
    return build_tokenizers(TokenizerConfig(vocab_size=330), SRC, TGT)


@pytest.fixture
def pairs(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
) -> EncodedPairs:
    sources = {
        "a": text_source(SRC[:200], TGT[:200]),
        "b": text_source(SRC[200:], TGT[200:], name="b"),
    }
    return encode_corpus(read_corpus(corpus_of(**sources)), tokenizers)


@pytest.fixture
def build(pairs: EncodedPairs, tokenizers: TokenizerPair) -> Build:
    def build_batcher(
        *,
        seed: int = 1,
        sampling: float = 0.0,
        weights: Any = None,
        temperature: float = 1.0,
        **values: int,
    ) -> TokenBatcher:
        config = BatchConfig(**{"max_tokens": 256, "max_length": 100, **values})
        return TokenBatcher(
            pairs,
            config,
            tokenizers=tokenizers,
            seed=seed,
            sampling=sampling,
            weights=weights,
            temperature=temperature,
        )

    return build_batcher


def equal(first: Batch, second: Batch) -> bool:
    names = ("src", "src_mask", "tgt_in", "tgt_out", "tgt_mask")
    return first.indices == second.indices and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in names
    )


def test_every_pair_once_an_epoch_within_the_budget(build: Build) -> None:
    batcher = build()
    for epoch in (0, 1):
        batches = list(batcher.iterate(epoch))
        assert len(batches) == batcher.num_batches(epoch)
        assert sorted(index for batch in batches for index in batch.indices) == list(range(300))
        assert all(max(batch.src.numel(), batch.tgt_out.numel()) <= 256 for batch in batches)


def test_a_batch_holds_the_pairs_it_names(build: Build, pairs: EncodedPairs) -> None:
    batch = build(pad_multiple=8).batch(0, 3)
    assert batch.src.shape[1] % 8 == batch.tgt_in.shape[1] % 8 == 0
    assert batch.num_tokens == int(batch.tgt_mask.sum())
    for row, (src, tgt) in enumerate(pairs.get(batch.indices)):
        assert batch.src[row][batch.src_mask[row]].tolist() == src.tolist()
        assert batch.tgt_out[row][batch.tgt_mask[row]].tolist() == tgt.tolist()
        assert batch.tgt_in[row][batch.tgt_mask[row]].tolist() == [TRAINED_IDS.bos, *tgt[:-1]]
        assert (batch.tgt_in[row][~batch.tgt_mask[row]] == TRAINED_IDS.pad).all()


def test_the_order_is_a_function_of_seed_epoch_and_index(build: Build) -> None:
    whole = list(build().iterate(2))
    assert all(equal(a, b) for a, b in zip(whole[5:], build().iterate(2, 5), strict=True))
    assert equal(build().batch(2, 7), whole[7])
    assert build(seed=2).batch(2, 7).indices != whole[7].indices
    assert build().batch(3, 7).indices != whole[7].indices


@pytest.mark.parametrize("sampling", [0.0, 0.2])
def test_workers_change_nothing(build: Build, sampling: float) -> None:
    alone = list(build(sampling=sampling).iterate(1, 2))
    helped = list(build(sampling=sampling, num_workers=2).iterate(1, 2))
    assert len(alone) == len(helped)
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_sampling_changes_with_the_epoch_and_keeps_the_text(
    build: Build, tokenizers: TokenizerPair
) -> None:
    batcher = build(sampling=0.2)
    texts = [{}, {}]
    for epoch in (0, 1):
        for batch in batcher.iterate(epoch):
            for row, index in enumerate(batch.indices):
                ids = batch.src[row][batch.src_mask[row]].tolist()
                assert tokenizers.src.decode(ids) == SRC[index]
                texts[epoch][index] = ids
    assert sum(texts[0][index] != texts[1][index] for index in texts[0]) > 200


@pytest.mark.parametrize(
    ("weights", "temperature", "share"),
    [((1.0, 1.0), 1.0, 2 / 3), ((1.0, 2.0), 1.0, 1 / 2), ((1.0, 1.0), 1e9, 1 / 2)],
)
def test_sources_are_mixed_by_weight_and_temperature(
    build: Build, weights: tuple[float, float], temperature: float, share: float
) -> None:
    batcher = build(weights=weights, temperature=temperature)
    counts = Counter(index for batch in batcher.iterate(0) for index in batch.indices)
    first = sum(count for index, count in counts.items() if index < 200)
    assert first / counts.total() == pytest.approx(share, abs=0.01)
    assert counts.total() == pytest.approx(300, abs=1)
    # Within a source, no pair is read twice more often than another.
    for members in (range(200), range(200, 300)):
        assert (
            max(counts[index] for index in members) - min(counts[index] for index in members) <= 1
        )


def test_long_pairs_are_dropped_and_counted(build: Build, pairs: EncodedPairs) -> None:
    limit = 22
    batcher = build(max_length=limit)
    fits = np.flatnonzero(np.maximum(pairs.src_lengths, pairs.tgt_lengths) <= limit)
    assert sorted(index for batch in batcher.iterate(0) for index in batch.indices) == fits.tolist()
    assert len(batcher.dropped) == 300 - len(fits) > 0
    with pytest.raises(DataError, match="every training pair has more than"):
        build(max_length=2)


@pytest.mark.parametrize("sampling", [0.0, 0.2])
def test_long_sources_are_cut_where_that_is_asked_for(
    build: Build, pairs: EncodedPairs, sampling: float
) -> None:
    whole = build(max_length=18)
    cut = build(max_length=18, truncate_source=10, sampling=sampling)
    assert len(whole.dropped) > len(cut.dropped) == (pairs.tgt_lengths > 18).sum()
    long = 0
    for index in range(cut.num_batches(0)):
        batch = cut.batch(0, index)
        for row, mask, number in zip(batch.src, batch.src_mask, batch.indices, strict=True):
            found, whole_ids = row[mask].tolist(), pairs.get([number])[0][0].tolist()
            assert len(found) <= 11 and found[-1] == TRAINED_IDS.eos
            if not sampling:
                long += len(whole_ids) > 11
                assert found == (whole_ids if len(whole_ids) <= 11 else [*whole_ids[:10], 2])
    assert sampling or long > 100


def test_a_sampled_pair_that_gets_too_long_is_read_as_usual(
    build: Build, pairs: EncodedPairs
) -> None:
    limit = 22
    plain, sampled = build(max_length=limit), build(max_length=limit, sampling=0.4)
    usual = 0
    for index in range(sampled.num_batches(0)):
        batch = sampled.batch(0, index)
        assert batch.indices == plain.batch(0, index).indices
        assert max(batch.src.shape[1], batch.tgt_out.shape[1]) <= limit
        sides = ((batch.src, batch.src_mask), (batch.tgt_out, batch.tgt_mask))
        for row, number in enumerate(batch.indices):
            src, tgt = (ids[row][mask[row]].tolist() for ids, mask in sides)
            assert src[-1] == tgt[-1] == TRAINED_IDS.eos
            usual += all(map(np.array_equal, (src, tgt), pairs.get([number])[0]))
    assert usual > 20


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_packing_respects_budget_and_loses_nothing(
    lengths: list[tuple[int, int]], max_sentences: int
) -> None:
    src, tgt = (np.array(side, dtype=np.int32) for side in zip(*lengths, strict=True))
    config = BatchConfig(max_tokens=64, max_length=30, max_sentences=max_sentences, pad_multiple=4)
    batches = pack_by_length(np.arange(len(lengths)), src, tgt, config)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        width = -(-int(max(src[batch].max(), tgt[batch].max())) // 4) * 4
        assert len(batch) == 1 or width * len(batch) <= 64
        assert len(batch) <= max_sentences


def test_collate_pads_on_the_right() -> None:
    batch = collate([([5, 2], [6, 7, 2]), ([8, 9, 2], [2])], TRAINED_IDS, TRAINED_IDS)
    assert batch.src.tolist() == [[5, 2, 1], [8, 9, 2]]
    assert batch.tgt_in.tolist() == [[0, 6, 7], [0, 1, 1]]
    assert batch.tgt_out.tolist() == [[6, 7, 2], [2, 1, 1]]
    assert batch.num_tokens == 4


def test_the_pieces_of_a_batch_hold_its_sentences_in_order() -> None:
    rows = [([5] * 4, [6 + n] * n) for n in (3, 5, 2, 5, 4, 1)]
    batch = collate(rows, TRAINED_IDS, TRAINED_IDS)
    for pieces in (1, 2, 4, 6, 9):
        parts = batch.split(pieces)
        assert len(parts) == min(pieces, 6)
        assert sum(part.num_tokens for part in parts) == batch.num_tokens
        assert torch.equal(torch.cat([part.tgt_out for part in parts]), batch.tgt_out)


def test_a_batch_twice_repeats_every_sentence_and_counts_its_tokens_once() -> None:
    batch = collate([([5, 2], [6, 7, 2]), ([8, 9, 2], [4, 2])], TRAINED_IDS, TRAINED_IDS)
    twice = batch.twice()
    for name in ("src", "src_mask", "tgt_in", "tgt_out", "tgt_mask"):
        first, second = getattr(twice, name).chunk(2)
        assert torch.equal(first, getattr(batch, name)) and torch.equal(second, first)
    assert twice.num_tokens == batch.num_tokens == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"truncate_source": 0}, "batch.truncate_source is 0; give 1 or more"),
        ({"truncate_source": 1024}, r"less than batch.max_length \(1024\)"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_sentences": 0}, "max_sentences is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"max_tokens": 10, "max_length": 11}, "more than batch.max_tokens"),
    ],
)
def test_impossible_budgets_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchConfig(**values)
