"""Subword-nmt's BPE: words cut by a file of merges, every piece but a word's last ending in @@."""

import io
import random
import re
from collections.abc import Iterable
from importlib.metadata import version

from lightconv_mt.errors import ConfigError, DataError

MARK = "@@"
# Cutting takes time quadratic in a word's length, so longer ones are cut in parts first.
LONGEST_WORD = 500
# The library remembers every word it has seen.
MAX_CACHED_WORDS = 500_000

_VERSION = re.compile(r"#version: 0\.[12]\s*")


class BpeCodes:
    """One file of merges.

    Attributes:
        text: the file's content.
    """

    def __init__(self, text: str, *, name: str) -> None:
        """Load merges, the most frequent first.

        Args:
            text: content of the file that `subword-nmt learn-bpe` wrote.
            name: what errors call it.

        Raises:
            DataError: naming the first line that is no merge.
            ConfigError: when subword-nmt is not installed.
        """
        try:
            from subword_nmt.apply_bpe import BPE
        except ImportError as error:
            raise ConfigError(
                "subword-nmt is not installed; pip install 'lightconv_mt[fairseq]'"
            ) from error
        self.text = text
        _check(text, name)
        self._bpe = BPE(io.StringIO(text))

    @property
    def description(self) -> str:
        """What a tokenizer's digest takes in: the merges and subword-nmt's version."""
        return f"{self.text} subword-nmt {version('subword-nmt')}"

    def segment(self, words: Iterable[str], *, dropout: float = 0.0, seed: int = 0) -> list[str]:
        """Pieces of words.

        Args:
            words: without spaces.
            dropout: probability of leaving out each merge (BPE-dropout; Provilkov et al., 2020).
            seed: decides which; the same call gives the same pieces.
        """
        if len(self._bpe.cache) > MAX_CACHED_WORDS:
            self._bpe.cache.clear()
        if not dropout:
            return self._cut(words, 0.0)
        state = random.getstate()  # subword-nmt draws from the global generator
        random.seed(seed)
        try:
            return self._cut(words, dropout)
        finally:
            random.setstate(state)

    def _cut(self, words: Iterable[str], dropout: float) -> list[str]:
        pieces: list[str] = []
        for word in words:
            for start in range(0, len(word), LONGEST_WORD):
                pieces += self._bpe.segment_tokens([word[start : start + LONGEST_WORD]], dropout)
                if start + LONGEST_WORD < len(word):
                    pieces[-1] += MARK
        return pieces


def join_pieces(pieces: Iterable[str]) -> list[str]:
    """Words of pieces."""
    return (" ".join([*pieces, ""])).replace(f"{MARK} ", "").split()


def _check(text: str, name: str) -> None:
    lines = text.rstrip("\n").split("\n")
    first = 0
    if lines[0].startswith("#version"):
        if not _VERSION.fullmatch(lines[0]):
            raise DataError(
                f"{name}: {lines[0][:40]!r} is unknown; give BPE codes of version 0.1 or 0.2"
            )
        first = 1
    if lines[first:] in ([], [""]):
        raise DataError(f"{name} has no BPE codes; give the file that the model was trained with")
    for number, line in enumerate(lines[first:], start=first + 1):
        symbols = line.strip("\r\n ").split(" ")
        if len(symbols) == 3 and symbols[2].isdecimal():
            raise DataError(
                f"{name}, line {number}: three columns are fastBPE's codes; drop the third "
                f"(cut -d' ' -f1,2) and write '#version: 0.2' above them"
            )
        if len(symbols) != 2 or not all(symbols):
            raise DataError(
                f"{name}, line {number}: {line[:60]!r} is no merge of two symbols; "
                f"give the file of BPE codes that the model was trained with"
            )
    merged = {symbol for line in lines[first:] for symbol in line.split()}
    if not first and "</w>" not in merged and any(each.endswith("</w>") for each in merged):
        raise DataError(
            f"{name} names no version, but its merges are of version 0.2, in which ends of words "
            f"are no symbols of their own; write '#version: 0.2' above them"
        )
