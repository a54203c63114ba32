"""The Arrow cache: content, reuse, digests, larger than one chunk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightconv_mt.data import encoded
from lightconv_mt.data.batching import BatchConfig, TokenBatcher
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, read_corpus
from lightconv_mt.data.encoded import encode_corpus
from lightconv_mt.data.tokenizer import TokenizerConfig
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.errors import DataError

SRC = [f"ein kleiner Vogel Nummer {n} singt" + " sehr" * (n % 7) for n in range(120)]
TGT = [f"a small bird number {n} sings" + " much" * (n % 5) for n in range(120)]


@pytest.fixture(scope="module")
def tokenizers() -> TokenizerPair:
    return build_tokenizers(TokenizerConfig(vocab_size=330), SRC, TGT)


def test_rows_equal_the_tokenizer_s_output(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoded, "ROWS_PER_BATCH", 17)
    sources = {"a": text_source(SRC[:70], TGT[:70]), "b": text_source(SRC[70:], TGT[70:], name="b")}
    pairs = encode_corpus(read_corpus(corpus_of(**sources)), tokenizers)
    assert (len(pairs), pairs.source_names, pairs.source_sizes) == (120, ["a", "b"], [70, 50])
    order = np.random.default_rng(1).permutation(120).tolist()
    for index, (src, tgt) in zip(order, pairs.get(order), strict=True):
        assert src.tolist() == [*tokenizers.src.encode(SRC[index]), tokenizers.src.ids.eos]
        assert tgt.tolist() == [*tokenizers.tgt.encode(TGT[index]), tokenizers.tgt.ids.eos]
        assert (len(src), len(tgt)) == (pairs.src_lengths[index], pairs.tgt_lengths[index])
    assert pairs.texts([119, 0, 71]) == [(SRC[n], TGT[n]) for n in (119, 0, 71)]


def test_the_cache_is_reused_until_text_or_tokenizer_change(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
    tmp_path: Path,
) -> None:
    def folders() -> set[str]:
        return {path.name for path in (tmp_path / "cache" / "encoded").iterdir()}

    config = corpus_of(a=text_source(SRC, TGT))
    encode_corpus(read_corpus(config), tokenizers)
    (first,) = folders()
    written = (tmp_path / "cache" / "encoded" / first / "pairs.arrow").stat().st_mtime_ns
    encode_corpus(read_corpus(config), tokenizers)
    assert (tmp_path / "cache" / "encoded" / first / "pairs.arrow").stat().st_mtime_ns == written
    encode_corpus(read_corpus(corpus_of(a=text_source(SRC[1:], TGT[1:]))), tokenizers)
    assert len(folders()) == 2
    other = build_tokenizers(TokenizerConfig(vocab_size=320), SRC, TGT)
    encode_corpus(read_corpus(config), other)
    assert len(folders()) == 3


def test_a_source_of_which_nothing_is_kept_is_told_of_and_trains_nothing(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
) -> None:
    whole = text_source(SRC, TGT)
    encode_corpus(read_corpus(corpus_of(a=whole)), tokenizers)  # the same pairs of fewer sources
    again, empty = text_source(SRC, TGT, name="b"), text_source([], [], name="c")
    corpus = read_corpus(corpus_of(a=whole, b=again, c=empty))
    pairs = encode_corpus(corpus, tokenizers)
    assert (pairs.source_names, pairs.source_sizes) == (["a", "b", "c"], [120, 0, 0])
    told = "\n".join(corpus.report.lines())
    assert "b: 0 pairs kept\nb: 120 pairs dropped: duplicate" in told
    assert "c: 0 pairs kept" in told
    batcher = TokenBatcher(pairs, BatchConfig(), tokenizers=tokenizers, seed=1, weights=[1, 2, 3])
    assert sum(len(batch.indices) for batch in batcher.iterate(0)) == 120


def test_the_report_is_of_the_corpus_that_was_read(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
) -> None:
    encode_corpus(read_corpus(corpus_of(a=text_source(SRC, TGT))), tokenizers)
    corpus = read_corpus(corpus_of(a=text_source([*SRC, ""], [*TGT, "x"])))
    encode_corpus(corpus, tokenizers)
    assert "a: 1 pairs dropped: empty side" in [*corpus.report.lines()]


@pytest.mark.parametrize("damage", [b"", b"\0" * 5000, None])
def test_a_damaged_cache_is_made_anew(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
    tmp_path: Path,
    damage: bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = corpus_of(a=text_source(SRC, TGT))
    encode_corpus(read_corpus(config), tokenizers)
    (path,) = tmp_path.glob("cache/encoded/*/pairs.arrow")
    path.write_bytes(path.read_bytes()[:-99] if damage is None else damage)
    pairs = encode_corpus(read_corpus(config), tokenizers)
    assert pairs.texts([119]) == [(SRC[119], TGT[119])]
    assert "pairs.arrow is damaged; the corpus is tokenised anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_one_line(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tokenizers: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    config = corpus_of(a=text_source(SRC, TGT))
    with monkeypatch.context() as patched:
        patched.setattr(encoded.os, "fsync", full)
        with pytest.raises(DataError, match=r"cannot keep .*encoded: No space left .*free some"):
            encode_corpus(read_corpus(config), tokenizers)
    assert not [*(tmp_path / "cache" / "encoded").iterdir()]
    for cache in ("/proc/x", config.train["a"].src):
        config.cache_dir = cache
        with pytest.raises(DataError, match=r"or set data\.cache_dir"):
            encode_corpus(read_corpus(config), tokenizers)
