"""The text side of a fairseq model: Moses' words, BPE pieces, ids of a dictionary."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from lightconv_mt.data.bpe_codes import MARK, BpeCodes, join_pieces
from lightconv_mt.data.fairseq_dictionary import (
    FAIRSEQ_IDS,
    SPECIAL_SYMBOLS,
    FairseqDictionary,
    read_utf8,
)
from lightconv_mt.data.moses import Moses, MosesConfig
from lightconv_mt.data.tokenizer_base import (
    BaseTokenizer,
    SpecialIds,
    encodable,
)
from lightconv_mt.errors import ConfigError
from lightconv_mt.whole_files import replace_bytes


class FairseqTokenizer(BaseTokenizer):
    """A dictionary, and what makes its tokens of text; without both, tokens are what spaces part.

    Attributes:
        dictionary: gives the ids.
        codes: BPE merges, if words are cut.
        moses: makes the words, if they are not parted by spaces already.
    """

    def __init__(
        self,
        dictionary: FairseqDictionary,
        *,
        codes: BpeCodes | None = None,
        moses: Moses | None = None,
        lowercase: bool = False,
        joins_pieces: bool = False,
    ) -> None:
        """Join the parts.

        Args:
            dictionary: of one side.
            codes: BPE merges of that side.
            moses: words of that side's language.
            lowercase: whether words lose their case before they are cut.
            joins_pieces: whether `decode` joins pieces though there are no codes.
        """
        self.dictionary, self.codes, self.moses = dictionary, codes, moses
        self.lowercase = lowercase
        self._joins = joins_pieces or codes is not None

    @classmethod
    def read(
        cls,
        dictionary: Path,
        codes: Path | None,
        moses: MosesConfig | None,
        *,
        lowercase: bool = False,
        joins_pieces: bool = False,
    ) -> "FairseqTokenizer":
        """Read the files.

        Raises:
            DataError: when one cannot be read or is broken.
            ConfigError: when sacremoses or subword-nmt is needed and not installed.
        """
        return cls(
            FairseqDictionary.read(dictionary),
            codes=BpeCodes(read_utf8(codes, what="file of BPE codes"), name=str(codes))
            if codes is not None
            else None,
            moses=Moses(moses) if moses is not None else None,
            lowercase=lowercase,
            joins_pieces=joins_pieces,
        )

    @property
    def ids(self) -> SpecialIds:
        """Special ids; decoders begin with EOS."""
        return FAIRSEQ_IDS

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.dictionary)

    @cached_property
    def digest(self) -> str:
        """sha256 of the files, the settings and the versions of the packages that apply them."""
        parts = [
            self.dictionary.text,
            self.codes.description if self.codes else "no codes",
            self.moses.description if self.moses else "no moses",
            f"lowercase={self.lowercase} joins={self._joins}",
        ]
        return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several sentences."""
        return [self._numbers(self._cut(self._words(text))) for text in texts]

    def encode_sampled(self, texts: Sequence[str], *, alpha: float, seed: int) -> list[list[int]]:
        """Ids with BPE-dropout.

        Args:
            texts: sentences.
            alpha: probability of leaving out each merge.
            seed: decides the result.

        Raises:
            ConfigError: when there are no BPE codes.
        """
        if self.codes is None:
            raise ConfigError(
                "tokenizer.sampling needs BPE codes, and this tokenizer has none; set it to 0"
            )
        return [
            self._numbers(
                self.codes.segment(self._words(text), dropout=alpha, seed=seed * 1_000_003 + place)
            )
            for place, text in enumerate(texts)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ones but the unknown are dropped."""
        words = [
            self.dictionary.symbols[number]
            for number in ids
            if number >= len(SPECIAL_SYMBOLS) or number == FAIRSEQ_IDS.unk
        ]
        if self._joins:
            words = join_pieces(words)
        return self.moses.sentence(words) if self.moses else " ".join(words)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The dictionary's spelling."""
        return [self.dictionary.symbols[number] for number in ids]

    def spell_text(self, text: str) -> list[str]:
        """Characters of each piece of a sentence, unescaped where one piece holds all of it."""
        return self._spelled(self._cut(self._words(text)))

    def spell(self, ids: Sequence[int]) -> list[str]:
        """Characters of each id in the decoded text."""
        shown = [number >= len(SPECIAL_SYMBOLS) or number == FAIRSEQ_IDS.unk for number in ids]
        spelled = self._spelled(self.pieces(ids))
        return [text if is_shown else "" for text, is_shown in zip(spelled, shown, strict=True)]

    def _spelled(self, pieces: Sequence[str]) -> list[str]:
        bare = [piece.removesuffix(MARK) if self._joins else piece for piece in pieces]
        return [self.moses.plain(word) for word in bare] if self.moses else bare

    def save(self, run_dir: Path, name: str) -> None:
        """Write `NAME.dict.txt`, after `NAME.codes` if there are any."""
        if self.codes is not None:
            replace_bytes(run_dir / f"{name}.codes", self.codes.text.encode("utf-8"))
        replace_bytes(run_dir / f"{name}.dict.txt", self.dictionary.text.encode("utf-8"))

    def _words(self, text: str) -> list[str]:
        words = self.moses.words(encodable(text)) if self.moses else encodable(text).split()
        # Moses goes by case, so it comes first, as when published models were trained.
        return [word.lower() for word in words] if self.lowercase else words

    def _cut(self, words: list[str]) -> list[str]:
        return self.codes.segment(words) if self.codes else words

    def _numbers(self, pieces: list[str]) -> list[int]:
        return [self.dictionary.id_of(piece) for piece in pieces]
