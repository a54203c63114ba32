"""Moses' words: punctuation split off and put back, as published fairseq models take their text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from importlib.metadata import version
from typing import Any

from lightconv_mt.errors import ConfigError

_NEEDS_EXTRA = "{} is not installed; pip install 'lightconv_mt[fairseq]'"
# What Moses' punctuation normaliser leaves none of.
_NORMALIZED_AWAY = re.compile("[„“”‘’–—…]")
_ESCAPED = re.compile("&(apos|quot|amp|lt|gt|#124|#91|#93);")


@dataclass(kw_only=True)
class MosesConfig:
    """How the words of one side's text were made."""

    lang: str
    normalize: bool = False  # quotes, dashes and spaces to ASCII first
    split_dashes: bool = True  # well-known becomes well @-@ known
    escape: bool = True  # & becomes &amp;

    def __post_init__(self) -> None:
        if not self.lang.strip():
            raise ConfigError("tokenizer: the lang of Moses is empty; give a code such as de")


class Moses:
    """sacremoses with one configuration: sentences to words and back."""

    def __init__(self, config: MosesConfig) -> None:
        """Load sacremoses.

        Raises:
            ConfigError: when it is not installed.
        """
        try:
            from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
        except ImportError as error:
            raise ConfigError(_NEEDS_EXTRA.format("sacremoses")) from error
        self.config = config
        self._tokenizer = MosesTokenizer(config.lang)
        self._detokenizer = MosesDetokenizer(config.lang)
        # The training text went through the Perl script.
        self._normalizer: Any = (
            MosesPunctNormalizer(config.lang, perl_parity=True) if config.normalize else None
        )

    @property
    def description(self) -> str:
        """What a tokenizer's digest takes in: the configuration and sacremoses' version."""
        return f"{self.config} sacremoses {version('sacremoses')}"

    def words(self, sentence: str) -> list[str]:
        """The words of a sentence."""
        if self._normalizer is not None:
            sentence = self._normalizer.normalize(sentence)
        found: list[str] = self._tokenizer.tokenize(
            sentence, aggressive_dash_splits=self.config.split_dashes, escape=self.config.escape
        )
        return found

    def sentence(self, words: list[str]) -> str:
        """The sentence that words make."""
        text: str = self._detokenizer.detokenize(words, unescape=self.config.escape)
        return text

    def plain(self, word: str) -> str:
        """The characters that a word stands for in a sentence."""
        unescaped = unescape(word) if self.config.escape else word
        return "-" if unescaped == "@-@" and self.config.split_dashes else unescaped


def observe_moses(pieces: Iterable[str], *, lang: str) -> MosesConfig:
    """The configuration that a vocabulary shows its training text went through.

    Escapes, split dashes and typographic punctuation leave pieces of their own behind. Where there
    is no plain quote either, nothing tells whether quotes were escaped; Moses' default is taken.

    Args:
        pieces: of the vocabulary, special ones excepted.
        lang: code of the language.
    """
    dashes = escaped = plain = typographic = False
    for piece in pieces:
        dashes |= piece == "@-@"
        escaped |= _ESCAPED.search(piece) is not None
        plain |= "'" in piece or '"' in piece
        typographic |= _NORMALIZED_AWAY.search(piece) is not None
    return MosesConfig(
        lang=lang,
        normalize=not typographic,
        split_dashes=dashes,
        escape=escaped or not plain,
    )
