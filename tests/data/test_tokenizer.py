"""SentencePiece models: trained, given, broken."""

import io
import os
from pathlib import Path

import pytest
import sentencepiece

from lightconv_mt.data.tokenizer import (
    TRAINED_IDS,
    Tokenizer,
    TokenizerConfig,
    TokenizerKind,
    train_tokenizer,
)
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.errors import CheckpointError, ConfigError, DataError

TEXT = [f"the {color} {animal} number {n} sleeps in the garden" for n in range(60)
        for color, animal in (("red", "fox"), ("grey", "wolf"), ("brown", "bear"))]  # fmt: skip
GERMAN = [f"der Vogel Nummer {n} schläft im grünen Garten am Fluss" for n in range(180)]


@pytest.fixture(scope="module", params=[TokenizerKind.unigram, TokenizerKind.bpe])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind=request.param, vocab_size=300), TEXT)


def test_trained_models_number_their_special_ids_as_fairseq(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids == TRAINED_IDS
    assert tokenizer.vocab_size == 300


@pytest.mark.parametrize(
    "text", ["the red fox", "", "  two  spaces ", "Жук 虫 🐞", "a\x00b", "x\ny", "\ud800 lone"]
)
def test_text_survives_with_byte_fallback(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert TRAINED_IDS.unk not in ids
    expected = text.encode("utf-8", "replace").decode().replace("\n", " ")
    assert tokenizer.decode(ids).replace("\x00", "").split() == expected.replace("\x00", "").split()


def test_special_ids_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the red fox")
    special = [TRAINED_IDS.bos, *ids, TRAINED_IDS.eos, TRAINED_IDS.pad]
    assert tokenizer.decode(special) == "the red fox"
    assert len(tokenizer.pieces(special)) == len(special)


def test_the_same_text_and_seed_give_the_same_model() -> None:
    config = TokenizerConfig(kind=TokenizerKind.unigram, vocab_size=300, sample_sentences=100)
    first, again = (train_tokenizer(config, TEXT) for _ in range(2))
    other = train_tokenizer(
        TokenizerConfig(kind=TokenizerKind.unigram, vocab_size=300, sample_sentences=100, seed=2),
        TEXT,
    )
    assert first.digest == again.digest != other.digest


def test_sampling_is_a_function_of_the_seed(tokenizer: Tokenizer) -> None:
    texts = TEXT[:20]
    first, again, other = (
        tokenizer.encode_sampled(texts, alpha=0.3, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again != other
    assert [tokenizer.decode(ids) for ids in first] == texts
    assert first != tokenizer.encode_batch(texts)


def test_lowercase_text_is_encoded_without_case(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=330, lowercase=True)
    pair = build_tokenizers(config, TEXT, GERMAN)
    shouted = [text.upper() for text in TEXT]
    assert pair.src.encode_batch(shouted) == pair.src.encode_batch(TEXT)
    assert [pair.src.decode(ids) for ids in pair.src.encode_batch(shouted)] == [
        text.lower() for text in TEXT
    ]
    # German keeps its sharp s, which case folding would not.
    assert pair.tgt.decode(pair.tgt.encode("Weiß")) == "weiß"
    pair.save(tmp_path)
    assert TokenizerPair.load(tmp_path, config).digest == pair.digest
    assert TokenizerPair.load(tmp_path, TokenizerConfig()).digest != pair.digest


def test_a_given_model_without_padding_gets_one(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "given.model").write_bytes(model.getvalue())
    pair = build_tokenizers(TokenizerConfig(src_model=str(tmp_path / "given.model")), [], [])
    assert pair.joint
    assert (pair.src.ids.pad, pair.src.vocab_size) == (60, 61)
    assert pair.src.pieces([60]) == ["<pad>"]
    assert pair.src.decode([*pair.src.encode("the red fox"), 60]) == "the red fox"


@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256))])
def test_broken_models_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model is (no|an empty) SentencePiece model"):
        Tokenizer.load(path)
    with pytest.raises(CheckpointError, match="has no usable tokenizer"):
        TokenizerPair.load(tmp_path, TokenizerConfig())


def test_a_truncated_model_never_passes_for_the_whole(tokenizer: Tokenizer) -> None:
    for size in range(1, len(tokenizer.model), len(tokenizer.model) // 40):
        try:
            part = Tokenizer(tokenizer.model[:size], name="part")
        except DataError:
            continue
        assert part.digest != tokenizer.digest


def test_too_little_text_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match="no text to learn a vocabulary from"):
        train_tokenizer(TokenizerConfig(), ["", "  "])
    with pytest.raises(
        DataError, match=r"cannot learn 9000 pieces from 3 sentences .*lower tokenizer\.vocab_size"
    ):
        train_tokenizer(TokenizerConfig(vocab_size=9000), TEXT[:3])


def test_a_target_model_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="tgt_model is given without"):
        TokenizerConfig(tgt_model="x.model")


def test_a_full_disk_leaves_no_part_of_a_model(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(tmp_path, "tokenizer")
    assert not [*tmp_path.iterdir()]


def test_an_unknown_normalisation_names_its_key() -> None:
    with pytest.raises(DataError, match=r"; set tokenizer\.normalization to nmt_nfkc, "):
        train_tokenizer(TokenizerConfig(vocab_size=300, normalization="bogus"), TEXT)
