"""Long lines come in parts that fit, lose no word, and are joined in order."""

import itertools
import re
from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv_mt.decode.long_lines import (
    cut_line,
    cut_lines,
    join_outputs,
    join_texts,
    word_offsets,
)


def characters(texts: Sequence[str]) -> list[list[int]]:
    """A tokenizer whose pieces are characters other than spaces."""
    return [[ord(char) for char in text if not char.isspace()] for text in texts]


@pytest.mark.parametrize(
    ("line", "limit", "parts"),
    [
        ("One two. Three! Four?", 12, ["One two.", "Three!", "Four?"]),
        ('He said "so." Then (it is.) End', 12, ['He said "so."', "Then (it is.)", "End"]),
        ("3.5 is e.g. a number... yes", 99, ["3.5 is e.g.", "a number...", "yes"]),
        ("一二三。四五！六？七", 3, ["一二", "三。", "四五！", "六？", "七"]),
        ("他说「好。」然后走。", 7, ["他说「好。」", "然后走。"]),
        ("a bb ccc dddd eeeee", 8, ["a bb ccc", "dddd", "eeeee"]),
        ("abcdefghij", 3, ["ab", "cde", "fg", "hij"]),
        ("  a.  b.  ", 1, ["a", ".", "b", "."]),
        ("x y", 0, ["x", "y"]),
    ],
)
def test_lines_are_cut_at_sentences_then_spaces_then_anywhere(
    line: str, limit: int, parts: list[str]
) -> None:
    assert cut_line(line, characters, limit) == list(zip(parts, characters(parts), strict=True))


@pytest.mark.parametrize("run", ["." * 200_000, "?!." * 60_000, "." * 100_000 + ")" * 100_000])
def test_a_long_run_of_marks_takes_no_longer_than_its_length(run: str) -> None:
    line = f"So{run}x end. End"  # minutes, if each mark were tried with all behind it
    assert [text for text, _ in cut_line(line, characters, len(line))] == [line[:-4], "End"]


lines_of_all_kinds = st.lists(
    st.text(alphabet="ab.?! \u3000。é語", max_size=60), min_size=1, max_size=5
)


@settings(deadline=None)
@given(lines=lines_of_all_kinds, limit=st.integers(1, 12))
def test_parts_fit_and_lose_nothing_but_spaces(lines: list[str], limit: int) -> None:
    parts = cut_lines(lines, characters, limit)
    assert parts.pieces == characters(parts.texts)
    for number, group in itertools.groupby(
        zip(parts.lines, parts.places, parts.texts, strict=True), key=lambda row: row[0]
    ):
        texts = [text for _, _, text in group]
        if len(characters([lines[number]])[0]) <= limit:
            assert texts == [lines[number]]
        else:
            assert all(0 < len(ids) <= limit for ids in characters(texts))
            assert len(texts) > 1
        assert re.sub(r"\s", "", "".join(texts)) == re.sub(r"\s", "", lines[number])
        words = lines[number].split()
        for text, offset in zip(texts, word_offsets(texts, lines[number]), strict=True):
            assert all(piece in words[offset + place] for place, piece in enumerate(text.split()))
    assert [line for line, place in zip(parts.lines, parts.places, strict=True) if not place] == [
        *range(len(lines))
    ]


def test_a_very_long_line_takes_no_time() -> None:
    for line in ("word " * 20_000, "x" * 100_000, "a. " * 33_000, " b" + "y" * 50_000 + " c" * 9):
        parts = cut_lines([line], characters, 63)
        assert max(map(len, parts.pieces)) <= 63
        assert len(join_outputs([[(text, -1.0)] for text in parts.texts], 1)[0][0]) >= 30_000


def test_outputs_of_parts_are_joined_best_first() -> None:
    parts = [[("a", -1.0), ("b", -2.0)], [("c", -1.0), ("d", -1.5), ("e", -9.0)], [("f", -1.0)]]
    every = sorted(
        (
            (" ".join(text for text, _ in chosen), sum(score for _, score in chosen))
            for chosen in itertools.product(*parts)
        ),
        key=lambda pair: -pair[1],
    )
    for nbest in (1, 2, 3, 6, 9):
        assert join_outputs(parts, nbest) == every[:nbest]
    assert join_outputs([[("a", -1.0)], [("", -inf)]], 2) == [("a", -inf)]


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (["a.", "b."], "a. b."),
        (["", "a", "", "b", ""], "a b"),
        (["これは。", "それは。"], "これは。それは。"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕.", "네."], "안녕. 네."),
        (["中", "b"], "中b"),
        ([], ""),
    ],
)
def test_outputs_have_spaces_between_them_where_their_script_has(
    parts: list[str], joined: str
) -> None:
    assert join_texts(parts) == joined
    words = joined.split()
    for part, offset in zip(parts, word_offsets(parts, joined), strict=True):
        assert all(piece in words[offset + place] for place, piece in enumerate(part.split()))
