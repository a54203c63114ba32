"""Pieces find their words, and words their links."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv_mt.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from lightconv_mt.decode.alignment import link_words, pharaoh, place_pieces

TEXT = [
    "two men are on bikes , and a well-known dog looks at them .",
    "a man in a blue shirt is standing on a ladder cleaning a window .",
    "people sit on chairs ; others stand and wait for the bus .",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=330), TEXT)


def test_links_go_by_words() -> None:
    # "un real" of two words in two pieces each; the output has two words in one and two pieces.
    weights = torch.tensor(
        [
            [0.3, 0.3, 0.4, 0.0, 0.0],  # the first word has most with the pieces of one word
            [0.1, 0.0, 0.0, 0.4, 0.5],  # EOS would win, but is no word
            [0.0, 0.5, 0.1, 0.3, 0.1],  # together 0.6 and 0.8
            [0.9, 0.1, 0.0, 0.0, 0.0],  # the step of EOS does not count
        ]
    )
    found = link_words(
        weights,
        src=["u", "n", "re", "al"],
        src_text="un real",
        tgt=["a", "b", "c"],
        tgt_text="a bc",
    )
    assert found == ((0, 0), (1, 1))
    assert pharaoh(found) == "0-0 1-1"
    assert pharaoh(()) == ""


def test_no_words_no_links() -> None:
    found = link_words(torch.ones(2, 2), src=["a"], src_text="a", tgt=[""], tgt_text=" ")
    assert found == ()


@pytest.mark.parametrize(
    ("pieces", "text", "words"),
    [
        (["two", "men"], "two men", [0, 1]),
        (["tw", "o", "m", "en"], " two   men ", [0, 0, 1, 1]),
        (["two"], "two men go", [0]),  # a cut source
        (["", "two", "", "men"], "two men", [0, 0, 1, 1]),
        (["Two", "MEN"], "two men", [0, 1]),
        (["fish", "on"], "\ufb01sh on", [0, 1]),  # a ligature taken apart
        ([".", ".", ".", "x"], "\u2026 x", [0, 0, 0, 1]),
        (["x", "y"], "x\u200b\u200b\u200b y", [0, 1]),  # left out
        (["x", "", "", "", "\ufffd", "y"], "x \U0001f600 y", [0, 1, 1, 1, 1, 2]),
        (["can", "'", "t", "-", "do"], "can\u2019t\u2013do it", [0] * 5),
        (["ab", "qq", "cd"], "ab cd", [0, 0, 1]),  # what the text has not
        (["a", "b", "c"], "a", [0, 0, 0]),
        (["a"], "", []),
    ],
)
def test_pieces_find_their_words(pieces: list[str], text: str, words: list[int]) -> None:
    assert place_pieces(pieces, text) == words


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.data())
def test_every_piece_of_any_text_has_the_word_it_was_cut_from(
    text: str, data: st.DataObject
) -> None:
    pieces, words = [], []
    for number, word in enumerate(text.split()):
        while word:
            cut = data.draw(st.integers(1, len(word)))
            pieces.append(word[:cut])
            words.append(number)
            word = word[cut:]
    assert place_pieces(pieces, text) == words


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(max_size=5), max_size=12))
def test_anything_is_placed_somewhere_and_in_order(text: str, pieces: list[str]) -> None:
    found = place_pieces(pieces, text)
    assert len(found) == (len(pieces) if text.split() else 0)
    assert found == sorted(found)
    assert all(0 <= word < len(text.split()) for word in found)


def test_pieces_of_sentencepiece(tokenizer: Tokenizer) -> None:
    for text in [
        "a blue dog ,  waiting",
        "the \u00e9l\u00e8ve \U0001f600 waits",
        "MEN at\u00a0bus\u2026 .",
    ]:
        pieces = tokenizer.spell_text(text)
        ids = tokenizer.encode(text)
        assert len(pieces) == len(ids)
        words = place_pieces(pieces, text)
        assert sorted(set(words)) == list(range(len(text.split())))
        decoded = tokenizer.decode(ids)
        assert place_pieces(tokenizer.spell(ids), decoded) == words
    special = tokenizer.ids
    spelled = tokenizer.spell([special.bos, special.pad, special.eos, *tokenizer.encode("a")])
    assert spelled[:3] == ["", "", ""]
    assert "".join(spelled) == "a"


def test_the_unknown_piece_is_spelled_as_it_is_decoded() -> None:
    config = TokenizerConfig(vocab_size=60, byte_fallback=False)
    tokenizer = train_tokenizer(config, TEXT)
    ids = tokenizer.encode("a \u00e9 dog")
    assert tokenizer.ids.unk in ids
    decoded = tokenizer.decode(ids)
    places = place_pieces(tokenizer.spell(ids), decoded)
    assert decoded.split()[places[ids.index(tokenizer.ids.unk)]] == "\u2047"
    assert place_pieces(tokenizer.spell_text("a \u00e9 dog"), "a \u00e9 dog")[-1] == 2
