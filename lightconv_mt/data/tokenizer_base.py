"""What every tokenizer does: text to ids of one vocabulary, and back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that stand for no text; `bos` is what a decoder begins with."""

    bos: int
    pad: int
    eos: int
    unk: int


class BaseTokenizer(ABC):
    """One vocabulary; encoding adds neither BOS nor EOS.

    Attributes:
        lowercase: whether the vocabulary has no upper case, so that text loses it.
    """

    lowercase: bool

    @property
    @abstractmethod
    def ids(self) -> SpecialIds:
        """Special ids."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V, padding included."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """sha256 of everything that decides what `encode_batch` and `decode` return."""

    def encode(self, text: str) -> list[int]:
        """Ids of a sentence."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several sentences."""

    @abstractmethod
    def encode_sampled(self, texts: Sequence[str], *, alpha: float, seed: int) -> list[list[int]]:
        """Ids of one random segmentation of each sentence.

        Args:
            texts: sentences.
            alpha: how far from the usual segmentation; see `TokenizerConfig.sampling`.
            seed: decides the result.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ones are dropped."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces' own spelling."""

    @abstractmethod
    def spell_text(self, text: str) -> list[str]:
        """Characters of each piece that `encode` makes of a sentence, without spaces and marks.

        They may differ from the sentence's own where the tokenizer normalises it.
        """

    @abstractmethod
    def spell(self, ids: Sequence[int]) -> list[str]:
        """Characters that each id adds to what `decode` says, without spaces; "" if it is none."""

    @abstractmethod
    def save(self, run_dir: Path, name: str) -> None:
        """Write the vocabulary's files, whose names begin with `name`, each whole or not at all."""


def same_pieces(src: BaseTokenizer, tgt: BaseTokenizer) -> bool:
    """Whether an id means the same on both sides, however text is cut into pieces."""
    if src.digest == tgt.digest:
        return True
    first, second = ((side.ids, side.pieces(range(side.vocab_size))) for side in (src, tgt))
    return first == second


def encodable(text: str) -> str:
    """The text as one line of valid Unicode: lone surrogates replaced, line breaks spaces."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")
