"""Tokenised text is told from plain text, and plain text is never taken for it."""

import gzip

import pytest

from lightconv_mt.evaluation.tokenised import signs_of_tokenisation
from tests.conftest import SHARED

PLAIN = ["Das ist gut.", "Er sagte: „Nein, danke!“", "3,5 km .com", "C'est vrai ?", ""]


@pytest.mark.parametrize(
    ("lines", "sign"),
    [
        (["ein gut @-@ bekannter Hund"], "Moses' marks, such as '@-@' or '&apos;' in 1 of 1 lines"),
        (["it &apos;s late", "so"], "Moses' marks"),
        (["er sagte &quot; ja &quot;", "so"], "Moses' marks"),
        (["10 @,@ 000 men"], "Moses' marks"),
        (["ein H@@ und", "so"], "pieces that end in '@@'"),
        (["Wie@@"], "pieces that end in '@@'"),
        (["\u2581ein \u2581Hund"], "pieces that begin with '\u2581'"),
        (["a -LRB- b -RRB- c"], "the treebank's brackets"),
        (["Das ist gut .", "Nein , danke"], "spaces before full stops or commas in 2 of 2 lines"),
        (["今天 天气 很 好 。"], "spaces before full stops or commas"),
    ],
)
def test_marks_are_named_counted_and_located(lines: list[str], sign: str) -> None:
    found = signs_of_tokenisation(lines)
    assert found is not None and found.startswith(sign)
    assert found.endswith("first in line 1")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        PLAIN,
        ["Das ist gut .", "Das ist gut."],  # half of the lines, not most
        ["ein Hund .", *["ein Hund"] * 3],
        ["write to me@@ example", *["so"] * 30],  # an accident
        ["it &apos;s late", *["so"] * 30],
        ["Vraiment ? Oui ! Voilà : rien ; fin"] * 9,  # French spacing
        ["a@b.de and @name", "x@@y", "A&P", "R&amp"],
    ],
)
def test_plain_text_passes(lines: list[str]) -> None:
    assert signs_of_tokenisation(lines) is None


def test_a_twentieth_of_the_lines_is_where_accidents_end() -> None:
    lines = ["ein H@@ und", *["ein Hund"] * 19]
    assert signs_of_tokenisation(lines) is None
    assert signs_of_tokenisation([*lines, "", "", lines[0]]) == (
        "pieces that end in '@@' in 2 of 21 lines, first in line 1"
    )


def test_real_corpora_are_told_apart() -> None:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"the data is not here: {folder}")
    plain = [
        "multi30k/test_2016_flickr",
        "wmt13/newstest2013.en-de",
        "wmt14-full/newstest2014.en-de",
    ]
    for name in plain:
        for lang in ("de", "en"):
            with gzip.open(folder / f"{name}.{lang}.gz", "rt", encoding="utf-8") as file:
                assert signs_of_tokenisation(file.read().split("\n")) is None, (name, lang)
    for lang in ("ja", "en"):
        path = folder / "small_parallel_enja" / f"dev.{lang}.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            assert signs_of_tokenisation(file.read().split("\n")) is not None, lang
