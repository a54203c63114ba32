"""Moses' words by sacremoses, and what a vocabulary says about them."""

import sys

import pytest

from lightconv_mt.data.moses import Moses, MosesConfig, observe_moses
from lightconv_mt.errors import ConfigError

pytest.importorskip("sacremoses")

SENTENCES = {
    "en": "It's a \"well-known\" fact, e.g. Smith & Co.'s $5,000 [sic].",
    "de": "Der „Bären-Park“ (Größe: 3,5 ha) öffnet um 9.30 Uhr; ist das nicht schön?",
    "fr": "L'homme d'affaires, c'est-à-dire M. Dupont, n'a rien dit.",
}


@pytest.mark.parametrize("lang", SENTENCES)
@pytest.mark.parametrize("dashes", [False, True])
@pytest.mark.parametrize("escape", [False, True])
def test_words_make_the_sentence_again(lang: str, dashes: bool, escape: bool) -> None:
    moses = Moses(MosesConfig(lang=lang, split_dashes=dashes, escape=escape))
    words = moses.words(SENTENCES[lang])
    assert len(words) > len(SENTENCES[lang].split()) + 2
    assert ("@-@" in words) is dashes
    assert any(word.startswith("&") and len(word) > 1 for word in words) <= escape
    found = moses.sentence(words)
    assert found.replace(" ", "") == SENTENCES[lang].replace(" ", "")


def test_punctuation_is_normalised_as_the_perl_script_does_it() -> None:
    normalised = Moses(MosesConfig(lang="en", normalize=True, escape=False))
    assert normalised.words("„Yes“ – it’s …") == ['"', "Yes", '"', "-", "it", "'s", "..."]
    plain = Moses(MosesConfig(lang="en", escape=False))
    assert "„" in plain.words("„Yes“")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["the", "@-@", "&apos;s", "&quot;"], (True, True, True)),
        (["the", "&amp;", "“", "well-@@"], (False, False, True)),
        (["the", "'", '"', "–"], (False, False, False)),
        (["the", "house"], (True, False, True)),
        (["email@-@address", "it'@@"], (True, False, False)),
    ],
)
def test_a_vocabulary_shows_how_its_words_were_made(
    pieces: list[str], expected: tuple[bool, bool, bool]
) -> None:
    found = observe_moses(pieces, lang="en")
    assert (found.normalize, found.split_dashes, found.escape) == expected


def test_a_missing_package_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ConfigError) as caught:
        Moses(MosesConfig(lang="en"))
    assert str(caught.value) == ("sacremoses is not installed; pip install 'lightconv_mt[fairseq]'")


def test_a_language_is_needed() -> None:
    with pytest.raises(ConfigError, match="lang of Moses is empty"):
        MosesConfig(lang=" ")
