"""The Arrow cache: content, reuse, digests, larger than one chunk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightconv_mt.data import encoded
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, read_corpus
from lightconv_mt.data.encoded import encode_corpus
from lightconv_mt.data.tokenizer import TokenizerConfig, TokenizerPair, build_tokenizers

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
