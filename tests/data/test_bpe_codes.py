"""BPE merges by subword-nmt: cutting, joining, dropout, broken files."""

import random
import sys

import pytest

from lightconv_mt.data.bpe_codes import LONGEST_WORD, BpeCodes, join_pieces
from lightconv_mt.errors import ConfigError, DataError

pytest.importorskip("subword_nmt")

CODES = "#version: 0.2\nl o\nlo w\ne r</w>\nlow er</w>\nn e\n"


@pytest.fixture
def codes() -> BpeCodes:
    return BpeCodes(CODES, name="bpecodes")


def test_words_are_cut_by_the_merges(codes: BpeCodes) -> None:
    assert codes.segment(["lower", "newer", "x"]) == [
        *("lower", "ne@@", "w@@", "er", "x"),
    ]
    old = BpeCodes("l o\nlo w\ne r\ner </w>\nlow er</w>\n", name="old")
    assert old.segment(["lower"]) == ["lower"]


def test_pieces_make_the_words_again(codes: BpeCodes) -> None:
    words = ["lower", "newest", "a", "@@", "@", "x@@"]
    assert join_pieces(codes.segment(words[:3])) == words[:3]
    assert join_pieces(["lo@@", "w", "cut@@"]) == ["low", "cut"]  # a search may end in a piece
    assert join_pieces([]) == []


def test_dropout_is_a_function_of_the_seed(codes: BpeCodes) -> None:
    words = ["lower", "newer", "lowlands"] * 5
    random.seed(3)
    before = random.getstate()
    first, again, other = (codes.segment(words, dropout=0.4, seed=seed) for seed in (1, 1, 2))
    assert random.getstate() == before
    assert first == again != other
    assert first != codes.segment(words)
    assert join_pieces(first) == join_pieces(other) == words


def test_words_without_end_are_cut_in_parts(codes: BpeCodes) -> None:
    word = "lower" * LONGEST_WORD
    pieces = codes.segment([word, "low"])
    assert join_pieces(pieces) == [word, "low"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no BPE codes"),
        ("#version: 0.2\n", "has no BPE codes"),
        ("#version: 0.3\na b\n", "'#version: 0.3' is unknown"),
        ("#version: x\na b\n", "is unknown"),
        ("#version: 0.2\na b\nc\n", "line 3: 'c' is no merge of two symbols"),
        ("a b\n\nc d\n", "line 2: '' is no merge"),
        ("a b c\n", "line 1: 'a b c' is no merge"),
        ("a b 123\n", "line 1: three columns are fastBPE's codes; drop the third"),
        ("a  b\n", "line 1: 'a  b' is no merge"),
        ("e r</w>\nh er</w>\n", "names no version, but its merges are of version 0.2"),
    ],
)
def test_broken_files_are_refused_by_line(
    text: str, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=f"bpecodes.*{complaint}"):
        BpeCodes(text, name="bpecodes")
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "subword_nmt.apply_bpe", None)
    with pytest.raises(ConfigError, match=r"^subword-nmt is not installed; pip install "):
        BpeCodes(CODES, name="bpecodes")
