"""Text to ids of a fairseq dictionary and back: with Moses and BPE, and parted by spaces."""

import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv_mt.data.bpe_codes import BpeCodes
from lightconv_mt.data.fairseq_dictionary import FAIRSEQ_IDS, FairseqDictionary
from lightconv_mt.data.fairseq_tokenizer import FairseqTokenizer
from lightconv_mt.data.moses import Moses, MosesConfig
from lightconv_mt.data.tokenizer import TokenizerConfig, TokenizerKind
from lightconv_mt.data.tokenizer_base import same_pieces
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.decode.alignment import place_pieces
from lightconv_mt.errors import CheckpointError, ConfigError

pytest.importorskip("sacremoses")
pytest.importorskip("subword_nmt")

CODES = "#version: 0.2\nt h\nth e</w>\nh o\nu s\nho us\nhous e</w>\ni n\nin g</w>\n"
SENTENCE = 'The house\'s well-known owners (all 12) said: "Nothing & nobody!"'


def dictionary_of(pieces: list[str]) -> FairseqDictionary:
    counted = Counter(pieces).most_common()
    return FairseqDictionary("".join(f"{piece} {n}\n" for piece, n in counted), name="dict")


@pytest.fixture
def published() -> FairseqTokenizer:
    """Every printable character as a piece, so that nothing printable is unknown."""
    moses, codes = Moses(MosesConfig(lang="en", split_dashes=True)), BpeCodes(CODES, name="codes")
    letters = [c for c in string.printable if not c.isspace()]
    merged = ["the", "house", "ing", "th", "ho", "hous", "in", "us"]
    return FairseqTokenizer(
        dictionary_of([*letters, *merged, *(f"{each}@@" for each in [*letters, *merged])]),
        codes=codes,
        moses=moses,
    )


@pytest.fixture
def spaced() -> FairseqTokenizer:
    return FairseqTokenizer(dictionary_of(["the", "ho@@", "use", "\u2581of", "the"]))


def test_raw_text_goes_in_and_comes_out(published: FairseqTokenizer) -> None:
    ids = published.encode(SENTENCE)
    assert FAIRSEQ_IDS.unk not in ids
    assert published.pieces(ids)[:4] == ["T@@", "h@@", "e", "house"]
    assert "&@@" in published.pieces(ids)
    assert published.decode(ids) == SENTENCE
    assert published.decode([FAIRSEQ_IDS.eos, *ids, FAIRSEQ_IDS.eos, 1, 0]) == SENTENCE


def test_one_dictionary_is_one_vocabulary_whatever_cuts_the_words(
    published: FairseqTokenizer, spaced: FairseqTokenizer
) -> None:
    uncut = FairseqTokenizer(published.dictionary)
    assert not TokenizerPair(published, uncut).joint
    assert same_pieces(published, uncut)
    assert not same_pieces(published, spaced)


def test_pieces_are_found_in_the_words_of_the_sentence(published: FairseqTokenizer) -> None:
    # By Moses: The house &apos;s well @-@ known owners ( all 12 ) said : &quot; Nothing &amp; ...
    expected = [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 9, 9]
    ids = published.encode(SENTENCE)
    ends = [place for place, piece in enumerate(published.pieces(ids)) if "@@" not in piece]
    for spelled in (published.spell_text(SENTENCE), published.spell(ids)):
        words = place_pieces(spelled, SENTENCE)
        assert len(words) == len(ids)
        assert [words[place] for place in ends] == expected
    unknown = published.encode("the 虫 house")
    assert published.spell([FAIRSEQ_IDS.eos, *unknown]) == ["", "the", "<unk>", "house"]
    assert place_pieces(published.spell(unknown), "the <unk> house") == [0, 1, 2]
    spaced = published.spell_text("the 虫 house")
    assert place_pieces(spaced, "the 虫 house") == [0, 1, 2]


def test_unknown_words_stay_visible_and_nothing_is_nothing(published: FairseqTokenizer) -> None:
    ids = published.encode("the 虫 house")
    assert ids.count(FAIRSEQ_IDS.unk) == 1
    assert published.decode(ids) == "the <unk> house"
    assert published.encode_batch(["", "  ", "\t"]) == [[], [], []]
    assert published.decode([]) == ""


def test_text_parted_by_spaces_is_taken_as_it_is(spaced: FairseqTokenizer) -> None:
    ids = spaced.encode("  the ho@@ use\u3000\u2581of  </s> <pad> Haus")
    assert ids == [4, 5, 6, 7, 3, 3, 3]
    assert spaced.decode(ids[:4]) == "the ho@@ use \u2581of"
    joining = FairseqTokenizer(spaced.dictionary, joins_pieces=True)
    assert joining.decode(ids[:4]) == "the house \u2581of"
    assert joining.digest != spaced.digest
    with pytest.raises(ConfigError, match=r"tokenizer\.sampling needs BPE codes"):
        spaced.encode_sampled(["the"], alpha=0.1, seed=1)


def test_case_is_lost_behind_moses_which_goes_by_it() -> None:
    dictionary = dictionary_of(["mr.", "smith", "."])
    moses = Moses(MosesConfig(lang="en"))
    lowered = FairseqTokenizer(dictionary, moses=moses, lowercase=True)
    assert lowered.pieces(lowered.encode("Mr. Smith.")) == ["mr.", "smith", "."]


def test_sampling_is_a_function_of_the_seed(published: FairseqTokenizer) -> None:
    texts = ["the house in the housing"] * 4
    first, again, other = (published.encode_sampled(texts, alpha=0.5, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert len({tuple(ids) for ids in first}) > 1
    assert {published.decode(ids) for ids in first} == {texts[0]}


@settings(max_examples=150, deadline=None, database=None)
@given(text=st.text(max_size=60))
def test_any_text_gives_ids_and_any_ids_text(text: str) -> None:
    tokenizer = FairseqTokenizer(
        dictionary_of(["a", "b@@", "@-@", "&apos;", "'"]),
        codes=BpeCodes(CODES, name="codes"),
        moses=Moses(MosesConfig(lang="en", normalize=True)),
    )
    ids = tokenizer.encode(text)
    assert all(0 < number < tokenizer.vocab_size for number in ids)
    assert not {0, 1, 2} & set(ids)
    assert "\n" not in tokenizer.decode(ids)


@settings(max_examples=150, deadline=None, database=None)
@given(ids=st.lists(st.integers(min_value=4, max_value=7), max_size=12))
def test_ids_survive_text_parted_by_spaces(ids: list[int]) -> None:
    tokenizer = FairseqTokenizer(dictionary_of(["the", "ho@@", "use", "\u2581of"]))
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@settings(max_examples=100, deadline=None, database=None)
@given(words=st.lists(st.text(alphabet="thehousing", min_size=1, max_size=9), max_size=6))
def test_known_words_survive_moses_and_bpe(words: list[str]) -> None:
    letters = [*"thehousing", "the", "house", "ing", "th", "ho", "hous", "in", "us"]
    tokenizer = FairseqTokenizer(
        dictionary_of([*letters, *(f"{each}@@" for each in letters)]),
        codes=BpeCodes(CODES, name="codes"),
        moses=Moses(MosesConfig(lang="de")),
    )
    assert tokenizer.decode(tokenizer.encode(" ".join(words))) == " ".join(words)


def test_a_run_keeps_its_own_copies(tmp_path: Path) -> None:
    (tmp_path / "dict.en.txt").write_text("the 3\nhouse 2\n")
    (tmp_path / "dict.de.txt").write_text("house 3\nthe 2\n")
    (tmp_path / "bpecodes").write_text(CODES)
    config = TokenizerConfig(
        kind=TokenizerKind.fairseq,
        src_model=str(tmp_path / "dict.en.txt"),
        tgt_model=str(tmp_path / "dict.de.txt"),
        src_codes=str(tmp_path / "bpecodes"),
        src_moses=MosesConfig(lang="en"),
        tgt_moses=MosesConfig(lang="de"),
    )
    pair = build_tokenizers(config, [], [])
    assert not pair.joint
    run = tmp_path / "run"
    run.mkdir()
    assert not TokenizerPair.is_saved(run)
    pair.save(run)
    assert TokenizerPair.is_saved(run)
    assert sorted(path.name for path in run.iterdir()) == [
        "tokenizer.sha256",
        *("tokenizer.src.codes", "tokenizer.src.dict.txt"),
        *("tokenizer.tgt.codes", "tokenizer.tgt.dict.txt"),
    ]
    for name in ("dict.en.txt", "dict.de.txt", "bpecodes"):
        (tmp_path / name).unlink()
    loaded = TokenizerPair.load(run, config)
    assert loaded.digest == pair.digest
    assert loaded.tgt.decode(loaded.tgt.encode("the house")) == "the house"
    (run / "tokenizer.tgt.codes").unlink()
    with pytest.raises(CheckpointError, match=r"no usable tokenizer: .*tokenizer\.tgt\.codes"):
        TokenizerPair.load(run, config)


def test_one_dictionary_serves_both_sides(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 1\n")
    config = TokenizerConfig(kind=TokenizerKind.fairseq, src_model=str(tmp_path / "dict.txt"))
    pair = build_tokenizers(config, [], [])
    assert pair.joint
    pair.save(tmp_path)
    assert (tmp_path / "tokenizer.dict.txt").read_text() == "a 1\n"
    assert TokenizerPair.load(tmp_path, config).digest == pair.digest
